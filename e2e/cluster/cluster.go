//go:build linux

// Package cluster is the frame of tests that move programs between the virtual hosts of a lab: the lab that the tests of a
// package share, and what a test does in it. A package uses it as
//
//	func TestMain(m *testing.M) { os.Exit(cluster.Main(m)) }
package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"migrate/e2e/lab"
	"migrate/engine/kernel/kerneltest"
)

// Hosts is the cluster that all tests of the package share. Each test has workloads and addresses of its own.
var Hosts *lab.Lab

// Migrate is where hosts see the command.
const Migrate = "/usr/local/bin/migrate"

// Share is a directory that all hosts see, read-only, with the programs that tests build.
var Share string

// Disk is a directory that all hosts and the machine see and may write, as shared storage would be.
var Disk string

// Main starts the cluster, with additions to the environment of its agents, runs the tests and returns the exit code.
func Main(m *testing.M, env ...string) int {
	if os.Geteuid() != 0 {
		return m.Run() // every test says so itself
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	state, err := os.MkdirTemp("/var/lib", "migrate-e2e-*")
	if err != nil {
		return complain(err)
	}
	defer func() { _ = os.RemoveAll(state) }()
	Share, Disk = filepath.Join(state, "share"), filepath.Join(state, "disk")
	if err := errors.Join(os.Chmod(state, 0o755), os.Mkdir(Share, 0o755), os.Mkdir(Disk, 0o755)); err != nil {
		return complain(err)
	}
	program, err := Build(ctx, "migrate/migrate", "migrate")
	if err != nil {
		return complain(err)
	}
	Hosts, err = lab.Up(ctx, lab.Options{StateDir: filepath.Join(state, "lab"), Program: program, AgentEnv: env,
		Share: []string{Share}, Shared: []string{Disk}})
	if err != nil {
		return complain(err)
	}
	defer func() {
		if err := Hosts.Down(context.Background()); err != nil {
			complain(err)
		}
	}()
	if err := AwaitNodes(ctx, 3); err != nil {
		return complain(err)
	}
	return m.Run()
}

func complain(err error) int {
	_, _ = fmt.Fprintf(os.Stderr, "cluster: %v\n", err)
	return 1
}

// Build compiles a package of this module into the shared directory.
func Build(ctx context.Context, pkg, name string) (string, error) {
	out := filepath.Join(Share, name)
	cmd := exec.CommandContext(ctx, "go", "build", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building %s: %w\n%s", pkg, err, text)
	}
	return out, nil
}

// AwaitNodes returns when n hosts are up and one leads.
func AwaitNodes(ctx context.Context, n int) error { return Hosts.AwaitCluster(ctx, n) }

// Scope is one test's use of the cluster.
type Scope struct {
	*testing.T
	Ctx context.Context
}

// Begin starts a test that may take d.
func Begin(t *testing.T, d time.Duration) *Scope {
	t.Helper()
	kerneltest.Root(t)
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return &Scope{t, ctx}
}

// On runs a command on a host and returns what it prints.
func (s *Scope) On(host string, args ...string) string {
	s.Helper()
	out, err := Hosts.Host(host).Exec(s.Ctx, args...)
	if err != nil {
		s.Fatalf("%v\n%s", err, out)
	}
	return out
}

// Fails runs a command that must fail with the exit code given (0: any), and returns what it writes to stderr.
func (s *Scope) Fails(code int, host string, args ...string) string {
	s.Helper()
	out, err := Hosts.Host(host).Exec(s.Ctx, args...)
	var exit *lab.ExitError
	if !errors.As(err, &exit) {
		s.Fatalf("%s: %v succeeded (%v), printing %s", host, args, err, out)
	}
	if code != 0 && exit.ExitCode() != code {
		s.Fatalf("%s: %v exited with %d, want %d: %v", host, args, exit.ExitCode(), code, err)
	}
	return out + exit.Stderr
}

// Workload starts a managed workload on host1, which ends with the test. The address may be empty.
func (s *Scope) Workload(name, addr string, command ...string) {
	s.Helper()
	var flags []string
	if addr != "" {
		flags = []string{"--addr", addr}
	}
	s.Run(name, flags, command...)
}

// Run is Workload with flags of `migrate run`.
func (s *Scope) Run(name string, flags []string, command ...string) {
	s.Helper()
	args := append([]string{Migrate, "run", "--name", name}, flags...)
	s.On("host1", append(append(args, "--"), command...)...)
	s.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if s.Failed() {
			s.Diagnose(ctx, name)
		}
		if _, err := Hosts.Host("host1").Exec(ctx, Migrate, "stop", name, "--grace", "1s"); err != nil && !strings.Contains(err.Error(), "ended") {
			s.Errorf("stopping %s: %v", name, err)
		}
	})
}

// Diagnose prints what helps to understand a failure.
func (s *Scope) Diagnose(ctx context.Context, name string) {
	for _, args := range [][]string{{Migrate, "ps", "--all"}, {Migrate, "history"}, {Migrate, "logs", name}} {
		out, err := Hosts.Host("host1").Exec(ctx, args...)
		s.Logf("%v:\n%s(%v)", args, out, err)
	}
	for _, h := range Hosts.Hosts() {
		if text, err := h.AgentLog(ctx); err == nil {
			lines := strings.Split(text, "\n")
			s.Logf("log of %s:\n%s", h.Name(), strings.Join(lines[max(0, len(lines)-40):], "\n"))
		}
	}
}

// Report is what the tests read of `migrate move -o json`.
type Report struct {
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

// Move moves a workload and returns what the command reports.
func (s *Scope) Move(name, to string, flags ...string) Report {
	s.Helper()
	return s.MoveOn("host1", append([]string{name, "--to", to}, flags...)...)
}

func (s *Scope) MoveOn(host string, args ...string) Report {
	s.Helper()
	out, err := Hosts.Host(host).Exec(s.Ctx, append([]string{Migrate, "move", "-o", "json"}, args...)...)
	if err != nil {
		s.Fatalf("%v\n%s", err, out)
	}
	var r Report
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		s.Fatalf("%v: %s", err, out)
	}
	if r.Outcome != "moved" || r.Error != "" {
		s.Fatalf("%+v", r)
	}
	s.Logf("%s -> %s: blackout %.1f ms, %.0f ms in all, %d rounds", r.Source, r.Destination, r.DowntimeMS, r.TotalMS, len(r.Rounds))
	return r
}

// Logs awaits a line in the output of a workload and returns all of it.
func (s *Scope) Logs(name, line string) string {
	s.Helper()
	ctx, cancel := context.WithCancel(s.Ctx)
	defer cancel()
	var got strings.Builder
	w := writerFunc(func(p []byte) (int, error) {
		got.Write(p)
		if strings.Contains(got.String(), line) {
			cancel()
		}
		return len(p), nil
	})
	cmd := Hosts.Host("host1").Command(ctx, Migrate, "logs", "-f", name)
	cmd.Stdout = w
	err := cmd.Run()
	if !strings.Contains(got.String(), line) {
		s.Fatalf("the output of %s has no %q (%v):\n%s", name, line, err, got.String())
	}
	return got.String()
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// Dialer opens connections from where clients are: on the switch, on no host.
func Dialer(endpoint string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) { return Hosts.Client().Dial(ctx, "tcp", endpoint) }
}

// AwaitListener returns when something takes connections at the endpoint.
func (s *Scope) AwaitListener(endpoint string) {
	s.Helper()
	for {
		c, err := Dialer(endpoint)(s.Ctx)
		if err == nil {
			_ = c.Close()
			return
		}
		select {
		case <-s.Ctx.Done():
			s.Fatalf("nothing listens on %s: %v", endpoint, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Script makes a script of e2e/workloads/scripts visible to the hosts and returns its path there.
func (s *Scope) Script(name string) string {
	s.Helper()
	text, err := os.ReadFile(filepath.Join("../workloads/scripts", name))
	if err != nil {
		s.Fatal(err)
	}
	path := filepath.Join(Share, name)
	if err := os.WriteFile(path, text, 0o755); err != nil {
		s.Fatal(err)
	}
	return path
}
