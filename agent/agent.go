package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	agentapi "migrate/agent/api"
	"migrate/agent/console"
	"migrate/agent/move"
	"migrate/agent/port"
	"migrate/agent/volume"
	"migrate/agent/workload"
	clusterapi "migrate/coordinator/api"
)

// Agent is the daemon of one host.
type Agent struct {
	agentapi.UnimplementedAgentServer
	cfg         Config
	log         *slog.Logger
	node        *agentapi.NodeInfo
	host        *host
	moves       *move.Manager
	store       *volume.Store // of files and directories that moves have brought
	hasher      volume.Hasher
	cluster     *cluster
	api         clusterapi.ClusterClient
	incarnation atomic.Uint64 // the newest that was heard of
	metrics     *metrics

	ctx            context.Context
	end            context.CancelFunc
	tasks          sync.WaitGroup
	control, local *grpc.Server
	pages          net.Listener

	starting sync.Mutex // held while a workload is started
	mu       sync.Mutex
	watchers map[uint64]*watcher
}

// Start starts the agent. It returns when all listeners are open and what an earlier run left has been taken up; the
// cluster need not answer yet. The context bounds the start only.
func Start(ctx context.Context, cfg Config) (_ *Agent, err error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	a := &Agent{cfg: cfg, log: cfg.Log.With("host", cfg.Name), watchers: map[uint64]*watcher{}, metrics: newMetrics()}
	a.ctx, a.end = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("starting the agent of %s: %w", cfg.Name, err), a.Close())
		}
	}()
	if a.node, err = describeNode(&cfg); err != nil {
		return nil, err
	}
	if a.cluster, err = dialCluster(&cfg); err != nil {
		return nil, err
	}
	a.api = clusterapi.NewClusterClient(a.cluster)
	if a.store, err = volume.OpenStore(filepath.Join(cfg.DataDir, "volumes")); err != nil {
		return nil, err
	}
	if err := a.openHost(ctx); err != nil {
		return nil, err
	}
	a.moves, err = move.New(move.Config{Node: cfg.Name, BootID: a.node.GetBootId(), Dir: a.movesDir(),
		PagesAddress: a.node.GetPagesAddress(), Host: a.host, Cluster: counting{a.api, a.metrics}, Peers: peers{&a.cfg}, Caller: callerName, Store: a.store, Hasher: &a.hasher, Log: a.log, Failpoint: cfg.Failpoint})
	if err != nil {
		return nil, err
	}
	if err := a.moves.Recover(ctx); err != nil {
		return nil, err
	}
	if err := a.settle(ctx); err != nil {
		return nil, err
	}
	if err := a.listen(); err != nil {
		return nil, err
	}
	a.tasks.Go(a.belong)
	a.log.Info("the agent listens", "control", a.node.GetControlAddress(), "pages", a.node.GetPagesAddress(), "socket", cfg.Socket)
	return a, nil
}

// openHost takes up what surrounds the copies on this host, and the network.
func (a *Agent) openHost(ctx context.Context) error {
	set, stale, err := workload.Open(workload.Config{Dir: filepath.Join(a.cfg.DataDir, "workloads"), Cgroup: a.cfg.Cgroup})
	if err != nil {
		return err
	}
	for _, s := range stale {
		a.log.Warn("a copy of an earlier run is gone", "workload", s.Spec.GetName(), "instance", s.Record.Instance)
	}
	a.host = &host{log: a.log, hasher: &a.hasher, set: set, bridge: a.cfg.Bridge, cgroup: a.cfg.Cgroup, leaving: a.leaving, arrived: a.watch, open: map[string]*gate{},
		consoles: map[uint64]*console.Console{}, typed: map[uint64]map[string]uint64{}}
	if own, err := netip.ParseAddr(a.cfg.Bind); err == nil {
		a.host.own = append(a.host.own, own)
	}
	if a.host.ports, err = port.Open(nil); err != nil && a.cfg.Bridge != "" {
		return err
	} else if err != nil {
		a.log.Warn("workloads get no network of their own on this host", "error", err)
		a.host.ports = nil
		return nil
	}
	for _, s := range stale {
		// Its devices went with its namespaces; its gate did not. One that has come back has the port by the same name.
		if s.Spec.GetBare() || len(set.Named(s.Spec.GetName())) > 0 {
			continue
		}
		if err := a.host.ports.Remove(ctx, s.Spec.GetName()); err != nil { // no reason for a host to be without its agent
			a.log.Error("something is left of a copy of an earlier run", "workload", s.Spec.GetName(), "error", err)
		}
	}
	return nil
}

// settle watches the programs that an earlier run has started, and removes what it was still building.
func (a *Agent) settle(ctx context.Context) error {
	for _, e := range a.host.set.All() {
		if e.Record().PID != 0 {
			a.watch(e)
			if err := a.takeUp(ctx, e); err != nil {
				a.log.Error("the terminal of a workload is not read", "workload", e.Name(), "error", err)
			}
			continue
		}
		if _, _, moving := a.moves.Moving(e.Instance()); moving {
			continue
		}
		if err := a.host.remove(ctx, e); err != nil {
			return err
		}
	}
	return nil
}

// closeTime bounds how long calls that are under way may take to end.
const closeTime = 2 * time.Second

// Close ends the agent and returns when all its goroutines have ended. Programs, and copies that stand still, stay as they
// are.
func (a *Agent) Close() error {
	a.end()
	for _, s := range []*grpc.Server{a.control, a.local} {
		if s == nil {
			continue
		}
		t := time.AfterFunc(closeTime, s.Stop)
		s.GracefulStop()
		t.Stop()
	}
	var errs []error
	if a.pages != nil {
		errs = append(errs, a.pages.Close())
	}
	if a.moves != nil {
		a.moves.Close()
	}
	a.tasks.Wait()
	if a.host != nil {
		errs = append(errs, a.host.closeConsoles())
	}
	if a.cluster != nil {
		errs = append(errs, a.cluster.close())
	}
	if a.host != nil && a.host.ports != nil {
		errs = append(errs, a.host.ports.Close())
	}
	return errors.Join(errs...)
}
