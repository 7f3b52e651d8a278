//go:build linux

package conformance

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"migrate/engine/kernel/kerneltest"
)

// program is a real program that is taken to disk and back while it works.
type program struct {
	name string
	argv func(ctx context.Context, t *testing.T, dir string) []string
	// work uses the program before it is dumped, and afterwards.
	work  func(ctx context.Context, t *testing.T, w *workload)
	check func(ctx context.Context, t *testing.T, w *workload)
}

const (
	redisAddr = "127.0.0.1:7301"
	goAddr    = "127.0.0.1:7302"
)

func programs() []program {
	return []program{
		{"redis", func(_ context.Context, t *testing.T, dir string) []string {
			return []string{lookPath(t, "redis-server"), "--bind", "127.0.0.1", "--port", "7301", "--save", "", "--appendonly", "no", "--dir", dir}
		}, fillRedis, checkRedis},
		{"goserver", func(ctx context.Context, t *testing.T, dir string) []string {
			bin := filepath.Join(dir, "goserver")
			cmd := exec.CommandContext(ctx, "go", "build", "-o", bin, "migrate/e2e/workloads/goserver")
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("building the Go server: %v\n%s", err, out)
			}
			return []string{bin, goAddr}
		}, countUp, checkCount},
		{"python", func(_ context.Context, t *testing.T, dir string) []string {
			var numbers strings.Builder
			for i := range 2000 {
				fmt.Fprintln(&numbers, i)
			}
			data := filepath.Join(dir, "numbers")
			if err := os.WriteFile(data, []byte(numbers.String()), 0o644); err != nil {
				t.Fatal(err)
			}
			return []string{"/usr/bin/python3", script(t, "threads.py"), "500", data}
		}, printed("up\n"), printed("done 2000\n")},
		{"pipeline", func(_ context.Context, t *testing.T, _ string) []string {
			return []string{"/bin/bash", script(t, "pipeline.sh"), "300"}
		}, printed("up\n"), printed("sum 135450 lines 300\n")},
		{"tmux", tmuxProgram, startJobs, checkJobs},
	}
}

// TestPrograms takes real programs to disk and back, and dumps them while they run on.
func TestPrograms(t *testing.T) {
	kerneltest.Root(t)
	bin := build(t)
	for _, p := range programs() {
		t.Run(p.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*timeout)
			defer cancel()
			w := launch(ctx, t, bin, p)
			p.work(ctx, t, w)
			w.dump(ctx, t, "--leave-running")
			dir := w.dump(ctx, t)
			w.mustBeGone(t)
			w.restore(ctx, t, dir)
			p.check(ctx, t, w)
		})
	}
}

// launch starts a program in a session and a directory of its own. What it prints goes to a file.
func launch(ctx context.Context, t *testing.T, bin string, p program) *workload {
	t.Helper()
	w := &workload{bin: bin, dir: t.TempDir()}
	argv := p.argv(ctx, t, w.dir)
	log, err := os.OpenFile(filepath.Join(w.dir, "output"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }() // the program has its own
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = w.dir, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.pid = cmd.Process.Pid
	w.exited = make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(w.exited)
	}()
	t.Cleanup(func() {
		_ = unix.Kill(-w.pid, unix.SIGKILL) // the session's group, of the first copy or of the restored one
		<-w.exited
		if t.Failed() {
			t.Logf("it printed:\n%s", w.output())
		}
	})
	return w
}

func lookPath(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%v; `make deps` installs it", err)
	}
	return path
}

func script(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("../workloads/scripts", name))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// printed waits until the program has printed a text.
func printed(text string) func(context.Context, *testing.T, *workload) {
	return func(ctx context.Context, t *testing.T, w *workload) {
		t.Helper()
		for !strings.Contains(string(w.output()), text) {
			if !again(ctx) {
				t.Fatalf("it does not print %q", text)
			}
		}
	}
}

// again waits a little before another look at something that tells nobody of its changes; false when the time is up.
func again(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(5 * time.Millisecond):
		return true
	}
}

const redisKeys, redisValue = 256, 256 << 10

func redisText(i int) string { return strings.Repeat(fmt.Sprintf("%08d", i), redisValue/8) }

// redis sends requests over one connection, which it closes, and returns the answers, one line or bulk each.
func redis(ctx context.Context, t *testing.T, requests ...[]string) []string {
	t.Helper()
	var conn net.Conn
	var err error
	for {
		if conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", redisAddr); err == nil {
			break
		}
		if !again(ctx) {
			t.Fatal(err)
		}
	}
	defer func() { _ = conn.Close() }()
	in := bufio.NewReader(conn)
	var out []string
	for _, r := range requests {
		req := fmt.Sprintf("*%d\r\n", len(r))
		for _, a := range r {
			req += fmt.Sprintf("$%d\r\n%s\r\n", len(a), a)
		}
		if _, err := io.WriteString(conn, req); err != nil {
			t.Fatal(err)
		}
		line, err := in.ReadString('\n')
		if err != nil {
			t.Fatalf("%s: %v", r[0], err)
		}
		var n int
		if _, err := fmt.Sscanf(line, "$%d\r\n", &n); err == nil {
			bulk := make([]byte, n+2)
			if _, err := io.ReadFull(in, bulk); err != nil {
				t.Fatalf("%s: %v", r[0], err)
			}
			line = string(bulk)
		}
		out = append(out, strings.TrimSpace(line))
	}
	return out
}

func fillRedis(ctx context.Context, t *testing.T, _ *workload) {
	t.Helper()
	for i := range redisKeys {
		if got := redis(ctx, t, []string{"SET", fmt.Sprintf("key%d", i), redisText(i)}, []string{"INCR", "n"}); got[0] != "+OK" {
			t.Fatal(got)
		}
	}
}

func checkRedis(ctx context.Context, t *testing.T, _ *workload) {
	t.Helper()
	for i := range redisKeys {
		if got := redis(ctx, t, []string{"GET", fmt.Sprintf("key%d", i)}); got[0] != redisText(i) {
			t.Fatalf("key%d holds something else than was stored", i)
		}
	}
	if got := redis(ctx, t, []string{"INCR", "n"}); got[0] != fmt.Sprintf(":%d", redisKeys+1) {
		t.Fatalf("INCR answers %s", got[0])
	}
}

// get asks the Go server over a connection of its own.
func get(ctx context.Context, t *testing.T, path string) string {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+goAddr+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			if again(ctx) {
				continue // it does not listen yet
			}
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s %s %v", path, resp.Status, body, err)
		}
		return strings.TrimSpace(string(body))
	}
}

const counts = 20

func countUp(ctx context.Context, t *testing.T, _ *workload) {
	t.Helper()
	for range counts {
		get(ctx, t, "/count")
	}
}

func checkCount(ctx context.Context, t *testing.T, _ *workload) {
	t.Helper()
	if got := get(ctx, t, "/count"); got != fmt.Sprint(counts+1) {
		t.Fatalf("/count answers %s, want %d", got, counts+1)
	}
	if got := get(ctx, t, "/slow?ms=300"); got != "300" { // its goroutines check each other meanwhile
		t.Fatal(got)
	}
	if got := get(ctx, t, "/health"); !strings.HasPrefix(got, "ok") {
		t.Fatal(got)
	}
}
