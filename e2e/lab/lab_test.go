package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestHostsAreApart(t *testing.T) {
	ctx, l := up(t)
	hosts := l.Hosts()
	if len(hosts) != 3 {
		t.Fatalf("%d hosts", len(hosts))
	}
	own := namespacesOf(os.Getpid())
	seen := map[string]string{}
	unique := func(h *Host, what, value string) {
		t.Helper()
		if value == "" || seen[what+value] != "" {
			t.Errorf("%s has the %s %q, as has %q", h.name, what, value, seen[what+value])
		}
		seen[what+value] = h.name
	}
	for _, h := range hosts {
		pid, err := h.PID(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for i, ns := range namespacesOf(pid) {
			unique(h, "namespace", ns)
			if slices.Contains(own, ns) {
				t.Errorf("%s is in the machine's %s", h.name, namespaceKinds[i])
			}
		}
		unique(h, "hostname", exec(ctx, t, h, "hostname"))
		unique(h, "machine id", exec(ctx, t, h, "cat", "/etc/machine-id"))
		unique(h, "boot id", exec(ctx, t, h, "cat", "/proc/sys/kernel/random/boot_id"))
		// /proc/uptime counts CLOCK_BOOTTIME of the reader's time namespace.
		up, _, _ := strings.Cut(exec(ctx, t, h, "cat", "/proc/uptime"), ".")
		unique(h, "uptime", up[:len(up)-2])
		for _, dir := range []string{"/", "/root", "/run", "/tmp", "/dev/shm"} {
			exec(ctx, t, h, "sh", "-c", "set -C; echo "+h.name+" > "+dir+"/lab-test") // -C: fails if it is there
		}
	}
	for _, h := range hosts {
		if got := exec(ctx, t, h, "cat", "/lab-test"); got != h.name {
			t.Errorf("the file of %s is %q's", h.name, got)
		}
		if got := exec(ctx, t, h, "cat", "/proc/1/comm"); got != "init" && !strings.HasPrefix(got, "migrate-lab") {
			t.Errorf("pid 1 of %s is %q", h.name, got)
		}
		if got := exec(ctx, t, h, "sh", "-c", "ls "+l.dir+" 2>/dev/null || true"); got != "" {
			t.Errorf("%s sees the lab's state: %s", h.name, got)
		}
		if got := exec(ctx, t, h, "cat", "/proc/self/cgroup"); !strings.HasSuffix(got, "0::/session") {
			t.Errorf("the cgroup of a command in %s is %s", h.name, got)
		}
	}
	for _, path := range []string{"/lab-test", "/root/lab-test", "/tmp/lab-test", "/dev/shm/lab-test"} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s is on the machine", path)
		}
	}
}

func TestClocks(t *testing.T) {
	ctx, l := up(t)
	for _, h := range l.Hosts() {
		want, suspended := clocks(h.number, 1)
		s, err := h.status(ctx, &state{})
		if err != nil {
			t.Fatal(err)
		}
		if math.Abs(s.UptimeS-(want+suspended).Seconds()) > 20 {
			t.Errorf("%s has been up for %v s, want about %v", h.name, s.UptimeS, want+suspended)
		}
		text := exec(ctx, t, h, "cat", "/proc/uptime")
		inside, err := strconv.ParseFloat(strings.Fields(text)[0], 64)
		if err != nil || math.Abs(inside-s.UptimeS) > 1 {
			t.Errorf("%s says that it is up for %v s, its status says %v", h.name, inside, s.UptimeS)
		}
	}
}

func TestExec(t *testing.T) {
	ctx, l := up(t, func(o *Options) { o.Hosts = 1 })
	h := l.Host("host1")

	c := h.Command(ctx, "sh", "-c", "cat; echo err >&2; pwd; echo $X; exit 7")
	var stdout, stderr bytes.Buffer
	c.Stdin, c.Stdout, c.Stderr, c.Dir, c.Env = strings.NewReader("in\n"), &stdout, &stderr, "/usr", []string{"X=y"}
	err := c.Run()
	var exit *ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("got %v, want exit code 7", err)
	}
	if stdout.String() != "in\n/usr\ny\n" || stderr.String() != "err\n" {
		t.Errorf("stdout %q, stderr %q", stdout.String(), stderr.String())
	}

	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	c = h.Command(ctx, "cat")
	c.Stdin = bytes.NewReader(big)
	if out, err := c.Output(); err != nil || !bytes.Equal(out, big) {
		t.Errorf("1 MiB through cat: %d bytes, %v", len(out), err)
	}
	if _, err := h.Exec(ctx, "no-such-command"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no-such-command: %v", err)
	}
	if _, err := h.Exec(ctx, "/etc/passwd"); !errors.Is(err, os.ErrPermission) {
		t.Errorf("/etc/passwd: %v", err)
	}
	if _, err := h.Exec(ctx, "sh", "-c", "kill -9 $$"); !errors.As(err, &exit) || exit.Signal != syscall.SIGKILL || exit.ExitCode() != 137 {
		t.Errorf("killed: %v", err)
	}
	// Nothing of the pid 1's own ways is inherited.
	got := exec(ctx, t, h, "sh", "-c", "grep -E '^Sig(Ign|Blk)' /proc/self/status; umask; ls /proc/self/fd")
	// Signals 32 and 33 are the C library's own: what posix_spawn(3) starts, such as these tests under make, ignores them.
	for _, own := range []string{"0000000080000000", "0000000100000000", "0000000180000000"} {
		got = strings.Replace(got, "SigIgn:\t"+own, "SigIgn:\t0000000000000000", 1)
	}
	const clean = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n0022\n0\n1\n2\n3"
	if got != clean {
		t.Errorf("a command has\n%s\nwant\n%s", got, clean)
	}
	if _, err := h.Exec(ctx, strings.Repeat("x", 2<<20)); err == nil {
		t.Error("a command of 2 MiB was accepted")
	}
	if err := h.Command(ctx).Run(); err == nil {
		t.Error("an empty command was accepted")
	}
}

func TestCommandsEndWithTheirContext(t *testing.T) {
	ctx, l := up(t, func(o *Options) { o.Hosts = 1 })
	h := l.Host("host1")
	short, cancel := context.WithCancel(ctx)
	defer cancel()
	c := h.Command(short, "sh", "-c", "sleep 1000 & sleep 1000")
	var out bytes.Buffer
	c.Stdout = &out
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := c.Wait(); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the end of the context", err)
	}
	eventually(ctx, t, "the command's group to end", func() bool { return startTime(c.PIDOutside) == "" })
	// What a command leaves behind when it ends by itself runs on, and is reaped by pid 1 in the end.
	pid := exec(ctx, t, h, "sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!")
	exec(ctx, t, h, "kill", "-0", pid)
	exec(ctx, t, h, "kill", pid)
	eventually(ctx, t, "the orphan to be reaped", func() bool {
		_, err := h.Exec(ctx, "test", "-e", "/proc/"+pid)
		return err != nil
	})

	c = h.Command(ctx, "sh", "-c", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.01; done")
	r, w := io.Pipe()
	c.Stdout = w
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	if err := c.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	var exit *ExitError
	if err := c.Wait(); !errors.As(err, &exit) || exit.Code != 5 {
		t.Errorf("got %v, want exit code 5", err)
	}
}

// eventually waits for something of which there is no event to wait for.
func eventually(ctx context.Context, t *testing.T, what string, ok func() bool) {
	t.Helper()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain for %s", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// reaches tells whether a connection from one host to a listener on another can be made and carries a byte both ways.
func reaches(ctx context.Context, l net.Listener, from *Host, network string, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	accepted := make(chan error, 1)
	go func() {
		_ = l.(*net.TCPListener).SetDeadline(time.Now().Add(within))
		c, err := l.Accept()
		if err == nil {
			_, err = io.Copy(c, io.LimitReader(c, 1))
			_ = c.Close()
		}
		accepted <- err
	}()
	err := func() error {
		c, err := from.Dial(ctx, network, l.Addr().String())
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(within))
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		_, err = io.ReadFull(c, make([]byte, 1))
		return err
	}()
	return errors.Join(err, <-accepted)
}

func listen(ctx context.Context, t *testing.T, h *Host, network string, port int) net.Listener {
	t.Helper()
	l, err := h.Listen(ctx, network, net.JoinHostPort(h.name, fmt.Sprint(port)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

const (
	soon = 10 * time.Second       // for what must work
	long = 150 * time.Millisecond // for what must not
)

func TestEveryoneReachesEveryone(t *testing.T) {
	ctx, l := up(t)
	all := append(l.Hosts(), l.Client())
	for _, network := range []string{"tcp4", "tcp6"} {
		for _, to := range all {
			listener := listen(ctx, t, to, network, 9000)
			for _, from := range all {
				if err := reaches(ctx, listener, from, network, soon); err != nil {
					t.Errorf("%s -> %s over %s: %v", from.name, to.name, network, err)
				}
			}
		}
	}
	got := exec(ctx, t, l.Host("host2"), "getent", "ahostsv4", "host3")
	if !strings.HasPrefix(got, "10.77.0.13") {
		t.Errorf("host3 resolves to %s", got)
	}
	if got := exec(ctx, t, l.Client(), "getent", "ahostsv4", "host3"); !strings.HasPrefix(got, "10.77.0.13") {
		t.Errorf("for clients host3 resolves to %s", got)
	}
}

func TestCutAndHeal(t *testing.T) {
	ctx, l := up(t)
	host1, host2, host3 := l.Host("host1"), l.Host("host2"), l.Host("host3")
	at1, at2 := listen(ctx, t, host1, "tcp4", 9000), listen(ctx, t, host2, "tcp4", 9000)
	at3 := listen(ctx, t, host3, "tcp4", 9000)
	control, pages := listen(ctx, t, host2, "tcp4", controlPort), listen(ctx, t, host2, "tcp4", pagesPort)
	expect := func(when string, listener net.Listener, from *Host, want bool) {
		t.Helper()
		within := soon
		if !want {
			within = long
		}
		if err := reaches(ctx, listener, from, "tcp4", within); (err == nil) != want {
			t.Errorf("%s: %s to %s: %v", when, from.name, listener.Addr(), err)
		}
	}
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	do(l.Cut(ctx, "host2"))
	expect("host2 is cut", at2, host1, false)
	expect("host2 is cut", at1, host2, false)
	expect("host2 is cut", at1, host3, true)
	do(l.Heal(ctx))
	expect("healed", at2, host1, true)

	do(l.CutPair(ctx, "host1", "host2", false, PlaneAll))
	expect("pair", at2, host1, false)
	expect("pair", at2, host3, true)
	expect("pair", at3, host1, true)
	do(l.Heal(ctx, "host1", "host3"))
	expect("another pair was healed", at2, host1, false)
	do(l.Heal(ctx, "host2"))
	expect("healed", at1, host2, true)

	do(l.CutPair(ctx, "host1", "host2", false, PlanePages))
	expect("pages", pages, host1, false)
	expect("pages", control, host1, true)
	expect("pages", pages, host3, true)
	do(l.Heal(ctx))
	expect("healed", pages, host1, true)

	do(l.CutPair(ctx, "client", "host2", true, PlaneAll))
	expect("client", at2, l.Client(), false)
	expect("client", at2, host1, true)

	for _, err := range []error{
		l.Cut(ctx, "host9"), l.CutPair(ctx, "host1", "host1", false, PlaneAll), l.CutPair(ctx, "host1", "host2", false, "x"), l.Heal(ctx, "nobody"),
	} {
		if err == nil {
			t.Error("nonsense was accepted")
		}
	}
}

func TestOneWay(t *testing.T) {
	ctx, l := up(t, func(o *Options) { o.Hosts = 2 })
	host1, host2 := l.Host("host1"), l.Host("host2")
	received := map[string]net.PacketConn{}
	for _, h := range l.Hosts() {
		var c net.PacketConn
		err := h.inNetns(ctx, func() (err error) {
			c, err = net.ListenPacket("udp4", h.Addr().String()+":9000")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		received[h.name] = c
	}
	arrives := func(from, to *Host, within time.Duration) bool {
		t.Helper()
		c, err := from.Dial(ctx, "udp4", net.JoinHostPort(to.name, "9000"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		_ = received[to.name].SetReadDeadline(time.Now().Add(within))
		_, _, err = received[to.name].ReadFrom(make([]byte, 8))
		return err == nil
	}
	if !arrives(host1, host2, soon) || !arrives(host2, host1, soon) { // now both know each other's hardware address
		t.Fatal("no datagrams without a cut")
	}
	if err := l.CutPair(ctx, "host1", "host2", true, PlaneAll); err != nil {
		t.Fatal(err)
	}
	if arrives(host1, host2, long) {
		t.Error("a datagram went the way that is cut")
	}
	if !arrives(host2, host1, soon) {
		t.Error("no datagram went the way that is not cut")
	}
	if err := l.Heal(ctx, "host2", "host1"); err != nil {
		t.Fatal(err)
	}
	if !arrives(host1, host2, soon) {
		t.Error("no datagram after the cut was healed")
	}
}

func TestBandwidth(t *testing.T) {
	const rate = 4 << 20
	ctx, l := up(t, func(o *Options) { o.Hosts, o.Bandwidth = 2, rate })
	listener := listen(ctx, t, l.Host("host2"), "tcp4", 9000)
	const size = 2 << 20
	done := make(chan error, 1)
	go func() {
		c, err := listener.Accept()
		if err == nil {
			_, err = io.CopyN(io.Discard, c, size)
			_ = c.Close()
		}
		done <- err
	}()
	c, err := l.Host("host1").Dial(ctx, "tcp4", "host2:9000")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	start := time.Now()
	if _, err := c.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	ideal := time.Duration(float64(size) / rate * float64(time.Second))
	if took := time.Since(start); took < ideal*7/10 || took > ideal*5 {
		t.Errorf("%d bytes took %v, at this rate they take %v", size, took, ideal)
	}
}
