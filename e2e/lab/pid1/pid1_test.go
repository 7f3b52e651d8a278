package pid1

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// serve runs the connection handling, not the reaping, of a pid 1 in this process.
func serve(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a-directory-with-a-name-so-long-that-a-path-in-it-does-not-fit-into-the-108-bytes-of-sun-path", "socket")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := Listen(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	t.Cleanup(func() { _ = l.Close() })
	s := &server{children: map[int]chan Exit{}, services: map[string]int{}}
	go func() {
		for {
			c, err := l.(*net.UnixListener).AcceptUnix()
			if err != nil {
				return
			}
			go s.handle(c)
		}
	}()
	return path
}

func TestMalformedRequests(t *testing.T) {
	path := serve(t)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for _, packet := range []string{"", "hello", "{", `{"op":99}`, `{"op":1}`, `{"op":1,"spawn":{"argv":[]}}`, `[]`} {
		c, err := dial(ctx, path)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Write([]byte(packet)); err != nil {
			t.Fatal(err)
		}
		var r reply
		files, err := receive(c, MaxPacket, &r)
		if err == nil && r.Error == "" || len(files) != 0 {
			t.Errorf("%q was answered with %+v and %d descriptors", packet, r, len(files))
		}
		_ = c.Close()
	}
	p, err := Find(ctx, path, "")
	if err != nil || p.PID != os.Getpid() {
		t.Fatalf("after malformed requests: %+v, %v", p, err)
	}
	p.Close()
	if _, err := Find(ctx, path, "nothing"); !errors.Is(err, ErrNotRunning) {
		t.Errorf("a service that does not run: %v", err)
	}
}

func TestNobodyThere(t *testing.T) {
	ctx := context.Background()
	if _, err := Find(ctx, filepath.Join(t.TempDir(), "none"), ""); !errors.Is(err, ErrDown) {
		t.Errorf("no socket: %v", err)
	}
	path := filepath.Join(t.TempDir(), "socket")
	f, err := Listen(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	if _, err := Find(ctx, path, ""); !errors.Is(err, ErrDown) {
		t.Errorf("a socket without a listener: %v", err)
	}
	if _, err := Start(ctx, path, Spawn{}); err == nil {
		t.Error("a program without a name")
	}
}

// FuzzRequest sends one packet, as any program that reaches the socket might, to a pid 1 that must not start what is not there.
func FuzzRequest(f *testing.F) {
	f.Add([]byte(`{"op":1,"spawn":{"path":"/nonexistent","argv":["x"],"cgroup":"/nonexistent"}}`))
	f.Add([]byte(`{"op":2,"name":"x"}`))
	f.Add([]byte(`{"op":1,"spawn":{"argv":[]}}`))
	f.Add([]byte(`{"signal":9}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var r request
		if json.Unmarshal(data, &r) != nil {
			return
		}
		if r.Spawn != nil && len(r.Spawn.Argv) > 0 {
			r.Spawn.Path, r.Spawn.Namespaces = "/nonexistent/program", 0
			s := &server{children: map[int]chan Exit{}, services: map[string]int{}}
			if _, _, _, err := s.start(r.Spawn, nil); err == nil {
				t.Error("a program that does not exist was started")
			}
		}
	})
}

func TestReceiveEnds(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	a, b := os.NewFile(uintptr(fds[0]), "a"), os.NewFile(uintptr(fds[1]), "b")
	c, err := net.FileConn(a)
	if err != nil {
		t.Fatal(err)
	}
	_ = a.Close()
	defer func() { _ = c.Close() }()
	if _, err := b.Write(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	var v reply
	if _, err := receive(c.(*net.UnixConn), 10, &v); err == nil {
		t.Error("a packet that is too large was taken")
	}
	_ = b.Close()
	if _, err := receive(c.(*net.UnixConn), 10, &v); !errors.Is(err, io.EOF) {
		t.Errorf("the end: %v", err)
	}
}
