package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"migrate/arch"
	"migrate/engine/kernel/kerneltest"
	"migrate/engine/ptrace"
)

func newTracer(t testing.TB) (*ptrace.Tracer, context.Context) {
	t.Helper()
	kerneltest.Root(t)
	tracer := ptrace.New()
	t.Cleanup(func() { tracer.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	return tracer, ctx
}

// memfdCommand is a command that executes an image from memory.
func memfdCommand(t testing.TB, image []byte) *exec.Cmd {
	t.Helper()
	fd, err := unix.MemfdCreate("image", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "image")
	t.Cleanup(func() { f.Close() })
	if _, err := f.Write(image); err != nil {
		t.Fatal(err)
	}
	cmd := &exec.Cmd{Path: fmt.Sprintf("/proc/self/fd/%d", fd), Args: []string{"image"}}
	return cmd
}

func startCmd(t testing.TB, cmd *exec.Cmd) int {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd.Process.Pid
}

const seedBase = 0x10000

func seedTrap(t testing.TB, tracer *ptrace.Tracer, ctx context.Context) *Trap {
	t.Helper()
	pid := startCmd(t, memfdCommand(t, arch.SeedELF(seedBase)))
	trap, err := InstallStub(ctx, tracer, pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { trap.Close() })
	return trap
}

func mapsOf(t testing.TB, pid int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestTrapBatch(t *testing.T) {
	tracer, ctx := newTracer(t)
	trap := seedTrap(t, tracer, ctx)
	var b Batch
	pid := b.Call(unix.SYS_GETPID)
	pair := b.Buffer(8)
	b.Call(unix.SYS_PIPE2, pair, 0)
	dup := b.Call(unix.SYS_DUP, 0)
	closed := b.Call(unix.SYS_CLOSE, dup)
	missing := b.Try(unix.SYS_CLOSE, 99)
	after := b.Call(unix.SYS_GETTID)
	if err := trap.Run(ctx, &b); err != nil {
		t.Fatal(err)
	}
	if v, err := pid.Value(); err != nil || int(v) != trap.PID() {
		t.Errorf("getpid %d, %v", v, err)
	}
	if !errors.Is(missing.Err(), unix.EBADF) || closed.Err() != nil || after.Err() != nil {
		t.Errorf("%v, %v, %v", missing.Err(), closed.Err(), after.Err())
	}
	var f Batch
	bad := f.Call(unix.SYS_CLOSE, 99)
	never := f.Call(unix.SYS_GETPID)
	if err := trap.Run(ctx, &f); !errors.Is(err, unix.EBADF) {
		t.Errorf("%v", err)
	}
	if !errors.Is(bad.Err(), unix.EBADF) || !errors.Is(never.Err(), ErrNotRun) {
		t.Errorf("%v, %v", bad.Err(), never.Err())
	}
}

func TestTrapLargeBatch(t *testing.T) {
	tracer, ctx := newTracer(t)
	trap := seedTrap(t, tracer, ctx)
	before := mapsOf(t, trap.PID())
	var b Batch
	data := b.Buffer(3 << 20)
	n := b.Call(unix.SYS_GETRANDOM, data, 3<<20, 0)
	if err := trap.Run(ctx, &b); err != nil {
		t.Fatal(err)
	}
	if n.value != 3<<20 || bytes.Count(data.Bytes(), []byte{0}) > 100_000 {
		t.Errorf("%d bytes", n.value)
	}
	if after := mapsOf(t, trap.PID()); after != before {
		t.Errorf("mappings before:\n%safter:\n%s", before, after)
	}
}

func TestTrapLeavesSIGTRAPAlone(t *testing.T) {
	tracer, ctx := newTracer(t)
	trap := seedTrap(t, tracer, ctx)
	var b Batch
	ignore := make([]byte, 32)
	ignore[0] = 1 // SIG_IGN
	b.Call(unix.SYS_RT_SIGACTION, int(unix.SIGTRAP), b.Bytes(ignore), 0, 8)
	last := b.Call(unix.SYS_GETPID)
	if err := trap.Run(ctx, &b); err != nil || last.value != int64(trap.PID()) {
		t.Fatal(err, last.value)
	}
	if ign, err := statusField(trap.PID(), "SigIgn"); err != nil || ign&(1<<(unix.SIGTRAP-1)) == 0 { // and what the tests were started with
		t.Errorf("ignored signals %#x, %v", ign, err)
	}
}

func TestTrapCloneAndRemove(t *testing.T) {
	tracer, ctx := newTracer(t)
	trap := seedTrap(t, tracer, ctx)
	want := freeIDs(t)
	child, err := trap.CloneProcess(ctx, want, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer child.Close()
	thread, err := child.CloneThread(ctx, want+1)
	if err != nil {
		t.Fatal(err)
	}
	defer thread.Close()
	if child.PID() != want || thread.PID() != want || thread.TID() != want+1 {
		t.Errorf("child %d, thread %d of %d", child.PID(), thread.TID(), thread.PID())
	}
	for _, c := range []*Trap{trap, child, thread} {
		var b Batch
		tid := b.Call(unix.SYS_GETTID)
		ppid := b.Call(unix.SYS_GETPPID)
		if err := c.Run(ctx, &b); err != nil || int(tid.value) != c.TID() {
			t.Errorf("task %d says %d, child of %d, %v", c.TID(), tid.value, ppid.value, err)
		}
	}
	if _, err := trap.CloneProcess(ctx, want, 0); !errors.Is(err, unix.EEXIST) {
		t.Errorf("the same id again: %v", err)
	}
	at := Addr(0x7000_0000_0000)
	if err := child.Relocate(ctx, at); err != nil {
		t.Fatal(err)
	}
	var b Batch
	tid := b.Call(unix.SYS_GETTID)
	if err := thread.Run(ctx, &b); err != nil || int(tid.value) != want+1 {
		t.Errorf("after the move: %v", err)
	}
	if err := child.Remove(ctx); err != nil {
		t.Fatal(err)
	}
	maps := mapsOf(t, child.PID())
	if n := strings.Count(maps, "\n"); n > 7 || strings.Contains(maps, "700000000000") {
		t.Errorf("left after the removal:\n%s", maps)
	}
	unix.Kill(want, unix.SIGKILL)
}

// freeIDs returns an id that, like the one after it, no task has.
func freeIDs(t *testing.T) int {
	t.Helper()
	for id := 30_000; id > 20_000; id -= 2 {
		if unix.Kill(id, 0) == unix.ESRCH && unix.Kill(id+1, 0) == unix.ESRCH {
			return id
		}
	}
	t.Fatal("no free ids")
	return 0
}

func TestTrapDeath(t *testing.T) {
	tracer, ctx := newTracer(t)
	trap := seedTrap(t, tracer, ctx)
	var b Batch
	b.Call(unix.SYS_EXIT_GROUP, 3)
	if err := trap.Run(ctx, &b); !errors.Is(err, ErrGone) {
		t.Errorf("%v", err)
	}
	if err := trap.Run(ctx, &b); !errors.Is(err, ErrGone) {
		t.Errorf("again: %v", err)
	}
}

func TestTrapCancelledBatch(t *testing.T) {
	tracer, ctx := newTracer(t)
	trap := seedTrap(t, tracer, ctx)
	var b Batch
	ts := make([]byte, 16)
	ts[11] = 10 // 167 ms
	b.Call(unix.SYS_NANOSLEEP, b.Bytes(ts), 0)
	short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	if err := trap.Run(short, &b); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("%v", err)
	}
	var c Batch
	pid := c.Call(unix.SYS_GETPID)
	if err := trap.Run(ctx, &c); err != nil || int(pid.value) != trap.PID() {
		t.Errorf("the next batch: %v", err)
	}
}

func TestTrapExec(t *testing.T) {
	tracer, ctx := newTracer(t)
	trap := seedTrap(t, tracer, ctx)
	exe := func(path string) *Batch {
		var b Batch
		argv := b.Buffer(24)
		argv.SetPointer(0, b.String("sleep"), 0)
		argv.SetPointer(8, b.String("100"), 0)
		b.Call(unix.SYS_EXECVE, b.String(path), argv, 0)
		return &b
	}
	if err := trap.Exec(ctx, exe("/nonexistent")); !errors.Is(err, unix.ENOENT) {
		t.Fatalf("%v", err)
	}
	if err := trap.Exec(ctx, exe("/bin/sleep")); err != nil {
		t.Fatal(err)
	}
	if link, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", trap.PID())); err != nil || !strings.HasSuffix(link, "sleep") {
		t.Errorf("%s, %v", link, err)
	}
	if err := tracer.Detach(ctx, trap.TID(), 0); err != nil {
		t.Error(err)
	}
}

// pushNumbered pushes files with known contents to the numbers given and checks what is there afterwards.
func pushNumbered(t *testing.T, ctx context.Context, c Caller, numbers []int) {
	t.Helper()
	var files []PushFile
	for i, n := range numbers {
		fd, err := unix.MemfdCreate(fmt.Sprintf("file-%d", n), unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "memfd")
		defer f.Close()
		files = append(files, PushFile{File: f, FD: n, CloseOnExec: i%2 == 0})
	}
	if err := c.Push(ctx, files); err != nil {
		t.Fatal(err)
	}
	for i, n := range numbers {
		link, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", c.PID(), n))
		if err != nil || link != fmt.Sprintf("/memfd:file-%d (deleted)", n) {
			t.Fatalf("descriptor %d is %s, %v", n, link, err)
		}
		info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", c.PID(), n))
		if cloexec := strings.Contains(string(info), "flags:\t02"); err != nil || cloexec != (i%2 == 0) {
			t.Fatalf("descriptor %d: %s, %v", n, info, err)
		}
	}
}

func TestTrapPush(t *testing.T) {
	tracer, ctx := newTracer(t)
	trap := seedTrap(t, tracer, ctx)
	// Reversed and rotated low numbers land on each other; the rest takes three messages.
	numbers := []int{9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 11, 12, 13, 10}
	for n := 650; n >= 14; n-- {
		numbers = append(numbers, n)
	}
	pushNumbered(t, ctx, trap, numbers)
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", trap.PID()))
	if err != nil || len(entries) != len(numbers) {
		t.Errorf("%d descriptors, want %d, %v", len(entries), len(numbers), err)
	}
	f, err := trap.Pull(ctx, 5)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if link, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd())); link != "/memfd:file-5 (deleted)" {
		t.Errorf("pulled %s", link)
	}
}

// TestInitReaps runs the pid 1 of a workload: it reaps, reports, and lends itself to a stub.
func TestInitReaps(t *testing.T) {
	tracer, ctx := newTracer(t)
	cmd := memfdCommand(t, arch.InitELF())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd.ExtraFiles = []*os.File{w}
	pid := startCmd(t, cmd)
	w.Close()
	if err := tracer.Seize(ctx, pid, 0); err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		if _, err := tracer.Stop(ctx, pid); err != nil {
			t.Fatal(err)
		}
		trap, err := InstallStub(ctx, tracer, pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		child, err := trap.CloneProcess(ctx, 10+round, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := trap.Release(ctx); err != nil {
			t.Fatal(err)
		}
		if err := tracer.Detach(ctx, pid, 0); err != nil {
			t.Fatal(err)
		}
		var b Batch
		b.Call(unix.SYS_EXIT_GROUP, 7)
		if err := child.Run(ctx, &b); !errors.Is(err, ErrGone) {
			t.Fatal(err)
		}
		r.SetReadDeadline(time.Now().Add(5 * time.Second))
		record := make([]byte, 8)
		if _, err := r.Read(record); err != nil {
			t.Fatal(err)
		}
		if want := []byte{byte(10 + round), 0, 0, 0, 0, 7, 0, 0}; !bytes.Equal(record, want) {
			t.Errorf("record %v, want %v", record, want)
		}
		if err := errors.Join(child.Close(), trap.Close(), tracer.Seize(ctx, pid, 0)); err != nil {
			t.Fatal(err)
		}
	}
}

func BenchmarkTrap(b *testing.B) {
	for _, n := range []int{1, 256} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			tracer, ctx := newTracer(b)
			trap := seedTrap(b, tracer, ctx)
			err := tracer.OnThread(ctx, func(ctx context.Context) error {
				for b.Loop() {
					var batch Batch
					for range n {
						batch.Call(unix.SYS_GETPPID)
					}
					if err := trap.Run(ctx, &batch); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				b.Fatal(err)
			}
		})
	}
}
