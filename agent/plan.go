package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentapi "migrate/agent/api"
	"migrate/agent/move"
	"migrate/agent/policy"
	"migrate/agent/workload"
	"migrate/engine"
	"migrate/engine/dump"
	"migrate/engine/files"
	"migrate/engine/procfs"
	"migrate/engine/task"
	"migrate/pagexfer"
)

// PlanSource checks a tree of this host for everything that would stop a move. It touches nothing.
func (a *Agent) PlanSource(ctx context.Context, req *agentapi.PlanSourceRequest) (*agentapi.PlanSourceReply, error) {
	opts, env, err := a.planTarget(req)
	if err != nil {
		return nil, err
	}
	if env != nil {
		var closing func() error
		if opts.Terminals, closing, err = terminalsOf(env); err != nil {
			return nil, err
		}
		defer func() { _ = closing() }() // a duplicate
	}
	opts.NewTerminals, opts.ExternalUnix = env == nil && req.GetOptions().GetNewTerminals(), req.GetOptions().GetExternalUnix()
	src, err := dump.Open(ctx, opts)
	if err != nil {
		return nil, planError(err)
	}
	defer func() {
		if err := src.Close(context.WithoutCancel(ctx)); err != nil {
			a.log.Warn("a plan left something behind", "error", err)
		}
	}()
	obstacles, err := src.Obstacles(ctx)
	if err != nil {
		return nil, planError(err)
	}
	reply := &agentapi.PlanSourceReply{Obstacles: move.ObstaclesTo(a.cfg.Name, obstacles)}
	tree := src.Processes()
	reply.Pid = int32(tree[0].PID)
	for _, p := range tree {
		reply.Pids = append(reply.Pids, int32(p.PID))
	}
	if args, err := procfs.Host.Cmdline(tree[0].PID); err == nil { // only for people
		reply.Command = strings.Join(args, " ")
	}
	switch {
	case env != nil && env.Spec().GetAddr() != "":
		reply.Addresses = strings.Split(env.Spec().GetAddr(), ",")
	case env == nil:
		addrs, against, err := a.host.floatingOf(ctx, tree)
		if err != nil {
			return nil, err
		}
		reply.Addresses = prefixStrings(addrs)
		reply.Obstacles = append(reply.Obstacles, move.ObstaclesTo(a.cfg.Name, against)...)
	}
	if reply.Requirements, reply.Figures, err = survey(tree); err != nil {
		return nil, planError(err)
	}
	block := func(kind, where, remedy, format string, args ...any) {
		reply.Obstacles = append(reply.Obstacles, &agentapi.Obstacle{Host: a.cfg.Name, Kind: kind, Where: where, Reason: fmt.Sprintf(format, args...), Remedy: remedy})
	}
	if err := checkRoom(map[string]uint64{a.movesDir(): recordRoom}, block); err != nil {
		return nil, err
	}
	needed, err := a.planContents(ctx, req, env, src, reply)
	if err != nil {
		return nil, planError(err)
	}
	if sockets, err := tcpSockets(tree); err == nil { // only for people
		for _, s := range sockets {
			if !s.listens {
				reply.Figures.Connections++
			}
		}
	}
	if reply.Requirements.Extra, err = extraOf(tree, needed, env == nil || env.Spec().GetBare()); err != nil {
		return nil, planError(err)
	}
	if reply.Requirements.Mtu, err = a.linkMTU(env, reply.GetAddresses()); err != nil {
		return nil, err
	}
	if reply.Requirements.Macs, err = a.linkMACs(env, reply.GetAddresses()); err != nil {
		return nil, err
	}
	reply.Requirements.CpuFeatures, reply.Requirements.KernelFeatures = a.node.GetCpuFeatures(), neededFeatures
	reply.Requirements.Arch, reply.Requirements.Addresses = a.node.GetArch(), reply.Addresses
	return reply, nil
}

// planContents lists the files that the tree needs and the volumes that move with it, and returns what it needs besides.
func (a *Agent) planContents(ctx context.Context, req *agentapi.PlanSourceRequest, env *workload.Env, src *dump.Source, reply *agentapi.PlanSourceReply) ([]files.Needed, error) {
	var spec *agentapi.WorkloadSpec
	if env != nil {
		spec = env.Spec()
	}
	volumes, err := move.Volumes(spec, req.GetOptions())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	needs := reply.Requirements
	var against []engine.Obstacle
	if needs.Volumes, against, err = planVolumes(volumes); err != nil {
		return nil, err
	}
	reply.Obstacles = append(reply.Obstacles, move.ObstaclesTo(a.cfg.Name, against)...)
	units := slices.Concat(move.DirUnits(volumes), comesAlong(src))
	content := filesMode(req.GetOptions()) != agentapi.FilesMode_FILES_MODE_SHARED
	needs.Files, err = contentsOf(ctx, &a.hasher, src.Processes(), src.Needed(), units, content)
	return withoutContents(src.Needed(), units), err
}

// extraNeeds is what agents tell each other beside the requirements.
type extraNeeds struct {
	Files []files.Needed  `json:"files"`
	Tasks json.RawMessage `json:"tasks,omitempty"` // task.Needs
	Bare  bool            `json:"bare,omitempty"`  // its addresses are on a host's own device
}

func extraOf(tree []*engine.Process, needed []files.Needed, bare bool) ([]byte, error) {
	n, err := task.ReadNeeds(procfs.Host, tree)
	if err != nil {
		return nil, err
	}
	tasks, err := n.Marshal()
	if err != nil {
		return nil, err
	}
	return json.Marshal(extraNeeds{Files: needed, Tasks: tasks, Bare: bare})
}

// neededFeatures are the kernel features without which a copy cannot be built, as engine/kernel names them.
var neededFeatures = []string{"time namespaces", "checkpoint and restore support", "pidfd_getfd(2)"}

// planTarget says which tree is meant.
func (a *Agent) planTarget(req *agentapi.PlanSourceRequest) (dump.Options, *workload.Env, error) {
	name := req.GetWorkload()
	if name == "" {
		return dump.Options{Target: dump.Target{PID: int(req.GetPid())}}, a.envOf(int(req.GetPid())), nil
	}
	for _, e := range a.settledCopies() {
		if e.Name() != name || a.over(e) {
			continue
		}
		external, err := outputOf(e)
		return dump.Options{Target: dump.Target{Init: e.Init().PID}, External: external}, e, err
	}
	return dump.Options{}, nil, status.Errorf(codes.FailedPrecondition, "workload %s does not run on this host", name)
}

// envOf finds the environment that a process is the program of; nil for a bare process.
func (a *Agent) envOf(pid int) *workload.Env {
	for _, e := range a.settledCopies() {
		if e.Record().PID == pid {
			return e
		}
	}
	return nil
}

// planError gives errors of finding a tree the code of a request that cannot work.
func planError(err error) error {
	for _, e := range []error{dump.ErrNoProcess, dump.ErrKernelThread, dump.ErrEnded, dump.ErrSelf, dump.ErrEmptyTree} {
		if errors.Is(err, e) {
			return status.Error(codes.FailedPrecondition, err.Error())
		}
	}
	return err
}

// survey counts what a tree has, and lists what it needs of a destination.
func survey(tree []*engine.Process) (*agentapi.Requirements, *agentapi.PlanFigures, error) {
	needs, fig := &agentapi.Requirements{}, &agentapi.PlanFigures{Processes: uint32(len(tree))}
	for _, p := range tree {
		st, err := procfs.Host.Status(p.PID)
		if errors.Is(err, procfs.ErrGone) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		maps, err := procfs.Host.Maps(p.PID)
		if err != nil && !errors.Is(err, procfs.ErrGone) {
			return nil, nil, err
		}
		fds, err := procfs.Host.FDs(p.PID)
		if err != nil && !errors.Is(err, procfs.ErrGone) {
			return nil, nil, err
		}
		fig.Threads += uint32(len(p.Threads))
		fig.Mappings += uint32(len(maps))
		fig.Descriptors += uint32(len(fds))
		fig.ResidentBytes += st.VMRSS
	}
	needs.MemoryBytes = fig.ResidentBytes
	predict(fig)
	return needs, fig, nil
}

// What a plan assumes where nothing has been measured: the rate of one page stream, the cost of a freeze, of a process, of a
// thread, and of a descriptor in it.
const (
	assumedBandwidth = 400e6
	freezeCost       = 10 * time.Millisecond
	processCost      = 2 * time.Millisecond
	threadCost       = 50 * time.Microsecond
	descriptorCost   = 30 * time.Microsecond
)

// predict estimates the move of a tree that writes little.
func predict(f *agentapi.PlanFigures) {
	f.BandwidthBytesPerSecond = assumedBandwidth
	fixed := freezeCost + time.Duration(f.Processes)*processCost + time.Duration(f.Threads)*threadCost + time.Duration(f.Descriptors)*descriptorCost
	rounds, copying, fc := policy.Idle(f.ResidentBytes/pagexfer.PageSize, assumedBandwidth/pagexfer.PageSize, fixed)
	f.Rounds, f.TotalMs, f.DowntimeMs = uint32(rounds), float64(copying+fc.Blackout)/float64(time.Millisecond), float64(fc.Blackout)/float64(time.Millisecond)
}

// PlanDestination checks this host against what a tree needs. It touches nothing.
func (a *Agent) PlanDestination(ctx context.Context, req *agentapi.PlanDestinationRequest) (*agentapi.PlanDestinationReply, error) {
	needs := req.GetRequirements()
	free, err := meminfo("MemAvailable")
	if err != nil {
		return nil, err
	}
	reply := &agentapi.PlanDestinationReply{MemoryFreeBytes: free}
	block := func(kind, where, remedy, format string, args ...any) {
		reply.Obstacles = append(reply.Obstacles, &agentapi.Obstacle{Host: a.cfg.Name, Kind: kind, Where: where, Reason: fmt.Sprintf(format, args...), Remedy: remedy})
	}
	if needs.GetArch() != "" && needs.GetArch() != a.node.GetArch() {
		block("processor", "host", "", "the processor is a %s, the program runs on a %s", a.node.GetArch(), needs.GetArch())
	} else if missing := without(needs.GetCpuFeatures(), a.node.GetCpuFeatures()); len(missing) > 0 {
		block("processor", "host", "choose a host with the same or a newer processor", "the processor lacks %s, which the program may use", strings.Join(missing, ", "))
	}
	if missing := without(needs.GetKernelFeatures(), a.node.GetKernelFeatures()); len(missing) > 0 {
		block("kernel", "host", "see `migrate check` there", "the kernel lacks %s", strings.Join(missing, ", "))
	}
	if want := needs.GetMemoryBytes() + memoryReserve; free < want {
		block("memory", "host", "", "%d MiB of memory are free, %d MiB are needed", free>>20, want>>20)
	}
	if err := a.checkContents(ctx, needs, req.GetOptions(), block); err != nil {
		return nil, err
	}
	var extra extraNeeds
	if b := needs.GetExtra(); len(b) > 0 {
		if err := json.Unmarshal(b, &extra); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "what the tree needs: %v", err)
		}
	}
	if len(extra.Tasks) > 0 {
		n, err := task.UnmarshalNeeds(extra.Tasks)
		if err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		against, err := task.CheckNeeds(n)
		if err != nil {
			return nil, err
		}
		reply.Obstacles = append(reply.Obstacles, move.ObstaclesTo(a.cfg.Name, against)...)
	}
	reply.Obstacles = append(reply.Obstacles, move.ObstaclesTo(a.cfg.Name, files.Precheck("/", extra.Files))...)
	for _, e := range a.host.set.Named(req.GetWorkload()) {
		if req.GetWorkload() != "" && !a.over(e) {
			block("workload", req.GetWorkload(), "", "a copy of %s is here already", req.GetWorkload())
		}
	}
	a.planAddresses(needs, extra.Bare, block)
	if a.host.ports != nil {
		err = a.planLinks(ctx, needs, extra.Bare, block)
	}
	return reply, err
}

// memoryReserve is what a host keeps for itself beside a workload that arrives.
const memoryReserve = 64 << 20

// without lists what of a is not in b.
func without(a, b []string) []string {
	var out []string
	for _, s := range a {
		if !slices.Contains(b, s) {
			out = append(out, s)
		}
	}
	return out
}
