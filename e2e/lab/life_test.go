package lab

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"migrate/engine/kernel/kerneltest"
)

func TestReboot(t *testing.T) {
	ctx, l := up(t)
	h := l.Host("host2")
	exec(ctx, t, h, "sh", "-c", "echo kept > /root/kept; echo lost > /run/lost; echo lost > /tmp/lost; sleep 1000 >/dev/null 2>&1 &")
	before, err := h.BootID(ctx)
	if err != nil {
		t.Fatal(err)
	}
	seen := lookAround(t, l.dir)
	if err := l.Cut(ctx, "host2"); err != nil { // a cut is the switch's, and stays
		t.Fatal(err)
	}
	waiting := h.Command(ctx, "sleep", "1000")
	if err := waiting.Start(); err != nil {
		t.Fatal(err)
	}
	if err := h.Reboot(ctx); err != nil {
		t.Fatal(err)
	}
	if err := waiting.Wait(); !errors.Is(err, ErrDown) {
		t.Errorf("a command whose host went down ended with %v", err)
	}
	after, err := h.BootID(ctx)
	if err != nil || after == before {
		t.Errorf("boot id %q before, %q after: %v", before, after, err)
	}
	if got := exec(ctx, t, h, "sh", "-c", "cat /root/kept; ls /run/lost /tmp/lost 2>/dev/null; pgrep -c sleep"); got != "kept\n1" { // the agent
		t.Errorf("after the reboot: %q", got)
	}
	s, err := l.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if r := s.Hosts[1]; r.State != HostUp || r.Agent != AgentRunning || r.UptimeS > 20 {
		t.Errorf("after the reboot: %+v", r)
	}
	left := 0
	for pid, start := range seen.processes {
		if startTime(pid) == start {
			left++
		}
	}
	if want := len(seen.processes) - 3; left != want { // pid 1, the agent, the sleep
		t.Errorf("%d of %d processes of the lab are left, want %d", left, len(seen.processes), want)
	}
	listener := listen(ctx, t, h, "tcp4", 9000)
	if err := reaches(ctx, listener, l.Host("host1"), "tcp4", long); err == nil {
		t.Error("the cut was healed by a reboot")
	}
	if err := l.Heal(ctx); err != nil {
		t.Fatal(err)
	}
	if err := reaches(ctx, listener, l.Host("host1"), "tcp4", soon); err != nil {
		t.Errorf("after the reboot: %v", err)
	}
}

func TestKill(t *testing.T) {
	ctx, l := up(t)
	h := l.Host("host3")
	listener := listen(ctx, t, l.Host("host1"), "tcp4", 9000)
	conn, err := h.Dial(ctx, "tcp4", "host1:9000")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	peer, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = peer.Close() }()
	if err := h.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	// A host that loses its power does not say goodbye to its peers.
	_ = peer.SetReadDeadline(time.Now().Add(long))
	if _, err := peer.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the peer of a killed host sees %v", err)
	}
	if _, err := h.Exec(ctx, "true"); !errors.Is(err, ErrDown) {
		t.Errorf("exec: %v", err)
	}
	if err := h.Reboot(ctx); err == nil {
		t.Error("a host that was killed for good was rebooted")
	}
	s, err := l.Status(ctx)
	if err != nil || s.Hosts[2].State != HostKilled || s.Hosts[0].State != HostUp {
		t.Errorf("%+v, %v", s, err)
	}
	if err := l.Heal(ctx); err != nil {
		t.Errorf("heal with a killed host: %v", err)
	}
	if err := l.Client().Kill(ctx); err == nil {
		t.Error("the client was killed")
	}
}

func TestHostThatEndsByItself(t *testing.T) {
	ctx, l := up(t)
	h := l.Host("host1")
	pid, err := h.PID(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(ctx, t, "host1 to be down", func() bool {
		s, err := l.Status(ctx)
		return err == nil && s.Hosts[0].State == HostDown
	})
	if err := h.Reboot(ctx); err != nil {
		t.Fatal(err)
	}
	exec(ctx, t, h, "true")
}

func TestAgents(t *testing.T) {
	ctx, l := up(t, func(o *Options) {
		o.Agent = []string{"sh", "-c", `echo "started with $A $B"; exec sleep 1000`}
		o.AgentEnv = []string{"A=1"}
	})
	h := l.Host("host2")
	state := func() AgentState {
		t.Helper()
		s, err := l.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return s.Hosts[1].Agent
	}
	if err := h.Stall(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(ctx, t, "the agent to be stopped", func() bool { return state() == AgentStalled })
	exec(ctx, t, h, "true") // the host itself is not
	if err := l.Heal(ctx, "host2"); err != nil {
		t.Fatal(err)
	}
	eventually(ctx, t, "the agent to go on", func() bool { return state() == AgentRunning })
	if err := h.StartAgent(ctx); err == nil {
		t.Error("a second agent was started")
	}
	if err := h.SignalAgent(ctx, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if s := state(); s != AgentNone {
		t.Errorf("the agent was killed and is %s", s)
	}
	if err := h.StartAgent(ctx, "B=2"); err != nil {
		t.Fatal(err)
	}
	eventually(ctx, t, "both agents' words", func() bool {
		log, err := h.AgentLog(ctx)
		return err == nil && log == "started with 1 \nstarted with 1 2\n"
	})
	for _, path := range []string{"/etc/migrate/agent.yaml", "/etc/migrate/tls/ca.pem", "/etc/migrate/tls/node.pem", "/etc/migrate/tls/node-key.pem"} {
		if got := exec(ctx, t, h, "stat", "-c", "%a", path); got != "600" {
			t.Errorf("%s has mode %s", path, got)
		}
	}
	if got := exec(ctx, t, h, "cat", "/etc/migrate/agent.yaml"); !strings.Contains(got, "name: host2\nserver: true\nbind: 10.77.0.12\n") {
		t.Errorf("the agent's configuration:\n%s", got)
	}
}

func TestShareAndProgram(t *testing.T) {
	share, disk := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(share, "file"), []byte("shared"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, l := up(t, func(o *Options) {
		o.Hosts, o.Share, o.Shared, o.Program = 1, []string{share}, []string{disk}, "/bin/echo"
	})
	h := l.Host("host1")
	if got := exec(ctx, t, h, "cat", share+"/file"); got != "shared" {
		t.Errorf("the shared file holds %q", got)
	}
	if _, err := h.Exec(ctx, "touch", share+"/new"); err == nil {
		t.Error("a shared directory can be written to")
	}
	exec(ctx, t, h, "sh", "-c", "echo written > "+disk+"/file")
	if got, err := os.ReadFile(filepath.Join(disk, "file")); err != nil || string(got) != "written\n" {
		t.Errorf("the file that the host has written holds %q, %v", got, err)
	}
	if got := exec(ctx, t, h, "migrate", "hello"); got != "hello" {
		t.Errorf("the program says %q", got)
	}
	if err := h.WriteFile(ctx, "/a/b/c", []byte("text"), 0o640); err != nil {
		t.Fatal(err)
	}
	if got := exec(ctx, t, h, "sh", "-c", "stat -c %a /a/b/c; cat /a/b/c"); got != "640\ntext" {
		t.Errorf("the file that was written: %q", got)
	}
}

func TestOneLabPerDirectory(t *testing.T) {
	ctx, l := up(t, func(o *Options) { o.Hosts = 1 })
	if _, err := Up(ctx, options(l.dir)); !errors.Is(err, ErrInUse) {
		t.Errorf("a second lab in the same directory: %v", err)
	}
	ctx2, l2 := up(t, func(o *Options) { o.Hosts, o.Detach = 1, true })
	exec(ctx2, t, l2.Host("host1"), "touch", "/file")
	if _, err := l.Host("host1").Exec(ctx, "test", "-e", "/file"); err == nil {
		t.Error("two labs share a disk")
	}
	if _, err := Up(ctx, options(l2.dir)); !errors.Is(err, ErrInUse) {
		t.Errorf("a second lab in the directory of one that stays: %v", err)
	}
	again, err := Open(ctx, l2.dir)
	if err != nil {
		t.Fatal(err)
	}
	exec(ctx, t, again.Host("host1"), "test", "-e", "/file")
	if _, err := Open(ctx, labDir(t)); !errors.Is(err, ErrNoLab) {
		t.Errorf("no lab was opened: %v", err)
	}
	foreign := t.TempDir()
	if err := os.WriteFile(filepath.Join(foreign, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Up(ctx, options(foreign)); err == nil {
		t.Error("a lab was made in a directory with other things in it")
	}
	if err := Down(ctx, foreign); err == nil {
		t.Error("a directory with other things in it was removed")
	}
	for _, n := range []int{-1, MaxHosts + 1} {
		if _, err := Up(ctx, Options{StateDir: labDir(t), Hosts: n}); err == nil {
			t.Errorf("a lab with %d hosts", n)
		}
	}
}

func TestUpThatFailsLeavesNothing(t *testing.T) {
	kerneltest.Root(t)
	dir := labDir(t)
	o := options(dir)
	o.Agent = []string{"/no/such/agent"}
	if _, err := Up(testContext(t), o); err == nil || !strings.Contains(err.Error(), "/no/such/agent") {
		t.Errorf("got %v", err)
	}
	lookAround(t, dir).mustBeGone(t)

	short, cancel := context.WithTimeout(testContext(t), 60*time.Millisecond)
	defer cancel()
	if l, err := Up(short, options(dir)); err == nil {
		t.Log("up was fast")
		if err := l.Down(testContext(t)); err != nil {
			t.Error(err)
		}
	}
	lookAround(t, dir).mustBeGone(t)
}

// TestStateOnOverlay is what happens in a container, whose root is an overlay: such a file system cannot hold the hosts' disks.
func TestStateOnOverlay(t *testing.T) {
	kerneltest.Root(t)
	cmd := osexec.CommandContext(testContext(t), os.Args[0])
	cmd.Env = append(os.Environ(), overlayVariable+"="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// liveOnOverlay runs in a mount namespace of its own.
func liveOnOverlay(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for _, name := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			return err
		}
	}
	how := "lowerdir=" + dir + "/lower,upperdir=" + dir + "/upper,workdir=" + dir + "/work"
	if err := syscall.Mount("overlay", dir+"/merged", "overlay", 0, how); err != nil {
		return err
	}
	l, err := Up(ctx, options(dir+"/merged/lab"))
	if err != nil {
		return err
	}
	h := l.Host("host1")
	_, err = h.Exec(ctx, "touch", "/root/kept")
	err = errors.Join(err, h.Reboot(ctx))
	if err == nil {
		_, err = h.Exec(ctx, "test", "-e", "/root/kept")
	}
	return errors.Join(err, l.Down(ctx), syscall.Unmount(dir+"/merged", 0))
}

// TestSwitchKilled ends the pid 1 of a whole lab that was to stay.
func TestSwitchKilled(t *testing.T) {
	kerneltest.Root(t)
	ctx, dir := testContext(t), labDir(t)
	o := options(dir)
	o.Detach = true
	l, err := Up(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	seen := lookAround(t, dir)
	pid, err := l.switchPID(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(ctx, t, "all to end", func() bool { _, err := l.Host("host1").PID(ctx); return errors.Is(err, ErrDown) })
	if s, err := l.Status(ctx); err != nil || s.Hosts[0].State != HostDown || s.Hosts[2].State != HostDown {
		t.Errorf("%+v, %v", s, err)
	}
	if err := l.Cut(ctx, "host1"); !errors.Is(err, ErrDown) {
		t.Errorf("cut: %v", err)
	}
	again, err := Up(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	exec(ctx, t, again.Host("host1"), "true")
	if err := again.Down(ctx); err != nil {
		t.Fatal(err)
	}
	seen.mustBeGone(t)
}

// TestUpKilled kills a program that brings a lab up, at random instants, and then removes what is left, every other time by
// bringing up a lab in its place.
func TestUpKilled(t *testing.T) {
	kerneltest.Root(t)
	ctx := testContext(t)
	const times, usual = 14, 250 * time.Millisecond
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for i := range times {
		dir := labDir(t)
		cmd := osexec.CommandContext(ctx, os.Args[0])
		cmd.Env = append(os.Environ(), upVariable+"="+dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		after := time.Duration(random.Int64N(int64(usual)))
		time.Sleep(after) // the instant is the point
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		seen := lookAround(t, dir)
		if i%2 == 0 {
			l, err := Up(ctx, options(dir))
			if err != nil {
				t.Fatalf("up after a kill after %v: %v", after, err)
			}
			exec(ctx, t, l.Host("host3"), "true")
		}
		if err := Down(ctx, dir); err != nil {
			t.Fatalf("down after a kill after %v: %v", after, err)
		}
		seen.mustBeGone(t)
		if t.Failed() {
			t.Fatalf("killed after %v", after)
		}
	}
	if err := Down(ctx, labDir(t)); err != nil {
		t.Errorf("down without a lab: %v", err)
	}
}
