package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	agentapi "migrate/agent/api"
	"migrate/agent/console"
	"migrate/agent/move"
	"migrate/agent/port"
	"migrate/agent/volume"
	"migrate/agent/workload"
	"migrate/engine"
	"migrate/engine/dump"
	"migrate/engine/files"
	"migrate/engine/images"
	"migrate/engine/ns"
	"migrate/engine/procfs"
	"migrate/engine/restore"
	"migrate/engine/task"
)

// host joins the engine, the surroundings of copies and their ports to what package move asks for. It is move.Host.
type host struct {
	log    *slog.Logger
	hasher *volume.Hasher
	set    *workload.Set
	ports  *port.Host // nil without a bridge
	bridge string
	cgroup string
	own    []netip.Addr // of this host, which never move
	// leaving is told before a copy is ended on purpose, so that its end is not reported as the program's own.
	leaving func(instance uint64)
	// arrived is told when a copy runs here.
	arrived func(e *workload.Env)

	mu       sync.Mutex
	open     map[string]*gate // by name: gates hold sockets, so there is one object each
	consoles map[uint64]*console.Console
	typed    map[uint64]map[string]uint64 // counts of copies that arrive, until their consoles are open
}

// outputFile is the name under which a workload's output travels.
const outputFile = "output"

// Open finds the tree of a copy.
func (h *host) Open(ctx context.Context, instance uint64, spec *agentapi.WorkloadSpec, opts *agentapi.MoveOptions) (move.Source, move.Port, error) {
	env, err := h.set.Get(instance)
	if errors.Is(err, workload.ErrUnknown) && spec.GetBare() {
		return h.openBare(ctx, instance, spec, opts)
	}
	if err != nil {
		return nil, nil, err
	}
	cg, err := env.TreeCgroup()
	if err != nil {
		return nil, nil, err
	}
	external, err := outputOf(env)
	if err != nil {
		return nil, nil, err
	}
	terminals, closing, err := terminalsOf(env)
	if err != nil {
		return nil, nil, err
	}
	src, err := dump.Open(ctx, dump.Options{Target: dump.Target{Init: env.Init().PID}, External: external, Cgroup: cg, Terminals: terminals, ExternalUnix: opts.GetExternalUnix()})
	if err != nil {
		return nil, nil, errors.Join(err, closing())
	}
	p, err := h.portOf(ctx, env)
	if err != nil {
		return nil, nil, errors.Join(err, src.Close(ctx), closing())
	}
	return &source{h: h, src: src, env: env, instance: instance, tree: cg, closing: closing}, p, nil
}

// outputOf names the file that a workload's output goes to.
func outputOf(env *workload.Env) (map[files.FileID]string, error) {
	st, err := os.Stat(env.OutputPath())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, fmt.Errorf("%s: its device and inode are unknown", env.OutputPath())
	}
	return map[files.FileID]string{{Dev: sys.Dev, Ino: sys.Ino}: outputFile}, nil
}

// openBare finds the tree of a process that no agent has started, and makes the cgroup in which it can be held.
func (h *host) openBare(ctx context.Context, instance uint64, spec *agentapi.WorkloadSpec, opts *agentapi.MoveOptions) (move.Source, move.Port, error) {
	name := filepath.Join(h.cgroup, fmt.Sprintf("bare-%d", instance))
	cg, err := ns.MakeCgroup(filepath.Join(name, "tree"))
	if err != nil {
		return nil, nil, err
	}
	src, err := dump.Open(ctx, dump.Options{Target: dump.Target{PID: int(spec.GetPid())}, Cgroup: cg,
		NewTerminals: opts.GetNewTerminals(), ExternalUnix: opts.GetExternalUnix()})
	if err != nil {
		return nil, nil, errors.Join(err, removeCgroup(name))
	}
	s := &source{h: h, src: src, instance: instance, cgroup: name, tree: cg, name: spec.GetName()}
	var p move.Port
	if s.before, err = ns.OpenCgroup(src.Processes()[0].PID); err != nil {
		return nil, nil, errors.Join(err, src.Close(ctx), removeCgroup(name))
	}
	if s.addrs, s.obstacles, err = h.floatingOf(ctx, src.Processes()); err == nil && len(s.obstacles) == 0 {
		p, err = h.floatingPort(ctx, s.name, s.addrs, false)
	}
	if err != nil {
		return nil, nil, errors.Join(err, src.Close(ctx), removeCgroup(name))
	}
	return s, p, nil
}

func removeCgroup(name string) error {
	cg, err := ns.MakeCgroup(name)
	if err != nil {
		return err
	}
	return cg.Remove()
}

// Clocks reads the clocks as the tree sees them.
func (h *host) Clocks(_ context.Context, hd move.Handle) (move.Clocks, error) {
	at := move.Clock(unix.CLOCK_MONOTONIC)
	c, err := task.Clocks(procfs.Host, hd.PID)
	if err != nil {
		return move.Clocks{}, err
	}
	return move.Clocks{At: at, Monotonic: time.Duration(c.GetMonotonic()), Boottime: time.Duration(c.GetBoottime())}, nil
}

// offsets are those of a time namespace in which the tree's clocks go on. Offsets are relative to the machine's clocks,
// not to those of the namespace that this program may be in (time_namespaces(7)).
func offsets(c move.Clocks) (ns.Offsets, error) {
	own, err := procfs.Host.ClockOffsets(os.Getpid())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return ns.Offsets{}, err
	}
	boot := move.Clock(unix.CLOCK_BOOTTIME) - move.Clock(unix.CLOCK_MONOTONIC) + c.At // this host's, at the same instant
	return ns.Offsets{Monotonic: c.Monotonic - c.At + own.Monotonic, Boottime: c.Boottime - boot + own.Boottime}, nil
}

// Build makes the surroundings of a copy and a skeleton in them.
func (h *host) Build(ctx context.Context, b move.Build) (_ move.Skeleton, _ move.Port, _ []engine.Obstacle, err error) {
	layout, err := images.UnmarshalLayout(b.Layout)
	if err != nil {
		return nil, nil, nil, err
	}
	off, err := offsets(b.Clocks)
	if err != nil {
		return nil, nil, nil, err
	}
	spec := b.Spec
	if spec.GetBare() { // from here on its record says which addresses it has
		spec = proto.CloneOf(spec)
		spec.Addr = strings.Join(b.Addrs, ",")
	}
	env, err := h.set.New(ctx, workload.Options{Instance: b.Instance, Epoch: b.Epoch, Spec: spec, Offsets: off})
	if err != nil {
		return nil, nil, nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.remove(context.WithoutCancel(ctx), env))
		}
	}()
	p, err := h.makePort(ctx, env, true)
	if err != nil {
		return nil, nil, nil, err
	}
	cg, err := env.TreeCgroup()
	if err != nil {
		return nil, nil, nil, err
	}
	s := &skeleton{h: h, env: env}
	if !b.Spec.GetBare() {
		if s.netns, err = env.NetNS(); err != nil {
			return nil, nil, nil, err
		}
	}
	s.sk, err = restore.Prepare(ctx, restore.Env{
		Parent: env.Init().PID, SetUp: env.SetUp, Cgroup: cg, NetNS: s.netns,
		External: func(name string, _ int) (*os.File, error) {
			if name != outputFile {
				return nil, fmt.Errorf("file %q of the source's host is not known here", name)
			}
			return env.Output()
		},
		Terminal: env.GiveTerminal,
	}, layout)
	if err != nil {
		return nil, nil, nil, errors.Join(err, s.closeNS())
	}
	return s, p, nil, nil
}

// Adopt finds a copy again after a restart of the agent.
func (h *host) Adopt(ctx context.Context, hd move.Handle) (move.Held, move.Port, bool, bool, error) {
	env, err := h.set.Get(hd.Instance)
	if errors.Is(err, workload.ErrUnknown) && hd.Bare && hd.Cgroup != "" {
		return h.adoptBare(ctx, hd)
	}
	if errors.Is(err, workload.ErrUnknown) {
		return nil, nil, false, false, nil
	}
	if err != nil {
		return nil, nil, false, false, err
	}
	cg, err := env.TreeCgroup()
	if err != nil {
		return nil, nil, false, false, err
	}
	p, err := h.portOf(ctx, env)
	if err != nil {
		return nil, nil, false, false, err
	}
	h.unlimit(cg)
	frozen, err := cg.Frozen()
	if err != nil {
		return nil, nil, false, false, err
	}
	populated, err := cg.Populated()
	return &heldTree{h: h, env: env, cgroup: cg}, p, frozen, populated && hd.PID != 0, err
}

// adoptBare finds a bare process again. Its gate has outlived the agent and stands as it was left, open or shut.
func (h *host) adoptBare(ctx context.Context, hd move.Handle) (move.Held, move.Port, bool, bool, error) {
	spec := &agentapi.WorkloadSpec{}
	if len(hd.Spec) > 0 {
		if err := protojson.Unmarshal(hd.Spec, spec); err != nil {
			return nil, nil, false, false, fmt.Errorf("spec of copy %d: %w", hd.Instance, err)
		}
	}
	addrs, err := parsePrefixes(hd.Addrs)
	if err != nil {
		return nil, nil, false, false, err
	}
	t := &heldTree{h: h, name: spec.GetName(), around: hd.Cgroup}
	if t.cgroup, err = ns.MakeCgroup(filepath.Join(hd.Cgroup, "tree")); err != nil {
		return nil, nil, false, false, err
	}
	if hd.Before != "" {
		if t.before, err = ns.MakeCgroup(hd.Before); err != nil {
			return nil, nil, false, false, err
		}
	}
	h.unlimit(t.cgroup)
	frozen, err := t.cgroup.Frozen()
	if err != nil {
		return nil, nil, false, false, err
	}
	populated, err := t.cgroup.Populated()
	if err != nil {
		return nil, nil, false, false, err
	}
	p, err := h.floatingPort(ctx, t.name, addrs, false)
	if err != nil {
		return nil, nil, false, false, err
	}
	return t, p, frozen, populated, nil
}

// Owned records that the copy runs here for good.
func (h *host) Owned(_ context.Context, hd move.Handle, epoch uint64) error {
	env, err := h.set.Get(hd.Instance)
	if err != nil {
		return err
	}
	vpid := hd.VPID // it runs, and may have ended already
	if vpid == 0 {
		if vpid, err = innerID(hd.PID); err != nil {
			return err
		}
	}
	if err := errors.Join(env.SetProgram(hd.PID, vpid), env.SetEpoch(epoch)); err != nil {
		return err
	}
	h.arrived(env)
	return h.openConsole(env, false)
}

// innerID is a process's id in its own pid namespace.
func innerID(pid int) (int, error) {
	st, err := procfs.Host.Status(pid)
	if err != nil {
		return 0, err
	}
	if n := len(st.NSTGID); n > 0 {
		return st.NSTGID[n-1], nil
	}
	return pid, nil
}

// remove takes a copy away with all that surrounds it.
func (h *host) remove(ctx context.Context, env *workload.Env) error {
	h.leaving(env.Instance())
	err := errors.Join(h.closeConsole(env.Instance()), h.removePort(ctx, env, true))
	return errors.Join(env.Remove(ctx), err)
}

// makePort gives a new environment its network: a port on the bridge, if the workload has an address, and loopback. A
// bare process that arrives gets its addresses on this host's own device.
func (h *host) makePort(ctx context.Context, env *workload.Env, arrives bool) (move.Port, error) {
	prefixes, err := parsePrefixes(strings.Split(env.Spec().GetAddr(), ","))
	if err != nil {
		return nil, fmt.Errorf("workload %s: %w", env.Name(), err)
	}
	if env.Spec().GetBare() {
		return h.floatingPort(ctx, env.Name(), prefixes, arrives)
	}
	netNS, err := env.NetNS()
	if err != nil {
		return nil, err
	}
	defer func() { _ = netNS.Close() }() // the port keeps a reference of its own
	if len(prefixes) == 0 {
		return nil, loopbackUp(netNS)
	}
	if h.ports == nil || h.bridge == "" {
		return nil, fmt.Errorf("workload %s asks for the address %s, and this host has no bridge (bridge in the agent's configuration)", env.Name(), env.Spec().GetAddr())
	}
	// What a copy that is gone has left, such as one whose agent died between two steps.
	if err := h.ports.Remove(ctx, env.Name()); err != nil {
		return nil, err
	}
	p, err := h.ports.Create(ctx, port.Spec{Name: env.Name(), Addrs: prefixes, Bridge: h.bridge, NetNS: netNS, Shut: arrives})
	if err != nil {
		return nil, err
	}
	if err := env.SetPort(p.Name); err != nil {
		return nil, errors.Join(err, p.Destroy(ctx))
	}
	return h.keep(p), nil
}

func loopbackUp(netNS *os.File) error {
	nl, err := netlink.NewHandleAt(netns.NsHandle(netNS.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink in the workload's namespace: %w", err)
	}
	defer nl.Close()
	lo, err := nl.LinkByName("lo")
	if err == nil {
		err = nl.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("bringing the workload's lo up: %w", err)
	}
	return nil
}

func (h *host) keep(p *port.Port) move.Port {
	h.mu.Lock()
	defer h.mu.Unlock()
	g := &gate{Gate: p.Gate, end: func(ctx context.Context, _ bool) error { return p.Destroy(ctx) }}
	h.open[p.Name] = g
	return g
}

// portOf returns the port of an environment; nil where it has none.
func (h *host) portOf(ctx context.Context, env *workload.Env) (move.Port, error) {
	h.mu.Lock()
	g := h.open[env.Name()]
	h.mu.Unlock()
	if g != nil {
		return g, nil
	}
	if env.Spec().GetBare() {
		prefixes, err := parsePrefixes(strings.Split(env.Spec().GetAddr(), ","))
		if err != nil {
			return nil, err
		}
		return h.floatingPort(ctx, env.Name(), prefixes, false)
	}
	name := env.Record().Port
	if name == "" || h.ports == nil {
		return nil, nil
	}
	netNS, err := env.NetNS()
	if err != nil {
		return nil, err
	}
	defer func() { _ = netNS.Close() }()
	found, err := h.ports.Find(ctx, name, netNS, "")
	if err != nil {
		return nil, err
	}
	return h.keep(found), nil
}

// removePort takes away the port of a copy. gone: the copy has left this host or never ran on it, so addresses of the
// host's that belong to it leave too.
func (h *host) removePort(ctx context.Context, env *workload.Env, gone bool) error {
	if env.Spec().GetBare() && gone {
		if _, err := h.portOf(ctx, env); err != nil { // after a restart it is known again only then
			return err
		}
	}
	return h.endPort(ctx, env.Name(), env.Record().Port, gone)
}

func (h *host) endPort(ctx context.Context, name, recorded string, gone bool) error {
	h.mu.Lock()
	g := h.open[name]
	delete(h.open, name)
	h.mu.Unlock()
	if g != nil {
		return g.end(ctx, gone)
	}
	if recorded == "" || h.ports == nil {
		return nil
	}
	return h.ports.Remove(ctx, recorded)
}

// gate is a port as package move sees it: frames as bytes.
type gate struct {
	*port.Gate
	end func(ctx context.Context, gone bool) error
}

func (g *gate) Arm(context.Context) error { return g.Gate.Arm(0) }

// ShutIngress lets nothing more in.
func (g *gate) ShutIngress() error {
	err := g.Gate.ShutIngress()
	if errors.Is(err, port.ErrNotSettled) {
		err = fmt.Errorf("%w: %w", move.ErrTransient, err)
	}
	return err
}

// Take returns captured frames, each with its virtio_net_hdr before it.
func (g *gate) Take() ([][]byte, error) {
	list, err := g.Gate.Take()
	out := make([][]byte, 0, len(list))
	for _, f := range list {
		out = append(out, append(append(make([]byte, 0, len(f.Offload)+len(f.Data)), f.Offload[:]...), f.Data...))
	}
	return out, err
}

// Deliver hands frames that Take returned on another host to the tree.
func (g *gate) Deliver(list [][]byte) (int, error) {
	out := make([]port.Frame, 0, len(list))
	for i, b := range list {
		var f port.Frame
		n := copy(f.Offload[:], b)
		if n < len(f.Offload) || len(b) == n {
			return 0, fmt.Errorf("frame %d of %d has %d bytes", i, len(list), len(b))
		}
		f.Data = b[n:]
		out = append(out, f)
	}
	return g.Gate.Deliver(out)
}

// Neighbours lists whom the tree's kernel knows on its network.
func (g *gate) Neighbours(ctx context.Context) ([]byte, error) {
	list, err := g.Gate.Neighbours(ctx)
	if err != nil {
		return nil, err
	}
	return json.Marshal(list)
}

// InstallNeighbours makes them known here.
func (g *gate) InstallNeighbours(ctx context.Context, b []byte) error {
	var list []port.Neighbour
	if err := json.Unmarshal(b, &list); err != nil {
		return fmt.Errorf("neighbours: %w", err)
	}
	return g.Gate.InstallNeighbours(ctx, list)
}
