//go:build linux

package moves

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"migrate/e2e/cluster"
)

// lastFlushed is the newest record that a recorder has said to be on the disk.
func lastFlushed(text string) uint64 {
	last := uint64(0)
	for line := range strings.Lines(text) {
		if n, ok := strings.CutPrefix(strings.TrimSpace(line), "flushed "); ok {
			if v, err := strconv.ParseUint(n, 10, 64); err == nil {
				last = v
			}
		}
	}
	return last
}

// someFlushed lets a recorder write some more records, and returns the number of the last. The output is that of the host
// where it runs now.
func (s *scope) someFlushed(name string) uint64 {
	s.Helper()
	now := lastFlushed(s.Logs(name, "flushed"))
	return lastFlushed(s.Logs(name, fmt.Sprintf("flushed %d\n", now-now%50+200)))
}

// TestVolume moves a program that writes records and flushes each, with its directory, on to another host and back to the first,
// where the directory that it has left is used again. All records are there, in order.
func TestVolume(t *testing.T) {
	s := begin(t, 2*time.Minute)
	recorder, err := cluster.Build(s.Ctx, "migrate/e2e/workloads/recorder", "recorder")
	if err != nil {
		t.Fatal(err)
	}
	const dir = "/srv/records/here"
	s.Run("recorder", []string{"--volume", dir}, recorder, "write", dir)
	for _, to := range []string{"host2", "host3", "host1"} {
		s.someFlushed("recorder")
		s.Move("recorder", to, "--max-downtime", "5s")
	}
	flushed := s.someFlushed("recorder")
	s.On("host1", cluster.Migrate, "stop", "recorder", "--grace", "10s")
	n, err := strconv.ParseUint(strings.TrimSpace(s.On("host1", recorder, "check", dir)), 10, 64)
	if err != nil || n <= flushed {
		t.Errorf("%d records are there, %d were flushed (%v)", n, flushed, err)
	}
	// Host 2 still has what was left there, which may be replaced, and says so.
	if text := s.On("host2", "sh", "-c", "cat /var/lib/migrate/volumes/*.json"); !strings.Contains(text, `"stale"`) || !strings.Contains(text, dir) {
		t.Errorf("host2 has not marked what was left behind: %s", text)
	}
}

// put writes a file on a host.
func (s *scope) put(host, path, text string) {
	s.Helper()
	if err := cluster.Hosts.Host(host).WriteFile(s.Ctx, path, []byte(text), 0o644); err != nil {
		s.Fatal(err)
	}
}

// opener is a program that keeps files open: the first for reading, the second, if there is one, for appending.
func opener(read string, appends ...string) []string {
	program := "a = open('" + read + "')\na.read(3)\n"
	for _, p := range appends {
		program += "b = open('" + p + "', 'a', buffering=1)\nb.write('from ' + '" + p + "\\n')\n"
	}
	return []string{"/usr/bin/python3", "-c", program + sleeper}
}

// TestFilesModes goes through what becomes of a file that differs at the destination, and of one that is missing.
func TestFilesModes(t *testing.T) {
	s := begin(t, 2*time.Minute)
	const differs, missing, log = "/srv/modes/differs", "/srv/modes/missing", "/srv/modes-log/log"
	s.put("host1", differs, "what host1 has\n")
	s.put("host2", differs, "what host2 has\n") // of the same size
	s.put("host1", missing, "only on host1\n")
	s.put("host1", log, "")

	s.Workload("differs", "", opener(differs)...)
	s.Logs("differs", "up\n")
	before := s.ps("differs")
	s.refused([]string{"differs"}, "host2", "another content", differs, "host2")
	s.mention(s.Fails(0, "host1", cluster.Migrate, "move", "differs", "--to", "host2", "--files", "copy"), differs, "--overwrite")
	s.unmoved(before)
	s.Move("differs", "host2", "--files", "copy", "--overwrite", "--max-downtime", "5s")
	if got := s.On("host2", "cat", differs); got != "what host1 has\n" {
		t.Errorf("host2 has %q", got)
	}
	s.Move("differs", "host1", "--files", "shared", "--max-downtime", "5s") // still there, and trusted

	s.Workload("missing", "", opener(missing, log)...)
	s.Logs("missing", "up\n")
	s.refused([]string{"missing"}, "host2", "missing", missing, "host2")
	s.Move("missing", "host2", "--files", "copy", "--max-downtime", "5s")
	if got := s.On("host2", "cat", missing, log); got != "only on host1\nfrom "+log+"\n" {
		t.Errorf("host2 has %q", got)
	}
	s.On("host2", "sh", "-c", "echo later >> "+log)                       // as the program may
	s.Move("missing", "host1", "--files", "copy", "--max-downtime", "5s") // over what it left there
	if got := s.On("host1", "cat", log); got != "from "+log+"\nlater\n" {
		t.Errorf("host1 has %q", got)
	}
}

// TestVolumeRules: what no move has made is not overwritten, and a move that is given up leaves nothing.
func TestVolumeRules(t *testing.T) {
	s := begin(t, 2*time.Minute)
	const dir = "/srv/rules"
	s.put("host1", dir+"/data/file", "host1's\n")
	s.put("host2", dir+"/precious", "host2's\n")
	s.Workload("rules", "", opener(dir+"/data/file")...)
	s.Logs("rules", "up\n")
	before := s.ps("rules")
	for _, verb := range []string{"plan", "move"} {
		s.mention(s.Fails(0, "host1", cluster.Migrate, verb, "rules", "--to", "host2", "--volume", dir), dir, "--overwrite", "host2")
	}
	// A blackout that cannot be is the end of the move, after the files have arrived.
	for host, want := range map[string]string{"host2": "host2's\n", "host3": ""} {
		s.Fails(1, "host1", cluster.Migrate, "move", "rules", "--to", host, "--volume", dir, "--overwrite", "--max-downtime", "1us", "--timeout", "2s")
		// The source runs before the destination has removed its copy, and what came with it.
		s.until("what was brought to "+host+" to be gone again", func() bool {
			left := s.On(host, "sh", "-c", "cat "+dir+"/precious 2>/dev/null; ls -A /srv "+dir+" 2>/dev/null; true")
			return strings.HasPrefix(left, want) && !strings.Contains(left, "data") && !strings.Contains(left, ".migrate-") && (want != "" || !strings.Contains(left, "rules"))
		})
	}
	s.unmoved(before)
	s.Move("rules", "host2", "--volume", dir, "--overwrite", "--max-downtime", "5s")
	if got := s.On("host2", "sh", "-c", "cat "+dir+"/data/file; ls -A "+dir); strings.Contains(got, "precious") || !strings.HasPrefix(got, "host1's\n") {
		t.Errorf("on host2: %s", got)
	}
	s.until("what had to make room on host2 to go", func() bool { return !strings.Contains(s.On("host2", "ls", "-A", "/srv"), ".migrate-") })
	// The mark comes once the source has ended its copy; a move back before that is refused for another reason.
	s.until("host1 to have ended its copy", func() bool { return s.ps("rules").Migration == "" })
	s.On("host1", "sh", "-c", "echo changed > "+dir+"/data/file")
	s.mention(s.Fails(0, "host1", cluster.Migrate, "move", "rules", "--to", "host1", "--volume", dir), dir, "--overwrite")
	s.Move("rules", "host1", "--volume", dir, "--overwrite", "--max-downtime", "5s")
	if got := s.On("host1", "cat", dir+"/data/file"); got != "host1's\n" {
		t.Errorf("host1 has %q", got)
	}
}

// TestSharedStorage moves a program that writes to storage that both hosts see: its files are the same, and nothing is
// brought over, least of all onto themselves.
func TestSharedStorage(t *testing.T) {
	s := begin(t, 2*time.Minute)
	recorder, err := cluster.Build(s.Ctx, "migrate/e2e/workloads/recorder", "recorder")
	if err != nil {
		t.Fatal(err)
	}
	dir := cluster.Disk + "/records"
	s.Run("sharing", nil, recorder, "write", dir)
	s.someFlushed("sharing")
	s.mention(s.Fails(1, "host1", cluster.Migrate, "move", "sharing", "--to", "host2", "--volume", dir, "--overwrite"), dir, "--files shared")
	s.Move("sharing", "host2", "--max-downtime", "5s")
	s.someFlushed("sharing")
	s.Move("sharing", "host1", "--files", "shared", "--max-downtime", "5s")
	flushed := s.someFlushed("sharing")
	s.On("host1", cluster.Migrate, "stop", "sharing", "--grace", "10s")
	n, err := strconv.ParseUint(strings.TrimSpace(s.On("host1", recorder, "check", dir)), 10, 64)
	if err != nil || n <= flushed {
		t.Errorf("%d records are there, %d were flushed (%v)", n, flushed, err)
	}
}
