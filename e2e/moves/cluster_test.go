//go:build linux

// Package moves moves real programs between the virtual hosts of a cluster while they are in use, and checks
// afterwards, from outside, that nothing happened to them.
package moves

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"migrate/e2e/lab"
	"migrate/engine/kernel/kerneltest"
)

// hosts is the cluster that all tests of the package share. Each test has workloads and addresses of its own.
var hosts *lab.Lab

// migrate is where hosts see the command.
const migrate = "/usr/local/bin/migrate"

// share is a directory that all hosts see, read-only, with the programs that tests build.
var share string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if os.Geteuid() != 0 {
		return m.Run() // every test says so itself
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	state, err := os.MkdirTemp("/var/lib", "migrate-e2e-*")
	if err != nil {
		return complain(err)
	}
	defer func() { _ = os.RemoveAll(state) }()
	share = filepath.Join(state, "share")
	if err := os.Mkdir(share, 0o755); err != nil {
		return complain(err)
	}
	program, err := build(ctx, "migrate/migrate", "migrate")
	if err != nil {
		return complain(err)
	}
	hosts, err = lab.Up(ctx, lab.Options{StateDir: filepath.Join(state, "lab"), Program: program, Share: []string{share}})
	if err != nil {
		return complain(err)
	}
	defer func() {
		if err := hosts.Down(context.Background()); err != nil {
			complain(err)
		}
	}()
	if err := awaitNodes(ctx, 3); err != nil {
		return complain(err)
	}
	return m.Run()
}

func complain(err error) int {
	_, _ = fmt.Fprintf(os.Stderr, "moves: %v\n", err)
	return 1
}

// build compiles a package of this module into the shared directory.
func build(ctx context.Context, pkg, name string) (string, error) {
	out := filepath.Join(share, name)
	cmd := exec.CommandContext(ctx, "go", "build", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building %s: %w\n%s", pkg, err, text)
	}
	return out, nil
}

type node struct {
	Name   string `json:"name"`
	Up     bool   `json:"up"`
	Leader bool   `json:"leader"`
}

// awaitNodes returns when n hosts are up and one leads. Before the agents have found each other there is no event to
// wait for.
func awaitNodes(ctx context.Context, n int) error {
	for {
		var nodes []node
		out, err := hosts.Host("host1").Exec(ctx, migrate, "nodes", "-o", "json")
		if err == nil {
			err = json.Unmarshal([]byte(out), &nodes)
		}
		up, leader := 0, false
		for _, x := range nodes {
			if x.Up {
				up++
			}
			leader = leader || x.Leader
		}
		if err == nil && up == n && leader {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d of %d hosts are up: %w, %w", up, n, err, context.Cause(ctx))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// scope is one test's use of the cluster.
type scope struct {
	*testing.T
	ctx context.Context
}

// begin starts a test that may take d.
func begin(t *testing.T, d time.Duration) *scope {
	t.Helper()
	kerneltest.Root(t)
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return &scope{t, ctx}
}

// on runs a command on a host and returns what it prints.
func (s *scope) on(host string, args ...string) string {
	s.Helper()
	out, err := hosts.Host(host).Exec(s.ctx, args...)
	if err != nil {
		s.Fatal(err)
	}
	return out
}

// fails runs a command that must fail with the exit code given (0: any), and returns what it writes to stderr.
func (s *scope) fails(code int, host string, args ...string) string {
	s.Helper()
	out, err := hosts.Host(host).Exec(s.ctx, args...)
	var exit *lab.ExitError
	if !errors.As(err, &exit) {
		s.Fatalf("%s: %v succeeded (%v), printing %s", host, args, err, out)
	}
	if code != 0 && exit.ExitCode() != code {
		s.Fatalf("%s: %v exited with %d, want %d: %v", host, args, exit.ExitCode(), code, err)
	}
	return out + exit.Stderr
}

// workload starts a managed workload on host1, which ends with the test.
func (s *scope) workload(name, addr string, command ...string) {
	s.Helper()
	args := []string{migrate, "run", "--name", name}
	if addr != "" {
		args = append(args, "--addr", addr)
	}
	s.on("host1", append(append(args, "--"), command...)...)
	s.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if s.Failed() {
			s.diagnose(ctx, name)
		}
		if _, err := hosts.Host("host1").Exec(ctx, migrate, "stop", name, "--grace", "1s"); err != nil && !strings.Contains(err.Error(), "ended") {
			s.Errorf("stopping %s: %v", name, err)
		}
	})
}

// diagnose prints what helps to understand a failure.
func (s *scope) diagnose(ctx context.Context, name string) {
	for _, args := range [][]string{{migrate, "ps", "--all"}, {migrate, "history"}, {migrate, "logs", name}} {
		out, err := hosts.Host("host1").Exec(ctx, args...)
		s.Logf("%v:\n%s(%v)", args, out, err)
	}
	for _, h := range hosts.Hosts() {
		if text, err := h.AgentLog(ctx); err == nil {
			lines := strings.Split(text, "\n")
			s.Logf("log of %s:\n%s", h.Name(), strings.Join(lines[max(0, len(lines)-40):], "\n"))
		}
	}
}

// report is what the tests read of `migrate move -o json`.
type report struct {
	ID             string  `json:"id"`
	State          string  `json:"state"`
	Outcome        string  `json:"outcome"`
	Source         string  `json:"source"`
	Destination    string  `json:"destination"`
	PID            int     `json:"pid"`
	DestinationPID int     `json:"destination_pid"`
	Epoch          uint64  `json:"epoch"`
	DowntimeMS     float64 `json:"downtime_ms"`
	TotalMS        float64 `json:"total_ms"`
	Rounds         []struct {
		Pages uint64 `json:"pages"`
	} `json:"rounds"`
	Connections []struct {
		Local string `json:"local"`
		RTO   int    `json:"rto_during_move"`
	} `json:"connections"`
	Error string `json:"error"`
}

// move moves a workload and returns what the command reports.
func (s *scope) move(name, to string, flags ...string) report {
	s.Helper()
	return s.moveOn("host1", append([]string{name, "--to", to}, flags...)...)
}

func (s *scope) moveOn(host string, args ...string) report {
	s.Helper()
	out := s.on(host, append([]string{migrate, "move", "-o", "json"}, args...)...)
	var r report
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		s.Fatalf("%v: %s", err, out)
	}
	if r.Outcome != "moved" || r.Error != "" {
		s.Fatalf("%+v", r)
	}
	s.Logf("%s -> %s: blackout %.1f ms, %.0f ms in all, %d rounds", r.Source, r.Destination, r.DowntimeMS, r.TotalMS, len(r.Rounds))
	return r
}

// logs awaits a line in the output of a workload and returns all of it.
func (s *scope) logs(name, line string) string {
	s.Helper()
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	var got strings.Builder
	w := writerFunc(func(p []byte) (int, error) {
		got.Write(p)
		if strings.Contains(got.String(), line) {
			cancel()
		}
		return len(p), nil
	})
	cmd := hosts.Host("host1").Command(ctx, migrate, "logs", "-f", name)
	cmd.Stdout = w
	err := cmd.Run()
	if !strings.Contains(got.String(), line) {
		s.Fatalf("the output of %s has no %q (%v):\n%s", name, line, err, got.String())
	}
	return got.String()
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
