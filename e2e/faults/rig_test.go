//go:build linux

package faults

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"migrate/e2e/cluster"
	"migrate/e2e/demo"
)

// rig is what the moves of a test share.
type rig struct {
	*cluster.Scope
	watch watch
	stamp string // the program
	redis string
}

// programs counts those of all tests, which have names, addresses and files of their own.
var programs atomic.Int32

func newRig(t *testing.T, d time.Duration) *rig {
	t.Helper()
	r := &rig{Scope: cluster.Begin(t, d), stamp: filepath.Join(cluster.Share, "stamp")}
	var err error
	if r.redis, err = exec.LookPath("redis-server"); err != nil {
		t.Fatal("redis-server is not installed; `make deps` installs it")
	}
	if out, err := exec.CommandContext(r.Ctx, "cc", "-O2", "-static", "-Wall", "-Werror", "-o", r.stamp, "testdata/stamp.c").CombinedOutput(); err != nil {
		t.Fatalf("building the stamping program: %v\n%s", err, out)
	}
	r.watch.begin("")
	t.Cleanup(r.watch.close)
	for _, h := range cluster.Hosts.Hosts() {
		if err := r.watch.listen(r.Ctx, h.Name()); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// program is a workload: a redis-server with clients that can neither retry nor reconnect, and a stamping program beside it.
type program struct {
	r        *rig
	name     string
	endpoint string
	file     string // of the stamps
	on       roles
	clients  *demo.Clients
	conns    []net.Conn // of the clients
}

// workload is what `migrate ps` says of one.
type workload struct {
	Name      string `json:"name"`
	Host      string `json:"host"`
	PID       int    `json:"pid"`
	Epoch     uint64 `json:"epoch"`
	State     string `json:"state"`
	Migration string `json:"migration"`
}

// clientCount is how many clients a program has.
const clientCount = 2

// start runs a program on a host that does not lead.
func (r *rig) start() (*program, error) {
	n := programs.Add(1)
	p := &program{r: r, name: fmt.Sprintf("w%d", n)}
	ip := fmt.Sprintf("10.77.0.%d", 50+n%200)
	p.endpoint, p.file = ip+":6379", filepath.Join(cluster.Disk, p.name)
	var err error
	if p.on, err = r.roles(); err != nil {
		return nil, err
	}
	script := fmt.Sprintf("%s %s & exec %s --port 6379 --protected-mode no --save '' --appendonly no --dir /", r.stamp, p.file, r.redis)
	if _, err := p.on.do(r.Ctx, "run", "--name", p.name, "--host", p.on.source, "--addr", ip+"/24", "--", "/bin/sh", "-c", script); err != nil {
		return nil, err
	}
	if err := r.until("the server to listen", 20*time.Second, func() bool {
		c, err := cluster.Dialer(p.endpoint)(r.Ctx)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	}); err != nil {
		return nil, err
	}
	dial := cluster.Dialer(p.endpoint)
	p.clients, err = demo.StartClients(r.Ctx, clientCount, func(ctx context.Context) (net.Conn, error) {
		c, err := dial(ctx)
		if err == nil {
			p.conns = append(p.conns, c)
		}
		return c, err
	})
	if err != nil {
		return nil, err
	}
	return p, p.goesOn(10 * time.Second)
}

// end stops a program, wherever it is.
func (p *program) end() error {
	for _, c := range p.conns { // of a program that is lost no answer comes
		_ = c.SetReadDeadline(time.Now().Add(time.Second))
	}
	p.clients.Stop()
	_, err := p.on.do(p.r.Ctx, "stop", p.name, "--grace", "1s")
	if err != nil && (strings.Contains(err.Error(), "ended") || strings.Contains(err.Error(), "lost")) {
		err = nil
	}
	return err
}

// do runs the command on whichever host answers.
func (r roles) do(ctx context.Context, args ...string) (out string, err error) {
	for _, h := range []string{r.source, r.destination, r.leader} {
		ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
		out, err = cluster.Hosts.Host(h).Exec(ctx, append([]string{cluster.Migrate}, args...)...)
		cancel()
		if err == nil {
			return out, nil
		}
	}
	return out, err
}

// roles makes the host after the leader the source, and the next one the destination.
func (r *rig) roles() (roles, error) {
	var nodes []struct {
		Name   string `json:"name"`
		Leader bool   `json:"leader"`
	}
	var last error
	err := r.until("three hosts with a leader", 30*time.Second, func() bool {
		ctx, cancel := context.WithTimeout(r.Ctx, 30*time.Second)
		defer cancel()
		if last = cluster.AwaitNodes(ctx, 3); last != nil {
			return false
		}
		out, err := cluster.Hosts.Host("host1").Exec(ctx, cluster.Migrate, "nodes", "-o", "json")
		if err == nil {
			err = json.Unmarshal([]byte(out), &nodes)
		}
		last = err
		for _, n := range nodes {
			if n.Leader && err == nil && len(nodes) == 3 {
				return true
			}
		}
		return false
	})
	for i, n := range nodes {
		if n.Leader && err == nil {
			return roles{leader: n.Name, source: nodes[(i+1)%3].Name, destination: nodes[(i+2)%3].Name}, nil
		}
	}
	return roles{}, fmt.Errorf("%w (%v)", err, last)
}

// pause is between two looks at what is not announced.
const pause = 50 * time.Millisecond

// until asks again and again whether something that is not announced has happened.
func (r *rig) until(what string, d time.Duration, there func() bool) error {
	return until(r.Ctx, what, d, there)
}

func until(ctx context.Context, what string, d time.Duration, there func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	for !there() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, context.Cause(ctx))
		case <-time.After(pause):
		}
	}
	return nil
}

// ps is what the cluster says of the program.
func (p *program) ps(ctx context.Context) (workload, error) {
	out, err := p.on.do(ctx, "ps", "--all", "-o", "json")
	if err != nil {
		return workload{}, err
	}
	var list []workload
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return workload{}, err
	}
	for _, w := range list {
		if w.Name == p.name {
			return w, nil
		}
	}
	return workload{}, fmt.Errorf("ps does not list %s", p.name)
}

// stamps reads what the stamping program has done, and how often it found a number that was not its own.
func (p *program) stamps() (done, strangers uint64, err error) {
	b, err := os.ReadFile(p.file)
	if err != nil {
		return 0, 0, err
	}
	if len(b) < 16 {
		return 0, 0, nil
	}
	return binary.NativeEndian.Uint64(b), binary.NativeEndian.Uint64(b[8:]), nil
}

// goesOn waits until both parts of the program have got on.
func (p *program) goesOn(d time.Duration) error {
	first, _, err := p.stamps()
	if err != nil {
		first = 0 // it makes the file
	}
	began := p.clients.Report().Increments
	return p.r.until(p.name+" to get on", d, func() bool {
		n, _, err := p.stamps()
		r := p.clients.Report()
		return len(r.Errors) > 0 || err == nil && n > first+20 && r.Increments > began+20
	})
}
