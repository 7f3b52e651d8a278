//go:build linux

package ns

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"migrate/engine/kernel/kerneltest"
	"migrate/engine/procfs"
)

func TestQuotaOf(t *testing.T) {
	for _, c := range []struct {
		cpus          float64
		quota, period time.Duration
	}{
		{2.5, 25 * time.Millisecond, 10 * time.Millisecond},
		{1, 10 * time.Millisecond, 10 * time.Millisecond},
		{0.33333, 3334 * time.Microsecond, 10 * time.Millisecond},
		{0.1, time.Millisecond, 10 * time.Millisecond},
		{0.03, 1001 * time.Microsecond, 33334 * time.Microsecond},
		{0.0001, time.Millisecond, time.Second},
	} {
		quota, period := quotaOf(c.cpus)
		if quota != c.quota || period != c.period {
			t.Errorf("%g processors: %v in %v; want %v in %v", c.cpus, quota, period, c.quota, c.period)
		}
		if float64(quota) < c.cpus*float64(period) {
			t.Errorf("%g processors: %v in %v is less", c.cpus, quota, period)
		}
	}
}

// busy is a v2 cgroup with two processes that use all the processor time that they get.
func busy(t *testing.T) (*Cgroup, int) {
	t.Helper()
	kerneltest.Root(t)
	cg, err := MakeCgroup(fmt.Sprintf("migrate-limit-test-%d", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/sh", "-c", "read go; while :; do :; done & while :; do :; done")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cg.Kill()
		_ = cmd.Wait()
		if err := cg.Empty(t.Context()); err == nil {
			err = cg.Remove()
			if err != nil {
				t.Error(err)
			}
		}
	})
	if err := cg.Add(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write([]byte("go\n")); err != nil {
		t.Fatal(err)
	}
	return cg, cmd.Process.Pid
}

// used is the processor time that a cgroup uses per second.
func used(t *testing.T, cg *Cgroup) float64 {
	t.Helper()
	start := time.Now()
	before, err := cg.CPUTime()
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond)
	after, err := cg.CPUTime()
	if err != nil {
		t.Fatal(err)
	}
	return (after - before).Seconds() / time.Since(start).Seconds()
}

// placeOf is the cgroup of the cpu controller that a process is in, and the value of its quota.
func placeOf(t *testing.T, pid int) string {
	t.Helper()
	at, err := procfs.Host.Cgroups(pid)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(at)
}

func TestLimitCPU(t *testing.T) {
	cg, pid := busy(t)
	before := placeOf(t, pid)
	l, err := LimitCPU(cg)
	if err != nil {
		kerneltest.Lack(t, "the cpu controller: "+err.Error())
	}
	defer func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := l.Set(0.2); err != nil {
		t.Fatal(err)
	}
	if u := used(t, cg); u > 0.3 {
		t.Errorf("with a limit of 0.2 the tasks use %.2f processors", u)
	}
	if err := l.Lift(); err != nil {
		t.Fatal(err)
	}
	if u := used(t, cg); u < 0.2 {
		t.Logf("without a limit the tasks use %.2f processors: this machine is busy", u)
	}
	if err := l.Set(0.1); err != nil {
		t.Fatal(err)
	}
	if u := used(t, cg); u > 0.2 {
		t.Errorf("with a limit of 0.1 the tasks use %.2f processors", u)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if after := placeOf(t, pid); after != before {
		t.Errorf("afterwards the program is in %s; it was in %s", after, before)
	}
}

// What a program that died has left is taken away by another, also while the tree is frozen.
func TestUnlimitCPU(t *testing.T) {
	for _, frozen := range []bool{false, true} {
		t.Run(fmt.Sprintf("frozen %t", frozen), func(t *testing.T) {
			cg, pid := busy(t)
			before := placeOf(t, pid)
			l, err := LimitCPU(cg)
			if err != nil {
				kerneltest.Lack(t, "the cpu controller: "+err.Error())
			}
			if err := l.Set(0.1); err != nil {
				t.Fatal(err)
			}
			if frozen {
				if err := cg.Freeze(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			again := &Cgroup{cg.dir}
			for range 2 { // the second time there is nothing to do
				if err := UnlimitCPU(again); err != nil {
					t.Fatal(err)
				}
			}
			if after := placeOf(t, pid); after != before {
				t.Errorf("afterwards the program is in %s; it was in %s", after, before)
			}
			if err := cg.Thaw(); err != nil {
				t.Fatal(err)
			}
			if n, err := unix.Getxattr(cg.dir, limitAttribute, nil); err == nil {
				t.Errorf("a mark of %d bytes is left", n)
			}
		})
	}
}

// On v2 the limit is cpu.max of the tree's own cgroup, and what was in it comes back.
func TestLimitOfV2(t *testing.T) {
	kerneltest.Root(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "cpu.max")
	cpuMax := func(want string) {
		t.Helper()
		got, err := os.ReadFile(path)
		if err != nil || !strings.HasPrefix(string(got), want) { // a file keeps the end of what was longer
			t.Errorf("cpu.max is %q, %v; want %q", got, err, want)
		}
	}
	if err := os.WriteFile(path, []byte("150000 100000"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(dir, "trusted.migrate.probe", []byte("1"), 0); err != nil {
		kerneltest.Lack(t, "extended attributes of "+dir)
	}
	cg := &Cgroup{dir}
	l, err := LimitCPU(cg)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Set(0.5); err != nil {
		t.Fatal(err)
	}
	cpuMax("5000 10000")
	if err := l.Lift(); err != nil {
		t.Fatal(err)
	}
	cpuMax("150000 100000")
	if err := l.Set(0.5); err != nil {
		t.Fatal(err)
	}
	if err := UnlimitCPU(cg); err != nil {
		t.Fatal(err)
	}
	cpuMax("150000 100000")
	if err := l.Close(); err != nil {
		t.Errorf("after another has taken it away: %v", err)
	}
}
