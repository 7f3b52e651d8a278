//go:build linux

package moves

import (
	"bufio"
	"bytes"
	"context"
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
