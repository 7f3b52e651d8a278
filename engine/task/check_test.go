//go:build linux

package task

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"migrate/engine"
	"migrate/engine/images"
	"migrate/engine/procfs"
	"migrate/engine/remote"
)

// obstacles checks a target and its children.
func (g *target) obstacles() []string {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	tree := []*engine.Process{{PID: g.pid()}}
	kids, err := procfs.Host.Children(g.pid(), g.pid())
	if err != nil {
		g.t.Fatal(err)
	}
	for _, k := range kids {
		tree = append(tree, &engine.Process{PID: k})
	}
	found, err := CheckTree(procfs.Host, tree)
	if err != nil {
		g.t.Fatal(err)
	}
	for _, p := range tree {
		more, err := Check(ctx, procfs.Host, p)
		if err != nil {
			g.t.Fatal(err)
		}
		found = append(found, more...)
	}
	for _, k := range kids {
		g.t.Cleanup(func() { _ = unix.Kill(k, unix.SIGKILL) })
	}
	var out []string
	for _, o := range found {
		out = append(out, o.String())
	}
	return out
}

func TestCheckRefusesByName(t *testing.T) {
	for what, want := range map[string]string{
		"nothing":   "",
		"files":     "",
		"vm":        "",
		"namespace": "another pid namespace",
		"thread":    "",
		"uts":       "", // carried (package ns)
	} {
		t.Run(what, func(t *testing.T) {
			g := start(t, "refused")
			g.say(what)
			if g.line() != "ready" {
				t.Fatal("not ready")
			}
			got := g.obstacles()
			if want == "" && len(got) != 0 || want != "" && (len(got) == 0 || !strings.Contains(strings.Join(got, "\n"), want)) {
				t.Errorf("%q", got)
			}
			t.Log(got)
		})
	}
}

// waitState waits for a state that nothing announces, so it polls.
func waitState(t *testing.T, pid int, state byte) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if s, err := procfs.Host.Stat(pid); err == nil && s.State == state {
			return
		}
	}
	t.Fatalf("pid %d is not in state %c", pid, state)
}

func TestCheckNamesTheTracer(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	g := start(t, "refused")
	g.say("nothing")
	g.line()
	g.stop(ctx)
	if got := strings.Join(g.obstacles(), "\n"); !strings.Contains(got, "(traced)") {
		t.Error(got)
	}
}

// child makes a traced child of a target that is being lent.
func child(ctx context.Context, t *testing.T, g *target) *remote.Trap {
	t.Helper()
	c, err := g.traps[0].CloneProcess(ctx, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Kill(c.PID(), unix.SIGKILL); _ = c.Close() })
	return c
}

func TestZombies(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	g := start(t, "refused")
	g.say("nothing")
	g.line()
	g.stop(ctx)
	g.lend(ctx)
	for name, script := range map[string]string{"exit": "exit 42", "signal": "kill -TERM $$", "kill": "kill -KILL $$"} {
		cmd := exec.Command("sh", "-c", script)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		waitState(t, cmd.Process.Pid, 'Z')
		img, err := DumpZombie(procfs.Host, &engine.Process{PID: cmd.Process.Pid, VPID: cmd.Process.Pid})
		if err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if !img.Zombie() {
			t.Errorf("%s: no zombie", name)
		}
		c := child(ctx, t, g)
		if err := RestoreZombie(ctx, g.tracer, c, img); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		waitState(t, c.PID(), 'Z')
		got, err := procfs.Host.Stat(c.PID())
		if err != nil || uint32(got.ExitCode) != img.Leader().Core.Tc.GetExitCode() || got.Comm != "sh" {
			t.Errorf("%s: status 0x%x of %q, want 0x%x, %v", name, got.ExitCode, got.Comm, img.Leader().Core.Tc.GetExitCode(), err)
		}
	}
}

// A stopped process is dumped as stopped, and one that is restored so stops before it runs anything.
func TestStopped(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	g := start(t, "state")
	g.say("plain")
	g.line()
	if err := unix.Kill(g.pid(), unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	waitState(t, g.pid(), 'T')
	g.stop(ctx)
	g.borrow(ctx)
	p, _ := g.dump(ctx)
	g.giveBack(ctx)
	waitState(t, g.pid(), 'T')
	if p.Leader().Core.Tc.GetTaskState() != images.TaskStopped || p.Leader().Core.Tc.GetStopSigno() != uint32(unix.SIGSTOP) {
		t.Errorf("state %d by signal %d", p.Leader().Core.Tc.GetTaskState(), p.Leader().Core.Tc.GetStopSigno())
	}

	h := start(t, "state")
	h.say("plain")
	h.line()
	h.stop(ctx)
	if err := RestoreStopped(ctx, h.tracer, h.proc, p, nil); err != nil {
		t.Fatal(err)
	}
	for _, s := range h.states {
		if err := h.tracer.Detach(ctx, s.Thread.TID, 0); err != nil {
			t.Fatal(err)
		}
	}
	waitState(t, h.pid(), 'T')
	if err := unix.Kill(h.pid(), unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	waitState(t, h.pid(), 'S')
}

func TestKindsAreNamedOnce(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range Kinds() {
		if k.Name == "" || k.About == "" || seen[k.Name] {
			t.Errorf("%+v: unnamed, undescribed or named twice", k)
		}
		seen[k.Name] = true
	}
}

func TestSpeculationOf(t *testing.T) {
	for flags, want := range map[uint64]string{
		0: "[]", 1: "[]", 1 << 3: "[which:0 control:4]", 1<<3 | 1<<4: "[which:0 control:8]", 1 << 7: "[which:0 control:16]", 1 << 5: "[which:1 control:4]", 1<<5 | 1<<6 | 1<<3: "[which:0 control:4 which:1 control:8]",
	} {
		var got []string
		for _, x := range speculationOf(flags) {
			got = append(got, fmt.Sprintf("which:%d control:%d", x.GetWhich(), x.GetControl()))
		}
		if s := "[" + strings.Join(got, " ") + "]"; s != want {
			t.Errorf("0x%x: %s, want %s", flags, s, want)
		}
	}
}

// Of a process that has ended no namespace can be named but that of its ids; that says nothing of its children.
func TestCheckOfWhatIsEnding(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	c, err := newChecker(procfs.Host, &engine.Process{PID: pid, Threads: []engine.Thread{{TID: pid}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	waitState(t, pid, 'Z')
	if err := checkNamespaces(c); !errors.Is(err, procfs.ErrGone) || len(c.found) != 0 {
		t.Errorf("%v, found %v", err, c.found)
	}
}
