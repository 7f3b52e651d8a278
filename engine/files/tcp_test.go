//go:build linux

package files

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"migrate/engine"
	"migrate/engine/images"
	"migrate/engine/kernel/kerneltest"
	"migrate/engine/sock"
)

func init() {
	scenarios["tcp4"] = scenario{func(h *half) { setupTCP(h, "127.0.0.1:0") }, verifyTCP}
	scenarios["tcp6"] = scenario{func(h *half) { setupTCP(h, "[::1]:0") }, verifyTCP}
	scenarios["closed"] = scenario{setupClosed, func(*half) {}}
	scenarios["udp"] = scenario{setupUDP, verifyUDP}
	scenarios["udpqueue"] = scenario{setupUDPQueue, verifyUDPQueue}
	scenarios["many"] = scenario{setupMany, func(*half) {}}
}

// netns is a network namespace with its loopback up, in which the test's clients live too.
func netns(t testing.TB, p *program) *os.File {
	t.Helper()
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	return ns
}

func loopbackUp(h *half) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	h.must(err)
	ifr, err := unix.NewIfreq("lo")
	h.must(err)
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	h.must(unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr))
	h.must(unix.Close(fd))
}

// setupTCP makes an MPTCP listener, as Go does by default, and a connection accepted on it (100), with a client in the same
// process (101); what the client sends first is not read, and what the server sends first neither.
func setupTCP(h *half, addr string) {
	loopbackUp(h)
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", addr)
	h.must(err)
	c, err := net.Dial("tcp", l.Addr().String())
	h.must(err)
	s, err := l.Accept()
	h.must(err)
	for i, x := range []any{l, c, s} {
		rc, err := x.(syscall.Conn).SyscallConn()
		h.must(err)
		h.must(rc.Control(func(fd uintptr) { h.must(unix.Dup3(int(fd), 100+i, 0)) }))
		h.must(x.(interface{ Close() error }).Close())
	}
	_, err = unix.Write(101, []byte("from the client"))
	h.must(err)
	_, err = unix.Write(102, []byte("from the server"))
	h.must(err)
	h.must(unix.SetsockoptInt(102, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 33))
	time.Sleep(50 * time.Millisecond) // both have acknowledged
}

func verifyTCP(h *half) {
	for _, fd := range []int{100, 101, 102} {
		h.expectFlags(fd, unix.O_NONBLOCK, unix.O_NONBLOCK)
		h.must(unix.SetNonblock(fd, false))
	}
	h.expectRead(102, "from the client")
	h.expectRead(101, "from the server")
	_, err := unix.Write(101, []byte("ping"))
	h.expectErr("write", err, nil)
	h.expectRead(102, "ping")
	_, err = unix.Write(102, []byte("pong"))
	h.expectErr("write", err, nil)
	h.expectRead(101, "pong")
	if v, err := unix.GetsockoptInt(102, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE); err != nil || v != 33 {
		h.errorf("keepidle %d (%v)", v, err)
	}
	if v, err := unix.GetsockoptInt(100, unix.SOL_SOCKET, unix.SO_PROTOCOL); err != nil || v != unix.IPPROTO_MPTCP {
		h.errorf("the listener's protocol is %d (%v)", v, err)
	}
	h.must(unix.Shutdown(101, unix.SHUT_WR))
	h.expectRead(102, "")
}

func setupUDP(h *half) {
	loopbackUp(h)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	h.at(fd, 100, err)
	h.must(unix.Bind(100, &unix.SockaddrInet4{Port: 5353, Addr: [4]byte{127, 0, 0, 1}}))
	h.must(unix.SetsockoptInt(100, unix.IPPROTO_IP, unix.IP_TTL, 9))
	h.must(unix.SetsockoptInt(100, unix.IPPROTO_IP, unix.IP_PKTINFO, 1))
	fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, 0)
	h.at(fd, 101, err)
	h.must(unix.Bind(101, &unix.SockaddrInet6{Port: 5354}))
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	h.at(fd, 102, err)
	h.must(unix.Connect(102, &unix.SockaddrInet4{Port: 5353, Addr: [4]byte{127, 0, 0, 1}}))
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	h.at(fd, 103, err)
}

func verifyUDP(h *half) {
	_, err := unix.Write(102, []byte("hello"))
	h.expectErr("write", err, nil)
	h.expectRead(100, "hello")
	h.expectErr("sendto", unix.Sendto(100, []byte("v6"), 0, &unix.SockaddrInet4{Port: 5354, Addr: [4]byte{127, 0, 0, 1}}), nil)
	h.expectRead(101, "v6")
	for _, c := range []struct{ opt, want int }{{unix.IP_TTL, 9}, {unix.IP_PKTINFO, 1}} {
		if v, err := unix.GetsockoptInt(100, unix.IPPROTO_IP, c.opt); err != nil || v != c.want {
			h.errorf("option %d is %d (%v)", c.opt, v, err)
		}
	}
	if sa, err := unix.Getsockname(103); err != nil || sa.(*unix.SockaddrInet4).Port != 0 {
		h.errorf("the unbound socket has %v (%v)", sa, err)
	}
}

func TestMoveUDP(t *testing.T)  { moveTCP(t, "udp") }
func TestMoveTCP4(t *testing.T) { moveTCP(t, "tcp4") }
func TestMoveTCP6(t *testing.T) { moveTCP(t, "tcp6") }

func moveTCP(t *testing.T, name string) {
	move(t, name, func() *syscall.SysProcAttr { return &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET} },
		func(p *program) Env { return Env{NetNS: netns(t, p)} }, nil)
}

// setupMany makes a server with 100 connections from the test's side of the namespace.
func setupMany(h *half) {
	loopbackUp(h)
	l, err := net.Listen("tcp", "127.0.0.1:7000")
	h.must(err)
	for i := range 100 {
		done := make(chan net.Conn)
		go func() {
			c, err := net.Dial("tcp", "127.0.0.1:7000")
			h.must(err)
			done <- c
		}()
		s, err := l.Accept()
		h.must(err)
		rc, err := s.(syscall.Conn).SyscallConn()
		h.must(err)
		h.must(rc.Control(func(fd uintptr) { h.must(unix.Dup3(int(fd), 2000+i, 0)) }))
		h.must(s.Close())
		rc, err = (<-done).(syscall.Conn).SyscallConn()
		h.must(err)
		h.must(rc.Control(func(fd uintptr) { h.must(unix.Dup3(int(fd), 3000+i, 0)) }))
	}
}

// TestAbortTCP dumps a program, resumes it and finds its connections as they were.
func TestAbortTCP(t *testing.T) {
	kerneltest.Root(t)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	p := start(t, "both", "tcp4", t.TempDir(), &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET})
	for range 3 {
		d, _ := dumped(t, ctx, p)
		if c := d.Connections(); len(c) != 2 || c[0].State != "ESTABLISHED" || c[0].Unread != 15 {
			t.Errorf("connections: %+v", c)
		}
		if err := d.Unchanged(); err != nil {
			t.Error(err)
		}
		if err := d.Resume(ctx); err != nil {
			t.Fatal(err)
		}
		if err := p.cmd.Process.Signal(unix.SIGCONT); err != nil {
			t.Fatal(err)
		}
		// A dead agent has left them in repair.
		d, _ = dumped(t, ctx, p)
		d.paused = nil
		n, err := NewDumper(Options{}).Recover(ctx, []*engine.Process{p.process()})
		if err != nil || n != 2 {
			t.Errorf("recovered %d connections (%v)", n, err)
		}
		_ = p.cmd.Process.Signal(unix.SIGCONT)
	}
	p.finish(t)
}

func TestDumpRefusesWaitingConnection(t *testing.T) {
	kerneltest.Root(t)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	p := start(t, "setup", "tcp4", t.TempDir(), &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET})
	ns := netns(t, p)
	d := NewDumper(Options{External: runtimeFiles(t, p)})
	defer d.Close()
	procs := []*engine.Process{p.process()}
	if o, err := d.Check(ctx, procs); err != nil || len(o) > 0 {
		t.Fatal(o, err)
	}
	port := listenerPort(t, p, d)
	err := sock.In(sock.Place{NetNS: ns}, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		return unix.Connect(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
	})
	if err != nil {
		t.Fatal(err)
	}
	if o, err := d.Check(ctx, procs); err != nil || len(o) > 0 {
		t.Error("a connection that waits is no obstacle yet:", o, err)
	}
	if n, err := d.Pending(ctx, procs); err != nil || n != 1 {
		t.Errorf("%d connections are pending (%v)", n, err)
	}
	p.stop(t)
	err = d.Dump(ctx, procs, &images.Checkpoint{})
	if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "not yet accepted") {
		t.Errorf("dump: %v", err)
	}
	_ = p.cmd.Process.Signal(unix.SIGCONT)
	p.finish(t)
}

func setupClosed(h *half) {
	loopbackUp(h)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	h.must(err)
	c, err := net.Dial("tcp", l.Addr().String())
	h.must(err)
	s, err := l.Accept()
	h.must(err)
	h.must(s.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)))
	for err == nil { // until the client's window is full
		_, err = s.Write(make([]byte, 1<<16))
	}
	h.must(s.Close())
	h.must(l.Close())
	runtime.KeepAlive(c)
}

func TestDumpRefusesUndeliveredData(t *testing.T) {
	kerneltest.Root(t)
	p := start(t, "setup", "closed", t.TempDir(), &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET})
	d := NewDumper(Options{External: runtimeFiles(t, p)})
	defer d.Close()
	p.stop(t)
	err := d.Dump(context.Background(), []*engine.Process{p.process()}, &images.Checkpoint{})
	if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "not delivered yet") {
		t.Errorf("dump: %v", err)
	}
}

func setupUDPQueue(h *half) {
	loopbackUp(h)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	h.at(fd, 100, err)
	to := &unix.SockaddrInet4{Port: 5353, Addr: [4]byte{127, 0, 0, 1}}
	h.must(unix.Bind(100, to))
	h.must(unix.Sendto(100, []byte("to itself"), 0, to))
}

func verifyUDPQueue(h *half) {
	buf := make([]byte, 64)
	n, from, err := unix.Recvfrom(100, buf, unix.MSG_DONTWAIT)
	if sa, ok := from.(*unix.SockaddrInet4); err != nil || string(buf[:max(n, 0)]) != "to itself" || !ok || sa.Port != 5353 {
		h.errorf("received %q from %v (%v)", buf[:max(n, 0)], from, err)
	}
}

func TestMoveUDPQueue(t *testing.T) { moveTCP(t, "udpqueue") }

func listenerPort(t *testing.T, p *program, d *Dumper) int {
	t.Helper()
	fd, err := unix.PidfdGetfd(d.pidfds[p.cmd.Process.Pid], 100, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return sa.(*unix.SockaddrInet4).Port
}

// BenchmarkDump100 and BenchmarkRestore100 are what 100 connections cost in the freeze.
func BenchmarkDump100(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root")
	}
	ctx := context.Background()
	p := start(b, "setup", "many", b.TempDir(), &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET})
	for b.Loop() {
		b.StopTimer()
		d := NewDumper(Options{External: runtimeFiles(b, p)})
		procs := []*engine.Process{p.process()}
		if _, err := d.Check(ctx, procs); err != nil {
			b.Fatal(err)
		}
		p.stop(b)
		cp := &images.Checkpoint{}
		b.StartTimer()
		if err := d.Dump(ctx, procs, cp); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := d.Resume(ctx); err != nil {
			b.Fatal(err)
		}
		_ = d.Close()
		_ = p.cmd.Process.Signal(unix.SIGCONT)
		b.StartTimer()
	}
}

// BenchmarkRestore100 takes 200 connections into another process: Open, Install and Finish.
func BenchmarkRestore100(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root")
	}
	ctx := context.Background()
	for b.Loop() {
		b.StopTimer()
		p := start(b, "setup", "many", b.TempDir(), &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET})
		ns := netns(b, p)
		d, cp := dumped(b, ctx, p)
		p.kill()
		if err := d.Drop(); err != nil {
			b.Fatal(err)
		}
		r, err := NewRestorer(cp, Env{NetNS: ns})
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if err := r.Open(ctx); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := r.Close(); err != nil {
			b.Fatal(err)
		}
		_ = ns.Close()
		b.StartTimer()
	}
}
