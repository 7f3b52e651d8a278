//go:build linux

package task

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/timer"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"migrate/engine"
	"migrate/engine/images"
	"migrate/engine/images/imagespb"
	"migrate/engine/procfs"
	"migrate/engine/ptrace"
	"migrate/engine/remote"
)

var buildTarget = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "task-test")
	if err != nil {
		return "", err
	}
	out, err := exec.Command("gcc", "-O1", "-pthread", "-o", filepath.Join(dir, "target"), "testdata/target.c").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("gcc: %w\n%s", err, out)
	}
	return filepath.Join(dir, "target"), nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := buildTarget(); err == nil {
		_ = os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

// target is a running target program with a fixed address space.
type target struct {
	t      *testing.T
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Reader
	tracer *ptrace.Tracer
	memory *ptrace.Memory
	proc   *engine.Process
	states []ThreadState
	traps  []*remote.Trap    // of an instance that is being built
	loans  []*remote.Session // of a living one
}

func start(t *testing.T, args ...string) *target {
	t.Helper()
	return startUnder(t, nil, args...)
}

// startUnder starts the target by a command that executes it in the end.
func startUnder(t *testing.T, under []string, args ...string) *target {
	t.Helper()
	needRoot(t)
	path, err := buildTarget()
	if err != nil {
		t.Fatal(err)
	}
	// Without address randomisation two instances have the same addresses.
	words := slices.Concat(under, []string{"setarch", "-R", path}, args)
	cmd := exec.Command(words[0], words[1:]...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return &target{t: t, cmd: cmd, in: in, out: bufio.NewReader(out)}
}

func (g *target) say(what string) {
	g.t.Helper()
	if _, err := io.WriteString(g.in, what+"\n"); err != nil {
		g.t.Fatal(err)
	}
}

func (g *target) line() string {
	g.t.Helper()
	s, err := g.out.ReadString('\n')
	if err != nil {
		g.t.Fatalf("the target ended: %v", err)
	}
	return strings.TrimSpace(s)
}

func (g *target) pid() int { return g.cmd.Process.Pid }

// stop stops all threads and takes their state.
func (g *target) stop(ctx context.Context) {
	g.t.Helper()
	g.tracer = ptrace.New()
	g.t.Cleanup(func() { _ = g.tracer.Close() })
	stops, err := g.tracer.SeizeAll(ctx, g.pid(), 0)
	if err != nil {
		g.t.Fatal(err)
	}
	g.proc = &engine.Process{PID: g.pid(), VPID: g.pid()}
	for _, s := range stops {
		th := engine.Thread{TID: s.TID, VTID: s.TID}
		g.proc.Threads = append(g.proc.Threads, th)
		st, err := ReadThreadState(ctx, g.tracer, th, s)
		if err != nil {
			g.t.Fatal(err)
		}
		g.states = append(g.states, st)
	}
	if g.memory, err = ptrace.OpenMemory(g.pid()); err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { _ = g.memory.Close() })
}

// borrow opens a session in each thread, as a dump does.
func (g *target) borrow(ctx context.Context) {
	g.t.Helper()
	for i := range g.states {
		s, err := remote.Open(ctx, g.tracer, g.states[i].Thread.TID, remote.Options{})
		if err != nil {
			g.t.Fatal(err)
		}
		g.loans = append(g.loans, s)
		g.states[i].Caller = s
	}
}

// lend puts a stub into each thread, as in a process that is being built.
func (g *target) lend(ctx context.Context) {
	g.t.Helper()
	for i := range g.states {
		trap, err := remote.InstallStub(ctx, g.tracer, g.states[i].Thread.TID, 0)
		if err != nil {
			g.t.Fatal(err)
		}
		g.traps = append(g.traps, trap)
		g.states[i].Caller = trap
	}
}

// giveBack ends the sessions and lets the target run.
func (g *target) giveBack(ctx context.Context) {
	g.t.Helper()
	for _, s := range g.loans {
		if err := s.Close(); err != nil {
			g.t.Fatal(err)
		}
	}
	for _, s := range g.states {
		if err := g.tracer.Detach(ctx, s.Thread.TID, 0); err != nil {
			g.t.Fatal(err)
		}
	}
}

func (g *target) source(clocks *imagespb.Clocks) *Source {
	return &Source{FS: procfs.Host, Tracer: g.tracer, Memory: g.memory, Proc: g.proc, Tree: []*engine.Process{g.proc}, Clocks: clocks}
}

func (g *target) dump(ctx context.Context) (*images.Process, *imagespb.Clocks) {
	g.t.Helper()
	clocks, err := Clocks(procfs.Host, g.pid())
	if err != nil {
		g.t.Fatal(err)
	}
	p, err := DumpProcess(ctx, g.source(clocks), g.states)
	if err != nil {
		g.t.Fatal(err)
	}
	return p, clocks
}

// withoutIDs replaces what differs between two instances of a program: ids, and registers, which are not part of
// RestoreThread.
func withoutIDs(p *images.Process, ids map[uint32]uint32) *images.Process {
	p.PID, p.Extra.Pid = ids[p.PID], ids[p.Extra.Pid]
	for _, t := range p.Threads {
		t.TID = ids[t.TID]
		e := t.Extra
		e.Tid, e.Regs, e.Xstate, e.Restart, e.SawSyscall, e.SyscallNr, e.Xfeatures = t.TID, nil, nil, nil, false, 0, 0
		t.Core.ThreadInfo = nil
		t.Core.ThreadCore.BlkSigset = nil
		t.Core.ThreadCore.RseqEntry.RseqCsPointer = nil
		if t.Core.Tc != nil {
			t.Core.Tc.BlkSigset = nil
			for _, x := range t.Core.Tc.Timers.Posix {
				if x.NotifyThreadId != nil {
					x.NotifyThreadId = proto.Int32(int32(ids[uint32(x.GetNotifyThreadId())]))
				}
				x.Vsec, x.Vnsec = nil, nil
			}
			for _, x := range []*timer.ItimerEntry{t.Core.Tc.Timers.Real, t.Core.Tc.Timers.Virt, t.Core.Tc.Timers.Prof} {
				x.Vsec, x.Vusec = nil, nil
			}
		}
	}
	return p
}

// clone copies the parts of a process that withoutIDs changes.
func clone(p *images.Process) *images.Process {
	c := *p
	c.Extra = proto.CloneOf(p.Extra)
	c.Threads = nil
	for _, t := range p.Threads {
		c.Threads = append(c.Threads, &images.Thread{TID: t.TID, Core: proto.CloneOf(t.Core), Extra: proto.CloneOf(t.Extra)})
	}
	return &c
}

func idMap(a, b *target) map[uint32]uint32 {
	m := map[uint32]uint32{}
	for i := range a.states {
		m[uint32(b.states[i].Thread.TID)] = uint32(a.states[i].Thread.TID)
		m[uint32(a.states[i].Thread.TID)] = uint32(a.states[i].Thread.TID)
	}
	return m
}

// TestRestoreEverything gives all that one instance has to another that has nothing, and looks at that one again.
func TestRestoreEverything(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Second)
	defer cancel()
	a, b := start(t, "state"), start(t, "state")
	a.say("set")
	b.say("plain")
	if a.line() != "ready" || b.line() != "ready" {
		t.Fatal("a target is not ready")
	}
	a.stop(ctx)
	begin := time.Now()
	a.borrow(ctx)
	t.Logf("borrowing %d threads: %v", len(a.states), time.Since(begin))
	begin = time.Now()
	want, clocks := a.dump(ctx)
	t.Logf("dump of %d threads: %v", len(a.states), time.Since(begin))
	asked := a.source(clocks)
	if asked.RestartBlocks, _ = OpenThreadReader(); asked.RestartBlocks == nil {
		t.Fatal("the kernel cannot be asked")
	}
	defer func() { _ = asked.RestartBlocks.Close() }()
	states := slices.Clone(a.states)
	states[1].Caller = nil
	begin = time.Now()
	again, err := DumpProcess(ctx, asked, states)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("dump with the kernel's help: %v", time.Since(begin))
	same := map[uint32]uint32{want.PID: want.PID, want.Threads[1].TID: want.Threads[1].TID}
	for i, th := range again.Threads { // registers are looked at elsewhere
		th.Core.ThreadCore.BlkSigset = want.Threads[i].Core.ThreadCore.BlkSigset
	}
	if d := cmp.Diff(withoutIDs(clone(want), same), withoutIDs(again, same), protocmp.Transform()); d != "" {
		t.Errorf("(-by calls +by the kernel)\n%s", d)
	}
	a.giveBack(ctx)
	checkTarget(t, want)

	b.stop(ctx)
	b.lend(ctx)
	// The second instance has other ids, and only here: a timer's target among them.
	toB := map[uint32]uint32{}
	for i := range a.states {
		toB[uint32(a.states[i].Thread.TID)] = uint32(b.states[i].Thread.TID)
	}
	for _, x := range want.Leader().Core.Tc.Timers.Posix {
		if x.NotifyThreadId != nil {
			x.NotifyThreadId = proto.Int32(int32(toB[uint32(x.GetNotifyThreadId())]))
		}
	}
	for _, th := range want.Threads { // b's C library has registered the same area, and a second time is EBUSY
		th.Core.ThreadCore.RseqEntry.RseqAbiPointer = proto.Uint64(0)
	}
	tgt := &Target{FS: procfs.Host, Tracer: b.tracer, Memory: b.memory, Proc: b.proc, Image: want, Header: &imagespb.Header{Clocks: clocks}}
	begin = time.Now()
	for i := len(b.traps) - 1; i >= 0; i-- {
		if err := RestoreThread(ctx, tgt, b.traps[i], want.Threads[i]); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("restore: %v", time.Since(begin))
	for i := range b.states { // a skeleton's threads are always stopped
		s, err := ReadThreadState(ctx, b.tracer, b.states[i].Thread, ptrace.Stop{})
		if err != nil {
			t.Fatal(err)
		}
		s.Caller = b.states[i].Caller
		b.states[i] = s
	}
	got, _ := b.dump(ctx)
	for i, th := range got.Threads {
		want.Threads[i].Core.ThreadCore.RseqEntry.RseqAbiPointer = th.Core.ThreadCore.RseqEntry.RseqAbiPointer
	}
	checkTimes(t, want.Leader().Core.Tc.Timers, got.Leader().Core.Tc.Timers)
	ids := idMap(a, b)
	wantFS := want.FS
	want.FS, got.FS = nil, nil
	if d := cmp.Diff(withoutIDs(want, ids), withoutIDs(got, ids), protocmp.Transform()); d != "" {
		t.Errorf("(-first instance +second instance)\n%s", d)
	}
	if s, err := procfs.Host.Status(b.pid()); err != nil || s.Umask != wantFS.GetUmask() {
		t.Errorf("umask %o, %v", s.Umask, err)
	}
}

// checkTarget compares a few things of a dump with what target.c has set, lest both halves be wrong alike.
func checkTarget(t *testing.T, p *images.Process) {
	t.Helper()
	lead := p.Leader().Core
	type row struct {
		what      string
		got, want any
	}
	posix := lead.Tc.Timers.Posix
	var timerIDs []uint32
	for _, x := range posix {
		timerIDs = append(timerIDs, x.GetItId())
	}
	for _, r := range []row{
		{"threads", len(p.Threads), 2}, {"name", lead.Tc.GetComm(), "renamed"}, {"second name", p.Threads[1].Core.ThreadCore.GetComm(), "second (one)"},
		{"action of SIGUSR1", lead.Tc.Sigactions[unix.SIGUSR1-2].GetMask(), uint64(1 << (unix.SIGTERM - 1))},
		{"action of SIGUSR2", lead.Tc.Sigactions[unix.SIGUSR2-2].GetSigaction(), uint64(1)},
		{"private signals", len(lead.ThreadCore.SignalsP.Signals), 1}, {"shared signals", len(lead.Tc.SignalsS.Signals), 4},
		{"euid", lead.ThreadCore.Creds.GetEuid(), uint32(1001)}, {"fsgid", lead.ThreadCore.Creds.GetFsgid(), uint32(2)},
		{"groups", fmt.Sprint(lead.ThreadCore.Creds.Groups), "[10 20 30]"}, {"permitted", lead.ThreadCore.Creds.CapPrm[0], uint32(1<<10 | 1)},
		{"second is root", p.Threads[1].Core.ThreadCore.Creds.GetEuid(), uint32(0)}, {"no_new_privs", lead.ThreadCore.Creds.GetNoNewPrivs(), uint32(1)},
		{"death signal", lead.ThreadCore.GetPdeathSig(), uint32(unix.SIGHUP)}, {"files", lead.Tc.Rlimits.Rlimits[unix.RLIMIT_NOFILE].GetMax(), uint64(200)},
		{"nice", lead.ThreadCore.GetSchedNice(), int32(5)}, {"slack", p.Leader().Extra.GetTimerSlack(), uint64(12345)},
		{"second slack", p.Threads[1].Extra.GetTimerSlack(), uint64(777)}, {"affinity", fmt.Sprint(p.Leader().Extra.GetAffinity()), "[1]"},
		{"oom", lead.Tc.GetOomScoreAdj(), int32(500)}, {"filter", p.Extra.GetCoredumpFilter(), uint32(7)},
		{"subreaper", lead.Tc.GetChildSubreaper(), true}, {"huge pages", p.MM.GetThpDisabled(), true}, {"umask", p.FS.GetUmask(), uint32(0o27)},
		{"timers", len(posix), 3}, {"interval", posix[0].GetIsec(), uint64(7)}, {"dumpable", p.MM.GetDumpable(), int32(1)},
	} {
		if d := cmp.Diff(r.want, r.got); d != "" {
			t.Errorf("%s: (-want +got)\n%s", r.what, d)
		}
	}
	t.Logf("timers %v", timerIDs)
}

// checkTimes compares the times left, which go on running.
func checkTimes(t *testing.T, want, got *timer.TaskTimersEntry) {
	t.Helper()
	near := func(what string, w, g time.Duration) {
		if d := w - g; d < -2*time.Second || d > 2*time.Second || w == 0 {
			t.Errorf("%s: %v left instead of %v", what, g, w)
		}
	}
	for i, w := range []*timer.ItimerEntry{want.Real, want.Virt, want.Prof} {
		g := []*timer.ItimerEntry{got.Real, got.Virt, got.Prof}[i]
		near(itimerNames[i], join(w.GetVsec(), w.GetVusec(), time.Microsecond), join(g.GetVsec(), g.GetVusec(), time.Microsecond))
	}
	for i, w := range want.Posix {
		near(fmt.Sprintf("timer %d", w.GetItId()), join(w.GetVsec(), w.GetVnsec(), 1), join(got.Posix[i].GetVsec(), got.Posix[i].GetVnsec(), 1))
	}
}
