//go:build linux

package moves

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"migrate/e2e/cluster"
	"migrate/e2e/lab"
)

// talker is one connection to a redis-server that is busy in its own way until it is stopped. It never connects again.
type talker struct {
	what  string
	turns atomic.Int64
	end   atomic.Bool
	done  chan struct{}
	err   error // once done is closed
}

func (s *scope) talk(what, endpoint string, turn func(conn net.Conn, in *bufio.Reader, n int64) error) *talker {
	s.Helper()
	conn, err := cluster.Dialer(endpoint)(s.Ctx)
	if err != nil {
		s.Fatal(err)
	}
	stop := context.AfterFunc(s.Ctx, func() { _ = conn.Close() })
	k, in := &talker{what: what, done: make(chan struct{})}, bufio.NewReaderSize(conn, 1<<20)
	go func() {
		defer close(k.done)
		for n := int64(1); !k.end.Load(); n++ {
			if k.err = turn(conn, in, n); k.err != nil {
				k.err = fmt.Errorf("%s, turn %d: %w", what, n, k.err)
				return
			}
			k.turns.Add(1)
		}
	}()
	s.Cleanup(func() {
		k.end.Store(true)
		<-k.done
		stop()
		_ = conn.Close()
	})
	return k
}

// ask sends a request and compares the answer.
func ask(conn net.Conn, in *bufio.Reader, request, answer []byte) error {
	if _, err := conn.Write(request); err != nil {
		return err
	}
	got := make([]byte, len(answer))
	if _, err := io.ReadFull(in, got); err != nil {
		return err
	}
	if !bytes.Equal(got, answer) {
		return fmt.Errorf("the answer is %.60q, want %.60q", got, answer)
	}
	return nil
}

// timeouts is how many retransmission time-outs a network namespace has counted.
func (s *scope) timeouts(text string) int {
	s.Helper()
	var names []string
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] != "TcpExt:" {
			continue
		}
		if names == nil {
			names = f
			continue
		}
		for i, name := range names {
			if name == "TCPTimeouts" && i < len(f) {
				n, err := strconv.Atoi(f[i])
				if err != nil {
					s.Fatal(err)
				}
				return n
			}
		}
	}
	s.Fatalf("no TCPTimeouts in:\n%s", text)
	return 0
}

// TestNoTimeouts moves a redis-server while one client asks and waits, one sends many requests ahead, one reads and one writes large
// values. On neither side may a retransmission time-out pass.
func TestNoTimeouts(t *testing.T) {
	for name, ip := range map[string]string{"v4": "10.77.0.86/24", "v6": "fd77::86/64"} {
		t.Run(name, func(t *testing.T) {
			s := begin(t, time.Minute)
			s.Workload("talks-"+name, ip, redisCommand(t)...)
			endpoint := netip.AddrPortFrom(netip.MustParsePrefix(ip).Addr(), 6379).String()
			s.AwaitListener(endpoint)
			s.fill(endpoint, block)
			s.noTimeouts("talks-"+name, s.talkers(endpoint))
		})
	}
}

// talkers starts one client of each kind.
func (s *scope) talkers(endpoint string) []*talker {
	s.Helper()
	incr := func(key string) []byte { return fmt.Appendf(nil, "*2\r\n$4\r\nINCR\r\n$%d\r\n%s\r\n", len(key), key) }
	asks, ahead := incr("asks"), bytes.Repeat(incr("ahead"), 50)
	get := []byte("*2\r\n$3\r\nGET\r\n$11\r\nfill:000000\r\n")
	large := append(append(fmt.Appendf(nil, "$%d\r\n", block), blockOf(0)...), "\r\n"...)
	set := append([]byte("*3\r\n$3\r\nSET\r\n$5\r\nlarge\r\n"), large...)
	return []*talker{
		s.talk("asking", endpoint, func(conn net.Conn, in *bufio.Reader, n int64) error {
			return ask(conn, in, asks, fmt.Appendf(nil, ":%d\r\n", n))
		}),
		s.talk("pipelining", endpoint, func(conn net.Conn, in *bufio.Reader, n int64) error {
			var want []byte
			for k := range int64(50) {
				want = fmt.Appendf(want, ":%d\r\n", (n-1)*50+k+1)
			}
			return ask(conn, in, ahead, want)
		}),
		s.talk("reading", endpoint, func(conn net.Conn, in *bufio.Reader, _ int64) error { return ask(conn, in, get, large) }),
		s.talk("writing", endpoint, func(conn net.Conn, in *bufio.Reader, _ int64) error { return ask(conn, in, set, []byte("+OK\r\n")) }),
	}
}

// noTimeouts moves a workload to host2 and back, and looks at what both ends have counted.
func (s *scope) noTimeouts(name string, all []*talker) {
	s.Helper()
	machine := watchStalls(s.T)
	atClients := func() int {
		s.Helper()
		out, err := cluster.Hosts.Client().Exec(s.Ctx, "cat", "/proc/net/netstat")
		if err != nil {
			s.Fatal(err)
		}
		return s.timeouts(out)
	}
	for _, to := range []string{"host2", "host1"} {
		s.talkOn(all)
		before := atClients()
		machine.take()
		r := s.Move(name, to, "--max-downtime", "1s")
		s.talkOn(all)
		stall := machine.take()
		here, there := atClients()-before, s.timeouts(s.On(to, "cat", fmt.Sprintf("/proc/%d/net/netstat", r.DestinationPID)))
		// The shortest time-out is 200 ms. Where the machine gave nobody a processor for that long, there is nothing to demand.
		dark := time.Duration(r.DowntimeMS*1e6) + stall
		s.Logf("time-outs: %d at the clients, %d at the server; blackout and stall %v", here, there, dark)
		told := 0
		for _, c := range r.Connections {
			told += c.RTO
		}
		if dark < 150*time.Millisecond && told > 0 {
			s.Errorf("the move reports %d retransmission time-outs, blackout and stall were %v", told, dark)
		}
		if dark < 150*time.Millisecond && here+there > 0 {
			s.Errorf("%d retransmission time-outs at the clients and %d at the server, blackout and stall were %v", here, there, dark)
		}
	}
}

// talkOn returns when each has had some more turns.
func (s *scope) talkOn(all []*talker) {
	s.Helper()
	for _, k := range all {
		from := k.turns.Load()
		s.until(k.what, func() bool {
			select {
			case <-k.done:
				s.Fatal(k.err)
			default:
			}
			return k.turns.Load() >= from+5
		})
	}
}

// TestTimeoutsTold moves a program to a host from which the peer of its connection cannot be reached. It writes more slowly than that
// reads, so that something is under way all the time: it must be sent again, as the report of the move says, and nothing is missing.
func TestTimeoutsTold(t *testing.T) {
	s := begin(t, time.Minute)
	src, dst, far := s.roles()
	in, err := cluster.Hosts.Host(far).Listen(s.Ctx, "tcp", ":7790")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	where := netip.AddrPortFrom(cluster.Hosts.Host(far).Addr(), 7790)
	s.Run("lines", []string{"--host", src, "--addr", "10.77.0.93/24"}, "bash", "-c",
		fmt.Sprintf("for ((n = 1; ; n++)); do echo $n; done >/dev/tcp/%v/%d", where.Addr(), where.Port()))
	conn, err := in.Accept()
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	var lines atomic.Int64
	go func() {
		scan := bufio.NewScanner(conn)
		for n := int64(1); scan.Scan(); n++ {
			if scan.Text() != strconv.FormatInt(n, 10) {
				got <- fmt.Errorf("line %d is %q", n, scan.Text())
				return
			}
			lines.Store(n)
		}
		got <- fmt.Errorf("the lines end: %w", cmp.Or(scan.Err(), io.EOF))
	}()
	defer func() { _ = conn.Close(); <-got }()
	more := func() {
		t.Helper()
		from := lines.Load()
		s.until("more lines", func() bool {
			select {
			case err := <-got:
				got <- err
				t.Fatal(err)
			default:
			}
			return lines.Load() > from+10_000
		})
	}
	more()
	if err := cluster.Hosts.CutPair(s.Ctx, dst, far, false, lab.PlaneAll); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.Hosts.Heal(context.Background()); err != nil {
			t.Error(err)
		}
	})
	more()
	r := s.Move("lines", dst, "--max-downtime", "1s")
	if len(r.Connections) != 1 || r.Connections[0].RTO == 0 {
		t.Errorf("the report has %+v, want one connection with a retransmission time-out", r.Connections)
	}
	if err := cluster.Hosts.Heal(s.Ctx); err != nil {
		t.Fatal(err)
	}
	more()
	machine := watchStalls(t)
	r = s.Move("lines", src, "--max-downtime", "1s")
	dark := time.Duration(r.DowntimeMS*1e6) + machine.take()
	if len(r.Connections) != 1 || dark < 150*time.Millisecond && r.Connections[0].RTO > 0 {
		t.Errorf("the report of the way back has %+v, want one connection with none; blackout and stall were %v", r.Connections, dark)
	}
	more()
}

// roles are the three hosts: the leader of the cluster, which every other must reach, and the others.
func (s *scope) roles() (leader, second, third string) {
	s.Helper()
	var nodes []struct {
		Name   string `json:"name"`
		Leader bool   `json:"leader"`
	}
	if err := json.Unmarshal([]byte(s.On("host1", cluster.Migrate, "nodes", "-o", "json")), &nodes); err != nil {
		s.Fatal(err)
	}
	for i, n := range nodes {
		if n.Leader && len(nodes) == 3 {
			return n.Name, nodes[(i+1)%3].Name, nodes[(i+2)%3].Name
		}
	}
	s.Fatalf("%+v, want three hosts with a leader", nodes)
	return "", "", ""
}
