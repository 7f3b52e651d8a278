package move

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	agentapi "migrate/agent/api"
	"migrate/agent/volume"
	"migrate/coordinator/handoff"
	"migrate/engine"
	"migrate/pagexfer"
)

// Config of a Manager.
type Config struct {
	Node, BootID string
	Dir          string // of the durable records
	PagesAddress string // where peers dial the page stream
	Host         Host
	Cluster      Cluster
	Peers        Peers
	Caller       func(context.Context) string // the name of the host that calls service Peer, as it has proved it
	Store        *volume.Store                // of files and directories that moves bring
	Hasher       *volume.Hasher               // of files that are compared
	Log          *slog.Logger
	// Failpoint, if not nil, is called before and after each action with a name such as "source.freeze.before".
	Failpoint func(point string)
}

// Manager is all moves that this host takes part in.
type Manager struct {
	cfg   Config
	ctx   context.Context
	end   context.CancelFunc
	tasks sync.WaitGroup

	mu    sync.Mutex
	moves map[key]*move
}

type key struct {
	incarnation uint64
	migration   string
	role        handoff.Role
}

// move is one migration in one role.
type move struct {
	source      *source
	destination *destination
	workload    string
	id          handoff.Ref
	pids        []int // of a source's tree, when it was claimed
	cancel      context.CancelFunc
	// As of the last step.
	sourcePhase      handoff.SourcePhase
	destinationPhase handoff.DestinationPhase
	over             bool
}

// New opens the directory of records; Recover then takes up what is in it.
func New(cfg Config) (*Manager, error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Manager{cfg: cfg, ctx: ctx, end: cancel, moves: map[key]*move{}}, nil
}

// Close ends all loops. Trees stay as they are: a source that has not voted is let go by its tracer's end, a frozen one
// stays frozen, and the next start takes them up.
func (m *Manager) Close() {
	m.end()
	m.tasks.Wait()
}

func keyOf(ref handoff.Ref, role handoff.Role) key { return key{ref.Incarnation, ref.Migration, role} }

func (m *Manager) find(ref handoff.Ref, role handoff.Role) *move {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.moves[keyOf(ref, role)]
}

// settled is called by a loop after each step, by its own goroutine.
func (m *Manager) settled(ref handoff.Ref, role handoff.Role, over bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	mv := m.moves[keyOf(ref, role)]
	if mv == nil {
		return
	}
	if mv.source != nil {
		mv.sourcePhase = mv.source.loop.state.Phase
	} else {
		mv.destinationPhase = mv.destination.loop.state.Phase
	}
	if over && !mv.over {
		m.tasks.Go(func() { m.retire(mv) })
	}
	mv.over = over
}

func (m *Manager) phaseOfSource(ref handoff.Ref) handoff.SourcePhase {
	m.mu.Lock()
	defer m.mu.Unlock()
	if mv := m.moves[keyOf(ref, handoff.RoleSource)]; mv != nil {
		return mv.sourcePhase
	}
	return handoff.SourceIdle
}

func (m *Manager) phaseOfDestination(ref handoff.Ref) handoff.DestinationPhase {
	m.mu.Lock()
	defer m.mu.Unlock()
	if mv := m.moves[keyOf(ref, handoff.RoleDestination)]; mv != nil {
		return mv.destinationPhase
	}
	return handoff.DestinationIdle
}

// Order carries out an order of the leader.
// An error says that it is not known whether the order was taken.
func (m *Manager) Order(ctx context.Context, req *agentapi.OrderRequest) (*agentapi.OrderReply, error) {
	ref, role, kind := refOf(req.GetRef()), roleOf(req.GetRole()), orderOf(req)
	var err error
	switch {
	case role == handoff.RoleNone || ref.Migration == "":
		err = &refusal{agentapi.Refusal_REFUSAL_UNKNOWN_MIGRATION, "the order names no role or no migration"}
	case req.GetRetune() != nil:
		err = m.retune(ref, req.GetRetune().GetOptions())
	case role == handoff.RoleSource:
		err = m.orderSource(ctx, req, ref, kind)
	default:
		err = m.orderDestination(ctx, req, ref, kind)
	}
	if ctx.Err() != nil || errors.Is(err, errStopped) {
		return nil, status.FromContextError(cmp.Or(ctx.Err(), context.Canceled)).Err()
	}
	return replyOf(err), nil
}

// A refusal is an order that was not taken.
type refusal struct {
	code   agentapi.Refusal
	reason string
}

func (r *refusal) Error() string { return r.reason }

func replyOf(err error) *agentapi.OrderReply {
	var own *refusal
	var machine *handoff.Refusal
	var un *unsupportedError
	switch {
	case err == nil:
		return &agentapi.OrderReply{Accepted: true}
	case errors.As(err, &own):
		return &agentapi.OrderReply{Refusal: own.code, Reason: own.reason}
	case errors.As(err, &machine):
		return &agentapi.OrderReply{Refusal: refusals[machine.Code], Reason: machine.Error()}
	case errors.As(err, &un):
		return &agentapi.OrderReply{Refusal: agentapi.Refusal_REFUSAL_UNSUPPORTED, Reason: un.Error()}
	}
	// It was taken, and what it asked for failed: that is an event of its own, which the machine has reported.
	return &agentapi.OrderReply{Accepted: true, Reason: err.Error()}
}

func (m *Manager) retune(ref handoff.Ref, o *agentapi.MoveOptions) error {
	mv := m.find(ref, handoff.RoleSource)
	if mv == nil {
		return &refusal{agentapi.Refusal_REFUSAL_UNKNOWN_MIGRATION, "this host is not the source of such a migration"}
	}
	mv.source.retune(o)
	return nil
}

func (m *Manager) orderSource(ctx context.Context, req *agentapi.OrderRequest, ref handoff.Ref, kind handoff.OrderKind) error {
	mv := m.find(ref, handoff.RoleSource)
	if mv == nil {
		var err error
		if mv, err = m.newSource(ctx, req, ref, kind); err != nil {
			return err
		}
	}
	if sw := req.GetSwitch(); sw != nil && sw.GetMaxDowntimeNs() > 0 {
		mv.source.retune(&agentapi.MoveOptions{MaxDowntimeNs: sw.GetMaxDowntimeNs()})
	}
	err := mv.source.loop.call(ctx, handoff.SourceEvent{Kind: handoff.SourceOrdered, Order: kind, Ref: ref})
	if m.phaseOfSource(mv.id) == handoff.SourceIdle {
		m.refused(mv, err)
	}
	return err
}

// newSource makes the hands for a migration that is not known here. Only PrepareSource opens a tree.
func (m *Manager) newSource(ctx context.Context, req *agentapi.OrderRequest, ref handoff.Ref, kind handoff.OrderKind) (*move, error) {
	ref.Attempt = 0
	s := &source{m: m, id: ref, log: m.cfg.Log.With("migration", ref.Migration, "role", "source"), workload: req.GetWorkload(),
		rec: Record{Role: handoff.RoleSource, BootID: m.cfg.BootID, Workload: req.GetWorkload(), Epoch: req.GetRef().GetEpoch()}}
	s.rec.Handle.Instance = ref.Instance
	if p := req.GetPrepareSource(); kind == handoff.OrderPrepareSource {
		if err := s.openTree(ctx, p); err != nil {
			return nil, err
		}
	}
	mv := &move{source: s, workload: req.GetWorkload(), id: ref, pids: s.rec.Handle.PIDs}
	if err := m.startSource(mv); err != nil {
		if s.tree != nil {
			err = errors.Join(err, s.tree.Close())
		}
		return nil, err
	}
	return mv, nil
}

// startSource puts the move into the table and starts its loop.
func (m *Manager) startSource(mv *move) error {
	s := mv.source
	s.ctx, mv.cancel = context.WithCancel(m.ctx)
	s.loop = newLoop(s.log, hands[handoff.Source, handoff.SourceEvent](s), m.failpoint("source"))
	s.link = newLink(&m.cfg, s.log, handoff.RoleSource, s.rec.Epoch, func(ctx context.Context, order handoff.OrderKind, ref handoff.Ref) {
		s.loop.post(ctx, handoff.SourceEvent{Kind: handoff.SourceOrdered, Order: order, Ref: ref})
	})
	if err := m.add(mv); err != nil {
		mv.cancel()
		return err
	}
	m.tasks.Go(func() {
		s.loop.run(s.ctx)
		s.work.stop(errStopped)
		s.link.asked.stop(errStopped)
	})
	m.tasks.Go(func() { s.link.run(s.ctx) })
	return nil
}

// openTree finds the tree of the copy, without touching it, and takes over what the order says.
func (s *source) openTree(ctx context.Context, p *agentapi.PrepareSource) error {
	var err error
	if s.options, err = parseOptions(p.GetOptions()); err != nil {
		return err
	}
	s.spec, s.peerNode, s.peerInstance = p.GetSpec(), p.GetDestination(), p.GetDestinationInstance()
	s.rec.PeerInstance = s.peerInstance
	if s.rec.Peer, err = protojson.Marshal(s.peerNode); err != nil {
		return fmt.Errorf("destination: %w", err)
	}
	tree, port, err := s.m.cfg.Host.Open(ctx, s.id.Instance, s.spec, s.options.asked)
	if err != nil {
		return &refusal{agentapi.Refusal_REFUSAL_NO_SUCH_PROCESS, err.Error()}
	}
	s.tree, s.held, s.port = tree, tree, port
	s.rec.Handle = tree.Handle()
	s.rec.Handle.Spec = specJSON(s.spec)
	return nil
}

// add puts a move into the table, unless a tree that overlaps is being moved already.
func (m *Manager) add(mv *move) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := keyOf(mv.id, handoff.RoleSource)
	if mv.destination != nil {
		k.role = handoff.RoleDestination
	}
	if m.moves[k] != nil {
		return &refusal{agentapi.Refusal_REFUSAL_WRONG_PHASE, "another order of the same migration was faster; repeat this one"}
	}
	for _, other := range m.moves {
		if mv.source == nil || other.source == nil || other.over {
			continue
		}
		if i := slices.IndexFunc(mv.pids, func(pid int) bool { return slices.Contains(other.pids, pid) }); i >= 0 {
			return &refusal{agentapi.Refusal_REFUSAL_OVERLAP, fmt.Sprintf("pid %d is part of %s, which migration %s moves already",
				mv.pids[i], other.workload, other.id.Migration)}
		}
	}
	m.moves[k] = mv
	return nil
}

func (m *Manager) orderDestination(ctx context.Context, req *agentapi.OrderRequest, ref handoff.Ref, kind handoff.OrderKind) error {
	mv := m.find(ref, handoff.RoleDestination)
	if mv == nil {
		ref := withAttempt(ref, 0)
		d := &destination{m: m, id: ref, epoch: req.GetRef().GetEpoch(), log: m.cfg.Log.With("migration", ref.Migration, "role", "destination"), workload: req.GetWorkload(),
			rec: Record{Role: handoff.RoleDestination, BootID: m.cfg.BootID, Workload: req.GetWorkload(), Epoch: req.GetRef().GetEpoch()}, arriving: newFrames()}
		d.rec.Handle.Instance = ref.Instance
		if p := req.GetPrepareDestination(); p != nil {
			d.spec, d.peer, d.options = p.GetSpec(), p.GetSourceInstance(), p.GetOptions()
			d.from, d.rec.PeerInstance = p.GetSource().GetName(), d.peer
			var err error
			if d.rec.Peer, err = protojson.Marshal(p.GetSource()); err != nil {
				return err
			}
			d.rec.Handle.Spec = specJSON(d.spec)
		}
		mv = &move{destination: d, workload: req.GetWorkload(), id: ref}
		if err := m.startDestination(mv); err != nil {
			return err
		}
	}
	err := mv.destination.loop.call(ctx, handoff.DestinationEvent{Kind: handoff.DestinationOrdered, Order: kind, Ref: ref})
	if u := (*undoneError)(nil); errors.As(err, &u) {
		err = &refusal{agentapi.Refusal_REFUSAL_DISK, fmt.Sprintf("the move cannot be recorded: %v; make room there, or move to another host", u)}
	}
	if m.phaseOfDestination(mv.id) == handoff.DestinationIdle {
		m.refused(mv, err)
	}
	return err
}

// startDestination puts the move into the table and starts its loop.
func (m *Manager) startDestination(mv *move) error {
	d := mv.destination
	d.ctx, mv.cancel = context.WithCancel(m.ctx)
	d.loop = newLoop(d.log, hands[handoff.Destination, handoff.DestinationEvent](d), m.failpoint("destination"))
	d.link = newLink(&m.cfg, d.log, handoff.RoleDestination, d.rec.Epoch, func(ctx context.Context, order handoff.OrderKind, ref handoff.Ref) {
		d.loop.post(ctx, handoff.DestinationEvent{Kind: handoff.DestinationOrdered, Order: order, Ref: ref})
	})
	if err := m.add(mv); err != nil {
		mv.cancel()
		return err
	}
	m.tasks.Go(func() {
		d.loop.run(d.ctx)
		d.work.stop(errStopped)
		d.link.asked.stop(errStopped)
	})
	m.tasks.Go(func() { d.link.run(d.ctx) })
	return nil
}

func (m *Manager) failpoint(role string) func(string) {
	if m.cfg.Failpoint == nil {
		return nil
	}
	return func(point string) { m.cfg.Failpoint(role + "." + point) }
}

// Recover takes up the moves of an earlier run of the agent. A record of another boot is of copies that are gone.
func (m *Manager) Recover(ctx context.Context) error {
	entries, err := os.ReadDir(m.cfg.Dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(m.cfg.Dir, e.Name())
		f, rec, err := open(path)
		if errors.Is(err, ErrNoRecord) { // the agent died before the first write: nothing rests on it
			if err := os.Remove(path); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		if err := m.recover(ctx, f, rec); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

func (m *Manager) recover(ctx context.Context, f *file, rec *Record) error {
	rebooted := rec.BootID != m.cfg.BootID
	var held Held
	var port Port
	var frozen, whole bool
	if !rebooted {
		var err error
		if held, port, frozen, whole, err = m.cfg.Host.Adopt(ctx, rec.Handle); err != nil {
			return err
		}
	}
	spec := &agentapi.WorkloadSpec{}
	if len(rec.Handle.Spec) > 0 {
		if err := protojson.Unmarshal(rec.Handle.Spec, spec); err != nil {
			return fmt.Errorf("spec: %w", err)
		}
	}
	id := withAttempt(rec.ref(), 0)
	log := m.cfg.Log.With("migration", rec.ref().Migration, "role", rec.Role.String())
	if rec.Role == handoff.RoleSource {
		s := &source{m: m, id: id, log: log, peerInstance: rec.PeerInstance, workload: rec.Workload, rec: *rec, file: f, spec: spec, held: held, port: port, units: rec.Units, adopted: true}
		s.view.reason = restarted("source", rebooted)
		if frozen {
			s.stopped = time.Now() // for what is left of it
		}
		mv := &move{source: s, workload: rec.Workload, id: id, pids: rec.Handle.PIDs}
		if err := m.startSource(mv); err != nil {
			return err
		}
		ev := handoff.SourceEvent{Kind: handoff.SourceRecovered, Disk: rec.Source, Frozen: frozen}
		if rebooted {
			ev.Kind = handoff.SourceRebooted
		}
		s.loop.post(ctx, ev)
		return nil
	}
	from := &agentapi.NodeInfo{}
	if len(rec.Peer) > 0 {
		if err := protojson.Unmarshal(rec.Peer, from); err != nil {
			return fmt.Errorf("peer: %w", err)
		}
	}
	d := &destination{m: m, id: id, epoch: rec.Epoch, peer: rec.PeerInstance, from: from.GetName(), log: log, workload: rec.Workload, rec: *rec, file: f, spec: spec, held: held, port: port, arriving: newFrames()}
	d.view.reason = restarted("destination", rebooted)
	mv := &move{destination: d, workload: rec.Workload, id: id}
	if err := m.startDestination(mv); err != nil {
		return err
	}
	if rec.Destination.Stage == handoff.DestinationHasResumed {
		whole = held != nil // what was let run may have ended by itself
	}
	ev := handoff.DestinationEvent{Kind: handoff.DestinationRecovered, Disk: rec.Destination, Whole: whole}
	if rebooted {
		if rec.Destination.Stage == handoff.DestinationDestroying { // the copy is gone; its files outlive a reboot
			if err := m.cfg.Store.Abort(id.Instance); err != nil {
				return err
			}
		}
		ev.Kind = handoff.DestinationRebooted
	}
	d.loop.post(ctx, ev)
	return nil
}

// restarted is why a move of an earlier run cannot go on as it was.
func restarted(side string, rebooted bool) string {
	if rebooted {
		return fmt.Sprintf("the host of the %s was restarted, and its copy is gone", side)
	}
	return fmt.Sprintf("the agent of the %s was restarted", side)
}

// retire removes a move that is over once the log has closed it: until then a repeated order must find what became of it.
func (m *Manager) retire(mv *move) {
	l := (*link)(nil)
	if mv.source != nil {
		l = mv.source.link
	} else {
		l = mv.destination.link
	}
	for wait := time.Second; pause(m.ctx, wait); wait = min(2*wait, 30*time.Second) {
		r, err := l.read(m.ctx, mv.id.Migration)
		if err != nil || !r.GetClosed() {
			continue
		}
		m.drop(mv)
		if err := mv.removeRecord(); err != nil {
			m.cfg.Log.Warn("the record of a move that is over stays behind", "migration", mv.id.Migration, "error", err)
		}
		return
	}
}

// refused drops a move whose first order the machine did not take, with what was opened for it. After any other error of
// that order, such as the end of its context, the machine may be carrying it out.
func (m *Manager) refused(mv *move, err error) {
	var machine *handoff.Refusal
	var own *refusal
	if !errors.As(err, &machine) && !errors.As(err, &own) || !m.drop(mv) {
		return
	}
	var errs []error
	if s := mv.source; s != nil && s.tree != nil {
		errs = append(errs, s.tree.Close()) // with the gate of a bare process
	}
	if err := errors.Join(append(errs, mv.removeRecord())...); err != nil {
		m.cfg.Log.Warn("an order that was refused has left something behind", "migration", mv.id.Migration, "error", err)
	}
}

// drop takes a move out of the table and ends its loop: one that is over, or one whose first order was refused. It reports
// false when somebody else has.
func (m *Manager) drop(mv *move) bool {
	k := keyOf(mv.id, handoff.RoleSource)
	if mv.destination != nil {
		k.role = handoff.RoleDestination
	}
	m.mu.Lock()
	mine := m.moves[k] == mv
	if mine {
		delete(m.moves, k)
	}
	m.mu.Unlock()
	mv.cancel()
	if mv.source != nil {
		<-mv.source.loop.ended
	} else {
		<-mv.destination.loop.ended
	}
	return mine
}

func (mv *move) removeRecord() error {
	f := (*file)(nil)
	if mv.source != nil {
		f = mv.source.file
	} else {
		f = mv.destination.file
	}
	if f == nil {
		return nil
	}
	return f.remove()
}

// Moving says which migration a copy is part of, and in what state; ok is false for one that rests.
func (m *Manager) Moving(instance uint64) (migration string, state agentapi.CopyState, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for k, mv := range m.moves {
		switch {
		case mv.over:
		case mv.source != nil && mv.id.Instance == instance:
			switch mv.sourcePhase {
			case handoff.SourceSwitching, handoff.SourceVoted, handoff.SourceUndecided, handoff.SourceHeld:
				return k.migration, agentapi.CopyState_COPY_STATE_FROZEN, true
			}
			return k.migration, agentapi.CopyState_COPY_STATE_RUNNING, true
		case mv.destination != nil && mv.id.Instance == instance:
			switch mv.destinationPhase {
			case handoff.DestinationPrepared, handoff.DestinationAborted:
				return k.migration, agentapi.CopyState_COPY_STATE_PREPARED, true
			case handoff.DestinationResuming, handoff.DestinationRunning:
				return k.migration, agentapi.CopyState_COPY_STATE_RUNNING, true
			}
			return k.migration, agentapi.CopyState_COPY_STATE_SKELETON, true
		}
	}
	return "", 0, false
}

// ServePages receives the pages of one connection, which the caller has authenticated, until it ends.
func (m *Manager) ServePages(ctx context.Context, c net.Conn) error {
	hctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	hello, err := pagexfer.Accept(hctx, c)
	if err != nil {
		return errors.Join(err, c.Close())
	}
	r, files := m.receiverOf(hello.Token)
	if r == nil && files == nil {
		return pagexfer.Refuse(hctx, c, "no migration on this host has this token")
	}
	if err := pagexfer.Welcome(hctx, c); err != nil {
		return errors.Join(err, c.Close())
	}
	if files != nil {
		return files.Serve(ctx, c)
	}
	return r.Serve(ctx, c)
}

// receiverOf finds for what a connection with a token is: pages or files of a move.
func (m *Manager) receiverOf(token []byte) (pages *pagexfer.Receiver, files *volume.Receiver) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, mv := range m.moves {
		if mv.destination == nil {
			continue
		}
		if pages, files = mv.destination.accepts(token), mv.destination.acceptsFiles(token); pages != nil || files != nil {
			return pages, files
		}
	}
	return nil, nil
}

// ObstaclesTo is the API's form of a list of obstacles on a host.
func ObstaclesTo(host string, list []engine.Obstacle) []*agentapi.Obstacle {
	out := make([]*agentapi.Obstacle, 0, len(list))
	for _, o := range list {
		out = append(out, &agentapi.Obstacle{Host: host, Pid: int32(o.PID), Kind: o.Kind, Where: o.Where, Reason: o.Reason, Remedy: o.Remedy})
	}
	return out
}
