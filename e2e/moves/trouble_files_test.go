//go:build linux

package moves

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	"migrate/e2e/cluster"
	"migrate/e2e/lab"
)

// slowVolume begins a move of a program on host1 with a directory that takes some 6 s, and returns its id when content has
// arrived on host2.
func (s *scope) slowVolume(name, dir string) string {
	s.Helper()
	s.On("host1", "sh", "-c", "mkdir -p "+dir+" && echo text > "+dir+"/text && head -c 25165824 /dev/urandom > "+dir+"/ballast")
	s.Workload(name, "", opener(dir+"/text")...)
	s.Logs(name, "up\n")
	id := strings.TrimSpace(s.On("host1", cluster.Migrate, "move", name, "--to", "host2", "--detach", "--volume", dir, "--bandwidth", "4MiB", "--max-downtime", "5s"))
	s.until("content on host2", func() bool {
		out, err := cluster.Hosts.Host("host2").Exec(s.Ctx, "du", "-s", dir+"/ballast")
		return err == nil && !strings.HasPrefix(out, "0\t")
	})
	return id
}

// until waits for what is announced to nobody.
func (s *scope) until(what string, there func() bool) {
	s.Helper()
	for !there() {
		select {
		case <-s.Ctx.Done():
			s.Fatalf("waiting for %s: %v", what, context.Cause(s.Ctx))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (s *scope) migrationEnds(id, outcome string) {
	s.Helper()
	s.until(outcome, func() bool {
		return strings.Contains(s.On("host1", cluster.Migrate, "status", id, "-o", "json"), `"outcome": "`+outcome+`"`)
	})
}

// TestFilesOverBrokenLink breaks the connection while a directory is brought over: it goes on over another one.
func TestFilesOverBrokenLink(t *testing.T) {
	s := begin(t, time.Minute)
	const dir = "/srv/broken"
	id := s.slowVolume("broken", dir)
	s.Cleanup(func() {
		if err := cluster.Hosts.Heal(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if err := cluster.Hosts.CutPair(s.Ctx, "host1", "host2", false, lab.PlanePages); err != nil {
		t.Fatal(err)
	}
	s.until("the end of the connection", func() bool {
		text, err := cluster.Hosts.Host("host1").AgentLog(s.Ctx)
		return err != nil || strings.Contains(text, "the connection for files has broken")
	})
	if err := cluster.Hosts.Heal(s.Ctx); err != nil {
		t.Fatal(err)
	}
	s.migrationEnds(id, "moved")
	if a, b := s.On("host1", "sha256sum", dir+"/ballast"), s.On("host2", "sha256sum", dir+"/ballast"); a != b {
		t.Errorf("host1 has %s, host2 %s", a, b)
	}
}

// TestAgentDiesDuringFiles kills the destination's agent while a directory is brought over: the program runs on, and the next
// agent removes what has arrived.
func TestAgentDiesDuringFiles(t *testing.T) {
	s := begin(t, 2*time.Minute)
	const dir = "/srv/halfway"
	id := s.slowVolume("halfway", dir)
	if err := cluster.Hosts.Host("host2").SignalAgent(s.Ctx, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.Cleanup(func() {
		if err := cluster.AwaitNodes(context.Background(), 3); err != nil {
			t.Error(err)
		}
	})
	s.migrationEnds(id, "source_running")
	if err := cluster.Hosts.Host("host2").StartAgent(s.Ctx); err != nil {
		t.Fatal(err)
	}
	s.until("host2 to be clean", func() bool {
		_, err := cluster.Hosts.Host("host2").Exec(s.Ctx, "test", "!", "-e", dir)
		return err == nil
	})
	if now := s.ps("halfway"); now.Host != "host1" || now.Epoch != 1 {
		t.Errorf("the program is %+v", now)
	}
}

// TestDiskFillsDuringFiles fills the destination's disk while a directory is brought over.
func TestDiskFillsDuringFiles(t *testing.T) {
	s := begin(t, time.Minute)
	const mount, dir = "/srv/filled", "/srv/filled/data"
	s.On("host2", "sh", "-c", "mkdir -p "+mount+" && mount -t tmpfs -o size=40m tmpfs "+mount)
	s.cleanly(func(late *scope) { late.On("host2", "umount", mount) })
	id := s.slowVolume("filled", dir)
	before := s.ps("filled")
	if _, err := cluster.Hosts.Host("host2").Exec(s.Ctx, "sh", "-c", "cat /dev/zero > "+mount+"/other"); err == nil {
		t.Error("the disk has not become full")
	}
	began := time.Now()
	s.migrationEnds(id, "source_running")
	if d := time.Since(began); d > 15*time.Second {
		t.Errorf("the move ended only %v after", d)
	}
	s.mention(s.On("host1", cluster.Migrate, "status", id, "-o", "json"), "host2 could not write", dir, "no space left on device", "make room there")
	s.until("the end of the migration", func() bool { return s.ps("filled").Migration == "" })
	if now := s.ps("filled"); now.Host != "host1" || now.PID != before.PID || now.Epoch != before.Epoch {
		t.Errorf("the program was %+v and is %+v", before, now)
	}
}
