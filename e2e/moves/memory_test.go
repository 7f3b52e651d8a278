//go:build linux

package moves

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"migrate/e2e/cluster"
)

// TestMemory moves programs with memory of several kinds, which check themselves from inside when they are told to
// (e2e/workloads/c).
func TestMemory(t *testing.T) {
	for _, name := range []string{"mem_seal", "mem_keys", "mem_growsdown", "mem_places", "mem_advice", "mem_no_vdso", "mem_hugetlb"} {
		t.Run(name, func(t *testing.T) {
			s := begin(t, time.Minute)
			bin := filepath.Join(cluster.Share, name)
			cmd := exec.CommandContext(s.Ctx, "gcc", "-O1", "-pthread", "-o", bin, filepath.Join("../workloads/c", name+".c"))
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("gcc: %v\n%s", err, out)
			}
			dir := "/tmp/" + name
			for _, host := range []string{"host1", "host2"} {
				s.On(host, "mkdir", "-p", dir)
			}
			s.Workload(name, "", "/bin/sh", "-c", "cd "+dir+" && exec "+bin)
			s.eventually("host1", dir+"/ready")
			s.Move(name, "host2")
			s.On("host2", "kill", "-TERM", strconv.Itoa(s.ps(name).PID))
			if result := s.eventually("host2", dir+"/result"); strings.TrimSpace(result) != "pass" {
				t.Error(result)
			}
		})
	}
}

// eventually returns what is in a file of a host, once it is there.
func (s *scope) eventually(host, path string) string {
	s.Helper()
	return s.On(host, "timeout", "30", "sh", "-c", "until cat "+path+" 2>"+os.DevNull+"; do sleep 0.05; done")
}
