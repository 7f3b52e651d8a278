package demo

import (
	"bufio"
	"context"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestClientsAgreeWithTheServers(t *testing.T) {
	t.Run("builtin", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- Serve(ctx, l) }()
		exercise(t, func(ctx context.Context) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", l.Addr().String())
		})
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
	t.Run("redis", func(t *testing.T) {
		dial := startRedis(t)
		exercise(t, dial)
	})
}

func exercise(t *testing.T, dial Dial) {
	t.Helper()
	cs, err := StartClients(t.Context(), 8, dial)
	if err != nil {
		t.Fatal(err)
	}
	for cs.Report().Reads < 40 {
		if r := cs.Report(); len(r.Errors) > 0 {
			t.Fatal(r.Errors)
		}
		time.Sleep(pace)
	}
	cs.Stop()
	r := cs.Report()
	if len(r.Errors) > 0 || r.Clients != 8 || r.Increments < 40 {
		t.Fatalf("report: %+v", r)
	}
	if wrong, err := cs.Verify(t.Context(), dial); err != nil || wrong != 0 {
		t.Fatalf("%d increments wrong, %v", wrong, err)
	}
}

// startRedis starts a redis-server on a unix socket, which ends with the test.
func startRedis(t *testing.T) Dial {
	t.Helper()
	bin, err := exec.LookPath("redis-server")
	if err != nil {
		t.Fatal("redis-server is not installed; `make deps` installs it")
	}
	socket := filepath.Join(t.TempDir(), "redis.sock")
	cmd := exec.Command(bin, "--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for s := bufio.NewScanner(out); s.Scan(); {
		if strings.Contains(s.Text(), "ready to accept connections") {
			break
		}
	}
	return func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
}

func FuzzReadReply(f *testing.F) {
	for _, s := range []string{":1\r\n", "$3\r\nabc\r\n", "$-1\r\n", "+OK\r\n", "-ERR no\r\n", "*1\r\n"} {
		f.Add(s)
	}
	f.Fuzz(func(_ *testing.T, s string) {
		_, _ = readReply(bufio.NewReader(strings.NewReader(s)))
		_, _ = readCommand(bufio.NewReader(strings.NewReader(s)))
	})
}
