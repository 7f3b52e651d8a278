//go:build linux

package moves

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"migrate/e2e/cluster"
)

// stays names the programs of e2e/workloads/c that are not moved between the hosts of the lab, and why.
var stays = map[string]string{
	"chrooted":      "descriptors and programs outside of the root directory of a process cannot be opened from another mount namespace",
	"cgroups":       "it looks for the cgroups of the source's host, which a move leaves behind",
	"deleted_name":  "a name that a deleted file has in another directory is found in a stopped tree only",
	"deleted_rofs":  "it takes down a mount that it would leave",
	"detached_bind": "its mount stays at the source",
	"fanotify":      "it compares the numbers of mounts, which are others in another mount namespace",
	"fifos":         "a plan asks for a deleted FIFO at the destination",
	"leases":        "a lease for writing is refused on a file that was copied up in the overlay of a virtual host",
	"inotify":       "that its directory is copied is an event",
	"inotify_queue": "as inotify",
	"mem_cow":       "it looks for memory that a fork shares, which a move copies",
	"mqueue":        "a queue of the host is carried by a dump to disk",
	"ns_links":      "namespaces that a program has made for itself are carried by a dump to disk",
	"ns_overlay":    "namespaces that a program has made for itself are carried by a dump to disk",
	"ns_deleted":    "namespaces that a program has made for itself are carried by a dump to disk",
	"ns_mounts":     "namespaces that a program has made for itself are carried by a dump to disk",
	"ns_net":        "namespaces that a program has made for itself are carried by a dump to disk",
	"ns_nft":        "namespaces that a program has made for itself are carried by a dump to disk",
	"ns_conntrack":  "namespaces that a program has made for itself are carried by a dump to disk",
	"ns_time":       "namespaces that a program has made for itself are carried by a dump to disk",
	"ns_uts_ipc":    "namespaces that a program has made for itself are carried by a dump to disk",
	"paths":         "it compares the numbers of inodes, and its directory is copied",
	"pidfds":        "it has a handle of a process that does not move",
	"proc_files":    "it compares namespaces by their numbers",
	"tcp_states":    "one of its connections leads to a socket that nobody holds any more, which stays behind",
	"unix_cred":     "credentials of a process that has ended wait in a queue, and its number in the workload's pid namespace cannot be seen from outside",
	"unix_mounts":   "namespaces that a program has made for itself are carried by a dump to disk",
}

// TestConformance moves programs of one behaviour each from host to host, which check themselves from inside when they are told to.
// Their directories are copied when they are ready, as if they were on shared storage.
func TestConformance(t *testing.T) {
	sources, err := filepath.Glob("../workloads/c/*.c")
	if err != nil || len(sources) == 0 {
		t.Fatalf("no workloads: %v", err)
	}
	for _, src := range sources {
		name := strings.TrimSuffix(filepath.Base(src), ".c")
		if _, err := os.Stat(strings.TrimSuffix(src, ".c") + ".peer.c"); err == nil || strings.HasSuffix(name, ".peer") || stays[name] != "" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			s := begin(t, 2*time.Minute)
			dir := "/tmp/" + name
			for _, host := range []string{"host1", "host2"} {
				s.On(host, "rm", "-rf", dir)
			}
			s.On("host1", "mkdir", "-m", "777", dir)
			cmd := exec.CommandContext(s.Ctx, "gcc", "-O1", "-pthread", "-o", s.inside("host1")+dir+"/program", src)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("gcc: %v\n%s", err, out)
			}
			s.Workload(name, "", "/bin/sh", "-c", "cd "+dir+" && exec "+dir+"/program")
			s.eventually("host1", dir+"/ready")
			s.copyDir(dir, "host1", "host2")
			s.Move(name, "host2", "--max-downtime", "10s")
			s.On("host2", "kill", "-TERM", strconv.Itoa(s.ps(name).PID))
			if result := s.eventually("host2", dir+"/result"); strings.TrimSpace(result) != "pass" {
				t.Error(result)
			}
		})
	}
}

// inside is the root directory of a host, as this program sees it.
func (s *scope) inside(host string) string {
	s.Helper()
	pid, err := cluster.Hosts.Host(host).PID(s.Ctx)
	if err != nil {
		s.Fatal(err)
	}
	return fmt.Sprintf("/proc/%d/root", pid)
}

// copyDir copies a directory from host to host.
func (s *scope) copyDir(dir, from, to string) {
	s.Helper()
	if out, err := exec.CommandContext(s.Ctx, "cp", "-a", s.inside(from)+dir, s.inside(to)+dir).CombinedOutput(); err != nil {
		s.Fatalf("copying %s from %s to %s: %v\n%s", dir, from, to, err, out)
	}
}

// eventually returns what is in a file of a host, once it is there.
func (s *scope) eventually(host, path string) string {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Ctx, time.Minute)
	defer cancel()
	for {
		if text, err := os.ReadFile(s.inside(host) + path); err == nil {
			return string(text)
		}
		select {
		case <-ctx.Done():
			result, _ := os.ReadFile(s.inside(host) + filepath.Join(filepath.Dir(path), "result"))
			s.Fatalf("%s does not appear on %s; result: %s", path, host, result)
		case <-time.After(10 * time.Millisecond): // no event comes from another mount namespace's overlay
		}
	}
}
