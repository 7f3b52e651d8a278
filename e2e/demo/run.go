package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"time"

	"migrate/e2e/lab"
)

// Options of the demonstration. The zero value is what `migrate demo` does.
type Options struct {
	Server  string   // "redis", "builtin", or "auto": redis where it is installed
	Clients int      // default 8
	Path    []string // hosts that it moves to, one after another; default host2, host3, host1
	Between time.Duration
	Program string // the migrate binary; default this program
	Out     io.Writer
}

// The server of the demonstration.
const (
	workload = "demo"
	address  = "10.77.0.50/24"
	endpoint = "10.77.0.50:6379"
)

// readyTimeout bounds how long the cluster and the server may take to be ready.
const readyTimeout = 30 * time.Second

// Move is one move as the command reported it and as clients saw it.
type Move struct {
	From, To   string
	DowntimeMS float64
	TotalMS    float64
	Rounds     int
	BytesSent  uint64
	Longest    time.Duration // longest wait of a client since the move before
}

// result is what the demonstration reads of `migrate move -o json`.
type result struct {
	Source     string            `json:"source"`
	Dest       string            `json:"destination"`
	DowntimeMS float64           `json:"downtime_ms"`
	TotalMS    float64           `json:"total_ms"`
	Rounds     []json.RawMessage `json:"rounds"`
	BytesSent  uint64            `json:"bytes_sent"`
	Outcome    string            `json:"outcome"`
	Error      string            `json:"error"`
}

// ErrBroken means that a promise was not kept: a client saw an error, or an increment was lost or repeated.
var ErrBroken = errors.New("the promise was not kept")

// Run brings a lab up, moves a live server through it under its clients, prints what they saw, and takes all of it down.
func Run(ctx context.Context, o Options) (err error) {
	o, command, err := o.complete()
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintf(o.Out, "server: %s; %d clients that can neither retry nor reconnect\n", o.Server, o.Clients)
	began := time.Now()
	l, err := lab.Up(ctx, lab.Options{Hosts: 3, Program: o.Program})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Down(context.WithoutCancel(ctx))) }()
	ready, cancel := context.WithTimeout(ctx, readyTimeout)
	err = l.AwaitCluster(ready, len(l.Hosts()))
	cancel()
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintf(o.Out, "three hosts are up after %.1f s\n", time.Since(began).Seconds())
	if err := start(ctx, l, command); err != nil {
		return err
	}
	dial := func(ctx context.Context) (net.Conn, error) { return l.Client().Dial(ctx, "tcp", endpoint) }
	if err := awaitServer(ctx, dial); err != nil {
		return err
	}
	clients, err := StartClients(ctx, o.Clients, dial)
	if err != nil {
		return err
	}
	defer clients.Stop()
	moves, err := moveAround(ctx, l, o, clients)
	if err != nil {
		return errors.Join(err, errors.Join(clients.Report().Errors...))
	}
	clients.Stop()
	return conclude(ctx, o, moves, clients, dial)
}

func (o Options) complete() (Options, []string, error) {
	if o.Clients == 0 {
		o.Clients = 8
	}
	if len(o.Path) == 0 {
		o.Path = []string{"host2", "host3", "host1"}
	}
	if o.Between == 0 {
		o.Between = time.Second
	}
	redis, missing := exec.LookPath("redis-server")
	if o.Server == "" || o.Server == "auto" {
		o.Server = "redis"
		if missing != nil {
			o.Server = "builtin"
		}
	}
	switch {
	case o.Server == "builtin":
		return o, []string{"/usr/local/bin/migrate", "demo-server", "0.0.0.0:6379"}, nil
	case o.Server != "redis":
		return o, nil, fmt.Errorf("--server %q is not known: use redis, builtin or auto", o.Server)
	case missing != nil:
		return o, nil, fmt.Errorf("redis-server is not installed: %w; use --server builtin, or install it", missing)
	}
	return o, []string{redis, "--port", "6379", "--protected-mode", "no", "--save", "", "--appendonly", "no", "--dir", "/"}, nil
}

func start(ctx context.Context, l *lab.Lab, command []string) error {
	args := append([]string{"/usr/local/bin/migrate", "run", "--name", workload, "--addr", address, "--"}, command...)
	if _, err := l.Host("host1").Exec(ctx, args...); err != nil {
		return fmt.Errorf("starting the server: %w", err)
	}
	return nil
}

// awaitServer returns when the server takes connections; until it listens, its address refuses them.
func awaitServer(ctx context.Context, dial Dial) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for {
		conn, err := dial(ctx)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the server does not listen on %s after %v: %w", endpoint, readyTimeout, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// moveAround moves the server along the path, with a rest between moves in which its clients work.
func moveAround(ctx context.Context, l *lab.Lab, o Options, clients *Clients) ([]Move, error) {
	var moves []Move
	for _, to := range o.Path {
		if err := rest(ctx, o.Between); err != nil {
			return nil, err
		}
		clients.Report()
		_, _ = fmt.Fprintf(o.Out, "\nmigrate move %s --to %s\n", workload, to)
		m, err := MoveWorkload(ctx, l.Host("host1"), workload, to, o.Out)
		if err != nil {
			return nil, err
		}
		if err := rest(ctx, o.Between); err != nil {
			return nil, err
		}
		r := clients.Report()
		if len(r.Errors) > 0 {
			return nil, fmt.Errorf("%w: after the move to %s: %w", ErrBroken, to, errors.Join(r.Errors...))
		}
		m.Longest = r.Longest
		moves = append(moves, *m)
	}
	return moves, nil
}

func rest(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// MoveWorkload runs `migrate move` on a host, with its progress printed to out, and returns what it reports.
func MoveWorkload(ctx context.Context, h *lab.Host, name, to string, out io.Writer) (*Move, error) {
	cmd := h.Command(ctx, "/usr/local/bin/migrate", "move", name, "--to", to, "-o", "json", "--progress", "plain")
	cmd.Stderr = out
	text, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("moving %s to %s: %w\n%s", name, to, err, text)
	}
	var r result
	if err := json.Unmarshal(text, &r); err != nil {
		return nil, fmt.Errorf("moving %s to %s: its report: %w", name, to, err)
	}
	if r.Outcome != "moved" {
		return nil, fmt.Errorf("moving %s to %s: %s: %s", name, to, r.Outcome, r.Error)
	}
	return &Move{From: r.Source, To: r.Dest, DowntimeMS: r.DowntimeMS, TotalMS: r.TotalMS, Rounds: len(r.Rounds), BytesSent: r.BytesSent}, nil
}

// conclude compares the clients' ledgers with the server and prints the table.
func conclude(ctx context.Context, o Options, moves []Move, clients *Clients, dial Dial) error {
	wrong, err := clients.Verify(ctx, dial)
	if err != nil {
		return err
	}
	r := clients.Report()
	_, _ = fmt.Fprintf(o.Out, "\n%-16s %7s %12s %12s %10s %14s\n", "move", "rounds", "sent (MiB)", "blackout ms", "total ms", "client wait ms")
	for _, m := range moves {
		_, _ = fmt.Fprintf(o.Out, "%-16s %7d %12.1f %12.1f %10.0f %14.1f\n", m.From+" -> "+m.To, m.Rounds, float64(m.BytesSent)/(1<<20), m.DowntimeMS, m.TotalMS, float64(m.Longest.Microseconds())/1000)
	}
	_, _ = fmt.Fprintf(o.Out, "\nclients: %d connections, %d increments, %d verified reads, %d errors, 0 reconnects, %d increments lost or repeated\n",
		r.Clients, r.Increments, r.Reads, len(r.Errors), wrong)
	if wrong != 0 || len(r.Errors) > 0 {
		return fmt.Errorf("%w: %d increments wrong, %w", ErrBroken, wrong, errors.Join(r.Errors...))
	}
	return nil
}
