//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"migrate/e2e/demo"
	"migrate/e2e/lab"
)

const (
	workload = "server"
	address  = "10.77.0.50"
	port     = ":6379"
)

// moveInLab moves a server with connections from one virtual host to another one and back, by the commands that a user types.
func moveInLab(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, show(ctx, "host1"), show(ctx, "host2"))
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = errors.Join(err, command(ctx, "/", migrate, "lab", "down"))
	}()
	// With a single server nobody is replaced as leader because he did not answer for half a second, as an emulated one may not.
	if err := command(ctx, "/", migrate, "lab", "up", "--hosts", "2", "--servers", "1", "--wait", "2m"); err != nil {
		return err
	}
	onHost1 := func(args ...string) error {
		return command(ctx, "/", migrate, append([]string{"lab", "exec", "host1", "--", migrate}, args...)...)
	}
	if err := onHost1("run", "--name", workload, "--addr", address+"/24", "--", migrate, "demo-server", "0.0.0.0"+port); err != nil {
		return err
	}
	l, err := lab.Open(ctx, "")
	if err != nil {
		return err
	}
	dial := func(ctx context.Context) (net.Conn, error) { return l.Client().Dial(ctx, "tcp", address+port) }
	if err := awaitServer(ctx, dial); err != nil {
		return err
	}
	clients, err := demo.StartClients(ctx, 2, dial)
	if err != nil {
		return err
	}
	defer clients.Stop()
	for _, to := range []string{"host2", "host1"} {
		before := clients.Report().Increments
		// An emulated processor needs seconds for what a real one does in milliseconds. It has no time to hash the command, which both
		// hosts have from the machine below them, within the ten seconds that a plan may take.
		if err := onHost1("move", workload, "--to", to, "--files", "shared", "--max-downtime", "30s", "--progress", "plain", "--explain"); err != nil {
			return err
		}
		if err := errors.Join(onHost1("ps"), awaitIncrements(ctx, clients, before+20)); err != nil {
			return err
		}
	}
	clients.Stop()
	wrong, err := clients.Verify(ctx, dial)
	if err != nil {
		return err
	}
	r := clients.Report()
	fmt.Printf("%d clients, %d increments, %d verified reads, %d increments lost or repeated\n", r.Clients, r.Increments, r.Reads, wrong)
	if wrong != 0 {
		return fmt.Errorf("%d increments are wrong", wrong)
	}
	return onHost1("history")
}

// awaitServer returns when the server takes connections; until it listens, its address refuses them.
func awaitServer(ctx context.Context, dial demo.Dial) error {
	for {
		conn, err := dial(ctx)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the server does not listen: %w", err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// awaitIncrements returns when the clients, none of which may fail, have worked on since the move.
func awaitIncrements(ctx context.Context, clients *demo.Clients, want int64) error {
	for {
		r := clients.Report()
		if len(r.Errors) > 0 || r.Increments >= want {
			return errors.Join(r.Errors...)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the clients have no answers: %w", context.Cause(ctx))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// show prints what the agent of a host has logged.
func show(ctx context.Context, host string) error {
	l, err := lab.Open(ctx, "")
	if err != nil {
		return err
	}
	text, err := l.Host(host).Exec(ctx, "cat", lab.AgentLogPath)
	_, _ = fmt.Fprintf(os.Stdout, "%s:\n%s\n", host, text)
	return err
}
