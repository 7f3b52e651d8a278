//go:build linux

package files

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine"
	"migrate/engine/images"
	"migrate/engine/images/imagespb"
	"migrate/engine/kernel/kerneltest"
	"migrate/engine/mem"
	"migrate/engine/ptrace"
	"migrate/engine/remote"
)

// A scenario is a program in two halves: setup opens descriptors from number firstFD on, verify finds them at the same numbers
// in another process after the move. Both run in processes of their own, which are this test binary.
type scenario struct {
	setup  func(t *half)
	verify func(t *half)
}

// firstFD is where the descriptors of a scenario begin; those below are of the Go runtime and are not moved.
const firstFD = 100

// half is what runs in a process of its own.
type half struct {
	dir  string // of the test, shared by both
	errs []string
}

func (h *half) errorf(format string, args ...any) {
	h.errs = append(h.errs, fmt.Sprintf(format, args...))
}

func (h *half) must(err error) {
	// Not t.Fatal: this is a process of its own, and the test reads what it prints.
	if err != nil {
		fmt.Printf("FAIL %v\n", err)
		os.Exit(1)
	}
}

// at moves a descriptor to a number.
func (h *half) at(fd, number int, err error) {
	h.must(err)
	h.must(unix.Dup3(fd, number, 0))
	h.must(unix.Close(fd))
}

const halfEnv = "MIGRATE_FILES_TEST_HALF"

func TestMain(m *testing.M) {
	if spec := os.Getenv(halfEnv); spec != "" {
		runHalf(spec)
	}
	os.Exit(m.Run())
}

// runHalf is the whole life of a process of a scenario: it says "ready" and waits for the end of its input at the point at
// which the test acts upon it.
func runHalf(spec string) {
	part := strings.SplitN(spec, " ", 3)
	s, h := scenarios[part[1]], &half{dir: part[2]}
	h.must(unix.CloseRange(firstFD, ^uint(0)>>1, 0)) // what the test itself inherited
	if part[0] != "verify" {
		s.setup(h)
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	if part[0] != "setup" {
		s.verify(h)
	}
	for _, e := range h.errs {
		fmt.Println("FAIL", e)
	}
	fmt.Println("done")
	os.Exit(0)
}

// program is a process of a scenario.
type program struct {
	vpid  int // what the checkpoint calls it
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   *bufio.Scanner
}

func start(t testing.TB, which, name, dir string, attr *syscall.SysProcAttr, inherited ...*os.File) *program {
	t.Helper()
	p := &program{vpid: 4711, cmd: exec.Command("/proc/self/exe")}
	p.cmd.ExtraFiles = inherited
	p.cmd.Env = append(os.Environ(), halfEnv+"="+which+" "+name+" "+dir)
	p.cmd.Stderr, p.cmd.SysProcAttr = os.Stderr, attr
	stdin, err := p.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.stdin, p.out = stdin, bufio.NewScanner(stdout)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.kill() })
	if !p.out.Scan() || p.out.Text() != "ready" {
		t.Fatalf("%s of %s: %s", which, name, p.out.Text())
	}
	return p
}

func (p *program) kill() {
	if p.cmd.ProcessState == nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	}
}

func (p *program) process() *engine.Process {
	pid := p.cmd.Process.Pid
	return &engine.Process{PID: pid, VPID: p.vpid, VPGID: p.vpid, Threads: []engine.Thread{{TID: pid, VTID: p.vpid}}}
}

// finish lets it run to its end and takes its verdict.
func (p *program) finish(t testing.TB) {
	t.Helper()
	_ = p.stdin.Close()
	// What did not arrive would be waited for without end.
	bound := time.AfterFunc(20*time.Second, func() { _ = p.cmd.Process.Kill() })
	defer bound.Stop()
	for p.out.Scan() {
		if text := p.out.Text(); text == "done" {
			_ = p.cmd.Wait()
			return
		} else {
			t.Error(text)
		}
	}
	t.Error("the program ended before it was done")
}

// stop stops all threads, by a signal: descriptors hold still then.
func (p *program) stop(t testing.TB) {
	t.Helper()
	if err := p.cmd.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, p.cmd.Process.Pid, &info, unix.WSTOPPED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
}

// prune takes the runtime's descriptors out of a checkpoint.
func prune(cp *images.Checkpoint) {
	for _, p := range cp.Processes {
		kept := p.FDs[:0]
		for _, f := range p.FDs {
			if f.GetFd() >= firstFD {
				kept = append(kept, f)
			}
		}
		p.FDs = kept
	}
}

// runtimeFiles makes the pipes between test and program files of the agent, since their other end is outside.
func runtimeFiles(t testing.TB, p *program) map[FileID]string {
	t.Helper()
	out := map[FileID]string{}
	for _, fd := range []int{0, 1, 2} {
		var st unix.Stat_t
		if err := unix.Stat(fmt.Sprintf("/proc/%d/fd/%d", p.cmd.Process.Pid, fd), &st); err != nil {
			t.Fatal(err)
		}
		out[FileID{st.Dev, st.Ino}] = fmt.Sprintf("fd %d", fd)
	}
	return out
}

// dumped stops a program and dumps it.
func dumped(t testing.TB, ctx context.Context, p *program) (*Dumper, *images.Checkpoint) {
	t.Helper()
	objects := mem.NewObjects()
	t.Cleanup(func() {
		if err := objects.Close(); err != nil {
			t.Error(err)
		}
	})
	d := NewDumper(Options{External: runtimeFiles(t, p), Objects: objects})
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	procs := []*engine.Process{p.process()}
	obstacles, err := d.Check(ctx, procs)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range obstacles {
		t.Errorf("obstacle: %v", o)
	}
	p.stop(t)
	if err := d.Nameless(ctx, procs, true); err != nil {
		t.Fatal(err)
	}
	cp := &images.Checkpoint{Header: &imagespb.Header{}, Processes: []*images.Process{{PID: uint32(p.vpid), IDs: tableOf(p.vpid)}}}
	copyObjects(t, ctx, objects, cp.Header)
	if err := d.Dump(ctx, procs, cp); err != nil {
		t.Fatal(err)
	}
	for i, e := range cp.Files { // as it travels
		b, err := proto.Marshal(e)
		if err != nil {
			t.Fatalf("%v: %v", e, err)
		}
		cp.Files[i] = &fdinfo.FileEntry{}
		if err := proto.Unmarshal(b, cp.Files[i]); err != nil {
			t.Fatal(err)
		}
	}
	prune(cp)
	return d, cp
}

// move runs a scenario: dump, end of the source, restore.
func move(t *testing.T, name string, attr func() *syscall.SysProcAttr, env func(*program) Env, between func()) {
	kerneltest.Root(t)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	if attr == nil {
		attr = func() *syscall.SysProcAttr { return nil }
	}
	dir := t.TempDir()
	src := start(t, "setup", name, dir, attr())
	e := Env{}
	if env != nil {
		e = env(src)
	}
	d, cp := dumped(t, ctx, src)
	src.kill()
	if err := d.Drop(); err != nil {
		t.Fatal(err)
	}
	dst := start(t, "verify", name, dir, nil)
	e.PID = func(int) int { return dst.cmd.Process.Pid }
	r := install(t, ctx, dst, cp, e)
	if between != nil {
		between()
	}
	if name == "tcp6" { // as if the program that restored it had died
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		dst.stop(t)
		if r, err := NewRestorer(cp, e); err != nil {
			t.Fatal(err)
		} else if err := errors.Join(r.Adopt(ctx, []*engine.Process{dst.process()}), r.Release(ctx), r.Close()); err != nil {
			t.Fatal(err)
		} else if err := dst.cmd.Process.Signal(unix.SIGCONT); err != nil {
			t.Fatal(err)
		}
	} else if err := errors.Join(r.Release(ctx), r.Close()); err != nil {
		t.Fatal(err)
	}
	dst.finish(t)
}

// install gives a program the descriptors of a checkpoint, through a real stub in its first thread.
func install(t testing.TB, ctx context.Context, p *program, cp *images.Checkpoint, env Env) *Restorer {
	t.Helper()
	env.Object = openObject
	r, err := NewRestorer(cp, env)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := r.Open(ctx); err != nil {
		t.Fatal(err)
	}
	tracer := ptrace.New()
	defer tracer.Close()
	trap, err := remote.InstallStub(ctx, tracer, p.cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	proc := p.process()
	proc.Caller = trap
	if err := r.Install(ctx, proc); err != nil {
		t.Fatal(err)
	}
	if err := r.Finish(ctx); err != nil {
		t.Fatal(err)
	}
	if err := trap.Release(ctx); err != nil {
		t.Fatal(err)
	}
	if err := trap.Close(); err != nil {
		t.Fatal(err)
	}
	if err := tracer.Detach(ctx, p.cmd.Process.Pid, 0); err != nil {
		t.Fatal(err)
	}
	return r
}

// The next functions are for both halves.

func (h *half) expectRead(fd int, want string) {
	buf := make([]byte, 1<<20)
	n, err := unix.Read(fd, buf)
	if err != nil || string(buf[:max(n, 0)]) != want {
		h.errorf("descriptor %d: read %.60q (%v), want %.60q", fd, bytes.TrimSpace(buf[:max(n, 0)]), err, want)
	}
}

func (h *half) expectErr(what string, err, want error) {
	if err != want {
		h.errorf("%s: %v, want %v", what, err, want)
	}
}

func (h *half) expectFlags(fd, want, mask int) {
	got, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil || got&mask != want {
		h.errorf("descriptor %d: flags %#o (%v), want %#o of %#o", fd, got, err, want, mask)
	}
}

func (h *half) expectCloexec(fd int, want bool) {
	got, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil || got&unix.FD_CLOEXEC != 0 != want {
		h.errorf("descriptor %d: close-on-exec is %v (%v)", fd, got, err)
	}
}

// tableOf says that the descriptor table of a process is its own.
func tableOf(vpid int) *criu_core.TaskKobjIdsEntry {
	id := proto.Uint32(uint32(vpid))
	return &criu_core.TaskKobjIdsEntry{VmId: id, FilesId: id, FsId: id, SighandId: id}
}
