package remote

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"migrate/engine/kernel/kerneltest"
	"migrate/engine/ptrace"
)

// TestMain lets the test binary be a tracer that gets killed, and a Go program that is borrowed.
func TestMain(m *testing.M) {
	switch {
	case os.Getenv("REMOTE_TEST_TRACER") != "":
		tracerMain()
	case os.Getenv("REMOTE_TEST_GOTARGET") != "":
		goTargetMain()
	}
	code := m.Run()
	if compiled.dir != "" {
		os.RemoveAll(compiled.dir)
	}
	os.Exit(code)
}

var compiled struct {
	sync.Once
	dir, path string
	err       error
}

// targetBinary compiles testdata/target.c.
func targetBinary(t testing.TB) string {
	t.Helper()
	compiled.Do(func() {
		if compiled.dir, compiled.err = os.MkdirTemp("", "remote"); compiled.err != nil {
			return
		}
		compiled.path = filepath.Join(compiled.dir, "target")
		out, err := exec.Command("gcc", "-O2", "-mno-red-zone", "-o", compiled.path, "testdata/target.c").CombinedOutput()
		if err != nil {
			compiled.err = fmt.Errorf("gcc: %w\n%s", err, out)
		}
	})
	if compiled.err != nil {
		t.Fatal(compiled.err)
	}
	return compiled.path
}

// target is a running testdata/target.c. Its report is words of shared memory.
type target struct {
	pid    int
	cmd    *exec.Cmd
	report []byte
	maps   string // when it was ready
	fds    int    // likewise
}

const (
	ready = iota
	count
	bad
	done
	result
	errorNumber
	micros
	signals
)

func (g *target) word(i int) int64 { return int64(binary.NativeEndian.Uint64(g.report[8*i:])) }

func startTarget(t testing.TB, mode string, args ...int) *target {
	t.Helper()
	kerneltest.Root(t)
	fd, err := unix.MemfdCreate("report", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "report")
	defer f.Close()
	if err := f.Truncate(4096); err != nil {
		t.Fatal(err)
	}
	g := &target{}
	if g.report, err = unix.Mmap(fd, 0, 4096, unix.PROT_READ, unix.MAP_SHARED); err != nil {
		t.Fatal(err)
	}
	g.cmd = exec.Command(targetBinary(t), mode)
	for _, a := range args {
		g.cmd.Args = append(g.cmd.Args, strconv.Itoa(a))
	}
	g.cmd.ExtraFiles = []*os.File{f}
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	g.pid = g.cmd.Process.Pid
	t.Cleanup(func() { g.cmd.Process.Kill(); g.cmd.Wait(); unix.Munmap(g.report) })
	if mode != "stoploop" {
		until(t, "ready", func() bool { return g.word(ready) != 0 })
		if mode != "loop" && mode != "seccomp" {
			until(t, "asleep", func() bool {
				s, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", g.pid))
				return strings.Contains(string(s), ") S ")
			})
		}
	}
	g.maps = mapsOf(t, g.pid)
	g.fds = g.countFDs(t)
	return g
}

// until waits for a condition that only polling can see: memory or /proc of another process.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	untilOf(t, 0, what, ok)
}

// untilOf says, when it gives up, where the process stands.
func untilOf(t testing.TB, pid int, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(500 * time.Microsecond) {
		if time.Now().After(end) {
			t.Fatalf("waited ten seconds for: %s%s", what, whereIs(pid))
		}
	}
}

// unharmed checks that nothing of a session is left in the target.
func (g *target) unharmed(t testing.TB) {
	t.Helper()
	until(t, "the end of the session's mapping in "+strconv.Itoa(g.pid), func() bool { return mapsOf(t, g.pid) == g.maps })
	until(t, "the signal mask", func() bool { m, err := statusField(g.pid, "SigBlk"); return err == nil && m == 0 })
	if n := g.countFDs(t); n != g.fds {
		t.Errorf("%d has %d descriptors, had %d", g.pid, n, g.fds)
	}
	if g.word(bad) != 0 {
		t.Errorf("%d found its registers changed %d times", g.pid, g.word(bad))
	}
}

// whereIs describes what a process that does not do what it should does instead.
func whereIs(pid int) string {
	if pid == 0 {
		return ""
	}
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	text := "\n" + string(status)
	tracer := ptrace.New()
	defer tracer.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := tracer.Seize(ctx, pid, 0); err != nil {
		return text + err.Error()
	}
	if _, err := tracer.Stop(ctx, pid); err != nil {
		return text + err.Error()
	}
	regs, _ := tracer.GetRegs(ctx, pid)
	maps, _ := mappings(pid)
	for _, m := range maps {
		if uint64(m.start) <= regs.IP() && regs.IP() < uint64(m.end) {
			text += fmt.Sprintf("at %s+%#x, %#x before its end\n", m.name, regs.IP()-uint64(m.start), uint64(m.end)-regs.IP())
		}
	}
	return fmt.Sprintf("%s%+v\n", text, regs)
}

func (g *target) countFDs(t testing.TB) int {
	t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", g.pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// counting checks that a loop goes on.
func (g *target) counting(t testing.TB) {
	t.Helper()
	now := g.word(count)
	untilOf(t, g.pid, "the loop to go on", func() bool { return g.word(count) > now+10 })
}

// ended waits for the call to end and returns its error.
func (g *target) ended(t testing.TB) unix.Errno {
	t.Helper()
	untilOf(t, g.pid, "the call to end", func() bool { return g.word(done) != 0 })
	return unix.Errno(g.word(errorNumber))
}

// ends checks what an interrupted wait came to, and returns how long it took.
func (g *target) ends(t testing.TB, want, wantErr int64, from, to time.Duration) (took time.Duration) {
	t.Helper()
	g.ended(t)
	took = time.Duration(g.word(micros)) * time.Microsecond
	if g.word(result) != want || g.word(errorNumber) != wantErr || took < from || took > to {
		t.Errorf("%v of %d gave %d (%v) after %v; want %d (%v) after %v to %v", g.cmd.Args[1:], g.pid, g.word(result),
			unix.Errno(g.word(errorNumber)), took, want, unix.Errno(wantErr), from, to)
	}
	return took
}
