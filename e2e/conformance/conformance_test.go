//go:build linux

// Package conformance checkpoints and restores small programs that show one behaviour of the kernel each, and lets
// them check themselves from inside afterwards (e2e/workloads/c).
package conformance

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"migrate/e2e/testns"
	"migrate/engine/kernel/kerneltest"
)

func TestMain(m *testing.M) { os.Exit(testns.Main(m)) }

// timeout bounds one program's way through dump, restore and check.
const timeout = 60 * time.Second

func TestDumpAndRestore(t *testing.T) {
	each(t, func(ctx context.Context, t *testing.T, w *workload) {
		descriptors, memory := w.descriptors(t), w.memory(t)
		dir := w.dump(ctx, t)
		w.mustBeGone(t)
		w.restore(ctx, t, dir)
		w.mustHave(t, descriptors)
		w.mustHaveMemory(t, memory)
		w.check(ctx, t)
	})
}

func TestDumpLeavesRunning(t *testing.T) {
	each(t, func(ctx context.Context, t *testing.T, w *workload) {
		w.dump(ctx, t, "--leave-running")
		w.check(ctx, t)
	})
}

// each runs fn on a started instance of every program. A program NAME.peer.c beside NAME.c is its peer: it runs in the directory
// "peer" of the other's, starts first, is not moved, and checks itself too.
func each(t *testing.T, fn func(context.Context, *testing.T, *workload)) {
	kerneltest.Root(t)
	bin := build(t)
	sources, err := filepath.Glob("../workloads/c/*.c")
	if err != nil || len(sources) == 0 {
		t.Fatalf("no workloads: %v", err)
	}
	for _, src := range sources {
		name := strings.TrimSuffix(filepath.Base(src), ".c")
		if strings.HasSuffix(name, ".peer") {
			continue
		}
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), timeout)
			defer cancel()
			dir, peer := t.TempDir(), strings.TrimSuffix(src, ".c")+".peer.c"
			if _, err := os.Stat(peer); err != nil {
				fn(ctx, t, start(ctx, t, bin, dir, compile(ctx, t, src)))
				return
			}
			p := start(ctx, t, bin, filepath.Join(dir, "peer"), compile(ctx, t, peer))
			fn(ctx, t, start(ctx, t, bin, dir, compile(ctx, t, src)))
			p.check(ctx, t)
		})
	}
}

// build returns the command under test, built once for the test binary.
func build(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "migrate")
	cmd := exec.Command("go", "build", "-o", bin, "migrate/migrate")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building the command: %v\n%s", err, out)
	}
	return bin
}

func compile(ctx context.Context, t *testing.T, src string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "workload")
	cmd := exec.CommandContext(ctx, "gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread", "-o", out, src)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("gcc %s: %v\n%s", src, err, text)
	}
	return out
}

// workload is a running program in a directory of its own.
type workload struct {
	bin string // the command under test
	dir string
	pid int
	// exited is closed when the program that start has started has ended and was waited for.
	exited chan struct{}
}

func start(ctx context.Context, t *testing.T, bin, dir, program string) *workload {
	t.Helper()
	w := &workload{bin: bin, dir: dir}
	if err := os.MkdirAll(w.dir, 0o777); err != nil {
		t.Fatal(err)
	}
	openUp(t, w.dir)
	cmd := exec.CommandContext(ctx, program)
	cmd.Dir = w.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	log, err := os.OpenFile(filepath.Join(w.dir, "output"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o666)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.pid = cmd.Process.Pid
	w.exited = make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(w.exited)
	}()
	t.Cleanup(func() {
		if t.Failed() {
			result, _ := os.ReadFile(filepath.Join(w.dir, "result"))
			t.Logf("the program's result is %q; it printed:\n%s", result, w.output())
		}
		_ = unix.Kill(-w.pid, unix.SIGKILL)
		_ = unix.Kill(w.pid, unix.SIGKILL)
		<-w.exited
	})
	w.await(ctx, t, "ready")
	return w
}

// openUp lets everybody write to a directory: some programs give their credentials up.
func openUp(t *testing.T, dir string) {
	t.Helper()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	for d := dir; d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o777); err != nil {
			break // a directory above the temporary ones
		}
	}
}

// await returns when a file has appeared in the program's directory.
func (w *workload) await(ctx context.Context, t *testing.T, name string) string {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if _, err := unix.InotifyAddWatch(fd, w.dir, unix.IN_MOVED_TO); err != nil {
		t.Fatal(err)
	}
	for {
		if text, err := os.ReadFile(filepath.Join(w.dir, name)); err == nil {
			return string(text)
		}
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, 100); err != nil && !errors.Is(err, unix.EINTR) {
			t.Fatal(err)
		} else if n > 0 {
			_, _ = unix.Read(fd, make([]byte, 4096))
		}
		if ctx.Err() != nil {
			status, _ := os.ReadFile("/proc/" + strconv.Itoa(w.pid) + "/status")
			stat, _ := os.ReadFile("/proc/" + strconv.Itoa(w.pid) + "/stat")
			call, _ := os.ReadFile("/proc/" + strconv.Itoa(w.pid) + "/syscall")
			t.Fatalf("%q does not appear; the program printed:\n%s\n%s\n%s\n%s", name, w.output(), status, stat, call)
		}
		if name == "result" && unix.Kill(w.pid, 0) != nil {
			if _, err := os.Stat(filepath.Join(w.dir, name)); err != nil {
				t.Fatalf("the program ended without a result; it printed:\n%s", w.output())
			}
		}
	}
}

func (w *workload) output() []byte {
	text, _ := os.ReadFile(filepath.Join(w.dir, "output"))
	return text
}

// migrate runs the command under test.
func (w *workload) migrate(ctx context.Context, t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(ctx, w.bin, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	began := time.Now()
	if err := cmd.Run(); err != nil {
		t.Fatalf("migrate %s: %v\n%s", strings.Join(args, " "), err, out.Bytes())
	}
	t.Logf("migrate %s: %.1f ms", args[0], float64(time.Since(began).Microseconds())/1000)
}

func (w *workload) dump(ctx context.Context, t *testing.T, flags ...string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "image")
	w.migrate(ctx, t, append([]string{"dump", "--pid", strconv.Itoa(w.pid), "--dir", dir}, flags...)...)
	return dir
}

func (w *workload) restore(ctx context.Context, t *testing.T, dir string) {
	t.Helper()
	pidfile := filepath.Join(t.TempDir(), "pid")
	w.migrate(ctx, t, "restore", "--dir", dir, "--detach", "--pidfile", pidfile)
	text, err := os.ReadFile(pidfile)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(string(text)); got != strconv.Itoa(w.pid) {
		t.Fatalf("restored as pid %s, was %d", got, w.pid)
	}
}

func (w *workload) mustBeGone(t *testing.T) {
	t.Helper()
	select { // killed, and waited for
	case <-w.exited:
	case <-time.After(timeout):
	}
	if err := unix.Kill(w.pid, 0); !errors.Is(err, unix.ESRCH) {
		t.Fatalf("pid %d is still there after the dump: %v", w.pid, err)
	}
}

// check tells the program to check itself and reads what it says.
func (w *workload) check(ctx context.Context, t *testing.T) {
	t.Helper()
	if err := unix.Kill(w.pid, unix.SIGTERM); err != nil {
		t.Fatalf("%v; the program printed:\n%s", err, w.output())
	}
	if result := strings.TrimSpace(w.await(ctx, t, "result")); result != "pass" {
		t.Fatalf("%s\n%s", result, w.output())
	}
}
