package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"migrate/coordinator/pki"
	"migrate/e2e/lab/boot"
	"migrate/e2e/lab/pid1"
)

// Paths of the agent inside a host.
const (
	configPath   = "/etc/migrate/agent.yaml"
	tlsDir       = "/etc/migrate/tls"
	agentSocket  = "/run/migrate/agent.sock"
	agentDataDir = "/var/lib/migrate"
)

// AgentLogPath is the file, in a host, that its agents write to.
const AgentLogPath = "/var/log/migrate-agent.log"

// Ports of the agents.
const (
	controlPort = 7401
	pagesPort   = 7402
	raftPort    = 7403
	gossipPort  = 7404
	metricsPort = 7409
)

// agentService is the name under which a pid 1 knows the host's agent.
const agentService = "agent"

// defaultServers is how many of the hosts, from the first, vote in the cluster.
const defaultServers = 3

func (h *Host) config(st *state) string {
	var names []string
	for n := 1; n <= st.servers(); n++ {
		names = append(names, hostName(n))
	}
	return fmt.Sprintf(`name: %s
server: %t
bind: %s
ports:
  control: %d
  pages: %d
  raft: %d
  gossip: %d
servers: [%s]
bootstrap_expect: %d
tls_dir: %s
data_dir: %s
socket: %s
bridge: %s
metrics: "%s"
`, h.name, h.number <= st.servers(), h.Addr(), controlPort, pagesPort, raftPort, gossipPort,
		strings.Join(names, ", "), len(names), tlsDir, agentDataDir, agentSocket, bridgeInHost, netip.AddrPortFrom(h.Addr(), metricsPort))
}

// startAgents makes the cluster's authority, gives each host its certificate and configuration, and starts its agent.
func (l *Lab) startAgents(ctx context.Context, st *state) error {
	if len(st.Agent) == 0 || st.Unenrolled {
		return nil
	}
	ca, err := pki.NewCA()
	if err != nil {
		return err
	}
	if err := ca.WriteDir(filepath.Join(l.dir, caDir)); err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, h := range l.hosts {
		g.Go(func() error {
			if err := h.enrol(gctx, st, ca); err != nil {
				return err
			}
			return h.startAgent(gctx, st)
		})
	}
	return g.Wait()
}

// enrol writes the host's certificate and the agent's configuration to the host's disk.
func (h *Host) enrol(ctx context.Context, st *state, ca *pki.CA) error {
	roles := []pki.Role{pki.RoleNode}
	if h.number <= st.servers() {
		roles = append(roles, pki.RoleServer)
	}
	cert, err := ca.Issue(h.name, []net.IP{h.Addr().AsSlice(), h.Addr6().AsSlice(), net.IPv4(127, 0, 0, 1)}, roles...)
	if err != nil {
		return err
	}
	pid, err := h.PID(ctx)
	if err != nil {
		return err
	}
	if err := cert.WriteDir(fmt.Sprintf("/proc/%d/root%s", pid, tlsDir)); err != nil {
		return fmt.Errorf("%s: %w", h.name, err)
	}
	return h.WriteFile(ctx, configPath, []byte(h.config(st)), 0o600)
}

// StartAgent starts the host's agent, which must not be running, with additions to its environment.
func (h *Host) StartAgent(ctx context.Context, env ...string) error {
	return h.change(ctx, func(st *state) error { return h.startAgent(ctx, st, env...) })
}

func (h *Host) startAgent(ctx context.Context, st *state, env ...string) error {
	if len(st.Agent) == 0 {
		return nil
	}
	if p, err := h.agent(ctx); err == nil {
		p.Close()
		return fmt.Errorf("%s: its agent runs already, with pid %d", h.name, p.PID)
	} else if !errors.Is(err, pid1.ErrNotRunning) {
		return err
	}
	root, err := h.Root(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	log, err := root.OpenFile(strings.TrimPrefix(AgentLogPath, "/"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("%s: %w", h.name, err)
	}
	defer func() { _ = log.Close() }()
	null, err := root.Open("dev/null")
	if err != nil {
		return fmt.Errorf("%s: %w", h.name, err)
	}
	defer func() { _ = null.Close() }()
	top, err := cgroup2Mount()
	if err != nil {
		return err
	}
	p, err := pid1.Start(ctx, h.lab.socket(h.name), pid1.Spawn{
		Argv: st.Agent, Env: append(append(defaultEnv(), st.AgentEnv...), env...), Dir: "/",
		Cgroup: boot.AgentCgroup(top), Service: agentService, Daemon: true, Files: []*os.File{null, log, log},
	})
	if err != nil {
		return fmt.Errorf("%s: its agent: %w", h.name, err)
	}
	p.Close()
	return nil
}

// agent returns the host's agent; the error is pid1.ErrNotRunning when there is none. The caller closes it.
func (h *Host) agent(ctx context.Context) (*pid1.Process, error) {
	p, err := pid1.Find(ctx, h.lab.socket(h.name), agentService)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", h.name, err)
	}
	return p, nil
}

// SignalAgent sends a signal to the host's agent, to it alone. SIGKILL returns when it has ended.
func (h *Host) SignalAgent(ctx context.Context, sig syscall.Signal) error {
	p, err := h.agent(ctx)
	if err != nil {
		return err
	}
	defer p.Close()
	if err := unix.PidfdSendSignal(int(p.Pidfd.Fd()), sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("%s: signal %v to its agent: %w", h.name, sig, err)
	}
	if sig != syscall.SIGKILL {
		return nil
	}
	return awaitReaped(ctx, h, p)
}

// awaitReaped returns when the agent is gone, also from its pid 1's books.
func awaitReaped(ctx context.Context, h *Host, p *pid1.Process) error {
	for {
		// The pidfd is readable from the exit on; that pid 1 has reaped is seen only by asking it, which it answers in order.
		fds := []unix.PollFd{{Fd: int32(p.Pidfd.Fd()), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, 20); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("%s: poll: %w", h.name, err)
		}
		again, err := h.agent(ctx)
		if errors.Is(err, pid1.ErrNotRunning) {
			return nil
		} else if err != nil {
			return err
		}
		again.Close()
		if again.PID != p.PID {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("%s: its agent does not end: %w", h.name, context.Cause(ctx))
		}
	}
}

// Stall stops the host's agent without ending it (SIGSTOP). All else in the host runs on.
func (h *Host) Stall(ctx context.Context) error { return h.SignalAgent(ctx, syscall.SIGSTOP) }

// Unstall lets the host's agent go on.
func (h *Host) Unstall(ctx context.Context) error { return h.SignalAgent(ctx, syscall.SIGCONT) }

// AgentSocket is the path of the agent's socket, in the host; Dial it with network "unix".
func (h *Host) AgentSocket() string { return agentSocket }

// AgentLog returns what the host's agents have written so far.
func (h *Host) AgentLog(ctx context.Context) (string, error) {
	text, err := h.ReadFile(ctx, AgentLogPath)
	return string(text), err
}

// AwaitAgents returns when the agent of each host takes connections on its socket. An agent that has ended is an error.
func (l *Lab) AwaitAgents(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	for _, h := range l.hosts {
		g.Go(func() error { return h.awaitAgent(gctx) })
	}
	return g.Wait()
}

func (h *Host) awaitAgent(ctx context.Context) error {
	// That a socket starts to listen is announced to nobody, so it is tried.
	const again = 10 * time.Millisecond
	for {
		c, err := h.Dial(ctx, "unix", agentSocket)
		if err == nil {
			return c.Close()
		}
		if p, err := h.agent(ctx); err == nil {
			p.Close()
		} else if errors.Is(err, pid1.ErrNotRunning) {
			return fmt.Errorf("the agent of %s has ended", h.name)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the agent of %s does not listen on %s (%w)", h.name, agentSocket, err)
		case <-time.After(again):
		}
	}
}
