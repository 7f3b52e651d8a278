package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"migrate/agent/move"
	"migrate/agent/workload"
	clusterapi "migrate/coordinator/api"
	"migrate/engine"
	"migrate/engine/dump"
	"migrate/engine/files"
	"migrate/engine/images"
	"migrate/engine/kernel"
	"migrate/engine/mem"
	"migrate/engine/ns"
	"migrate/engine/procfs"
	"migrate/engine/restore"
	"migrate/engine/sock"
	"migrate/engine/span"
	"migrate/pagexfer"
)

// source is a dump.Source as package move sees it, with what surrounds the tree.
type source struct {
	h        *host
	src      *dump.Source
	env      *workload.Env // nil for a bare process
	instance uint64
	cgroup   string     // of a bare process
	tree     *ns.Cgroup // in which the tree is held; of a bare process, below it
	before   *ns.Cgroup // where a bare process was
	// Of a bare process: its name, the addresses that move with it, and what stands against that.
	name      string
	addrs     []netip.Prefix
	obstacles []engine.Obstacle
	gone      bool
	held      bool         // by its cgroup
	limit     *ns.Limit    // of its processor time; nil for none
	closing   func() error // what was opened for the dump
}

// Handle says how to find the tree again.
func (s *source) Handle() move.Handle {
	hd := move.Handle{Instance: s.instance}
	for _, p := range s.src.Processes() {
		if hd.PID == 0 {
			hd.PID = p.PID
		}
		hd.PIDs = append(hd.PIDs, p.PID)
	}
	if s.env == nil {
		hd.Bare, hd.Cgroup, hd.Addrs = true, s.cgroup, prefixStrings(s.addrs)
		hd.Before = belowMount(s.before)
		return hd
	}
	hd.Cgroup, hd.Port, hd.Bare = s.env.Record().Cgroup, s.env.Record().Port, s.env.Spec().GetBare()
	if hd.Bare && s.env.Spec().GetAddr() != "" {
		hd.Addrs = strings.Split(s.env.Spec().GetAddr(), ",")
	}
	return hd
}

// belowMount is the path of a cgroup below the v2 mount; empty for none.
func belowMount(cg *ns.Cgroup) string {
	top, err := ns.Cgroup2Mount()
	if cg == nil || err != nil {
		return ""
	}
	return cmp.Or(strings.TrimPrefix(cg.Path(), top), "/")
}

func (s *source) Obstacles(ctx context.Context) ([]engine.Obstacle, error) {
	return s.src.Obstacles(ctx)
}

// Track starts to watch for writes. A bare tree is first put into the cgroup that was made for it, in which it can be held.
func (s *source) Track(ctx context.Context) (err error) {
	if s.env == nil {
		if err := moveInto(s.tree, s.src.Processes()); err != nil {
			return err
		}
	}
	return s.src.Track(ctx)
}

// moveInto puts the processes of a tree into a cgroup. Children are born into that of their parent.
func moveInto(cg *ns.Cgroup, tree []*engine.Process) error {
	for _, p := range tree {
		if err := cg.Add(p.PID); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}

func (s *source) Layout(ctx context.Context) ([]byte, error) {
	l, err := s.src.Layout(ctx)
	if err != nil {
		return nil, err
	}
	l.Header.Clocks = nil // they differ every time, and the destination has them from the move
	complete(l)
	return l.Marshal()
}

// complete fills in what records of address spaces must have and a layout does not say: the name of the program and the
// fields about its parts, which are in the checkpoint. A skeleton has no use for them.
func complete(l *images.Layout) {
	exe := slices.IndexFunc(l.Files, func(f *fdinfo.FileEntry) bool { return f.GetReg() != nil })
	for _, sp := range l.Spaces {
		if sp.MM == nil {
			continue
		}
		if exe >= 0 && sp.MM.GetExeFileId() == 0 {
			sp.MM.ExeFileId = proto.Uint32(l.Files[exe].GetId())
		}
		m := sp.MM.ProtoReflect()
		for i := range m.Descriptor().Fields().Len() {
			f := m.Descriptor().Fields().Get(i)
			if f.Cardinality() == protoreflect.Required && !m.Has(f) {
				m.Set(f, f.Default())
			}
		}
	}
}

// sink passes pages from the engine to the wire, which describe runs with types of their own.
type sink struct{ to move.PageSink }

func (s sink) Buffer() []byte { return s.to.Buffer() }

func (s sink) Send(ctx context.Context, space uint32, runs []mem.Run, data []byte) error {
	out := make([]pagexfer.Run, len(runs))
	for i, r := range runs {
		out[i] = pagexfer.Run{Addr: r.Addr, Pages: r.Pages, Zero: r.Zero}
	}
	return s.to.Send(ctx, space, out, data)
}

func (s *source) Round(ctx context.Context, to move.PageSink) (move.RoundStats, error) {
	st, err := s.src.Round(ctx, sink{to})
	return move.RoundStats{Pages: st.Pages, ZeroPages: st.ZeroPages, Skipped: st.Skipped, Scan: st.ScanDuration}, err
}

// Pending counts connections that a freeze cannot carry.
func (s *source) Pending(ctx context.Context) (n int, err error) { return s.src.Pending(ctx) }

// Timeouts tells of the connections that Final has saved.
func (s *source) Timeouts() []move.Timeouts {
	var out []move.Timeouts
	for _, t := range s.src.Timeouts() {
		out = append(out, move.Timeouts{Local: t.Local, Remote: t.Remote, Count: t.Count, Silent: t.Silent})
	}
	return out
}

// Freeze stops the tree, and keeps its terminal as it is then.
func (s *source) Freeze(ctx context.Context) error {
	if err := s.lift(); err != nil {
		return err
	}
	if err := s.src.Freeze(ctx); err != nil {
		return err
	}
	s.h.pauseConsole(s.instance)
	return nil
}

// Final sends the last pages, and records the state while they are on their way.
func (s *source) Final(ctx context.Context, to move.PageSink) ([]byte, move.RoundStats, error) {
	in, end := span.Begin(ctx, "pages")
	st, err := s.Round(in, to)
	end()
	if err != nil {
		return nil, st, err
	}
	in, end = span.Begin(ctx, "state")
	cp, err := s.src.State(in)
	end()
	if errors.Is(err, files.ErrBusy) {
		err = fmt.Errorf("%w: %w", move.ErrTransient, err)
	}
	if err != nil {
		return nil, st, err
	}
	if err := s.h.saveOutput(s.env, cp); err != nil {
		return nil, st, err
	}
	_, end = span.Begin(ctx, "encode")
	defer end()
	b, err := cp.Marshal()
	return b, st, err
}

func (s *source) Hold(ctx context.Context) error {
	s.held = true
	return s.src.Hold(ctx)
}

func (s *source) Thaw(ctx context.Context) error {
	if err := s.src.Thaw(ctx); err != nil {
		return err
	}
	s.held = false
	s.h.resumeConsole(s.instance)
	return nil
}

func (s *source) Digest(context.Context) ([]byte, error) { return s.src.Digest().Bytes(), nil }

// Resident adds up what the processes have in memory.
func (s *source) Resident() uint64 {
	var pages uint64
	for _, p := range s.src.Processes() {
		if st, err := procfs.Host.Status(p.PID); err == nil { // it may have ended
			pages += st.VMRSS / pagexfer.PageSize
		}
	}
	return pages
}

func (s *source) Tracker() string { return trackerName() }

// Destroy ends the tree, its connections first, and takes away what surrounds it.
func (s *source) Destroy(ctx context.Context) error {
	s.h.leaving(s.instance)
	if !s.gone {
		if err := s.src.Destroy(ctx); err != nil {
			return err
		}
		s.gone = true
	}
	if err := s.Unthrottle(); err != nil {
		return err
	}
	if s.env != nil {
		return s.h.remove(ctx, s.env)
	}
	return errors.Join(s.h.endPort(ctx, s.name, "", true), removeCgroup(s.cgroup))
}

// Close stops tracking. A bare process that runs on goes back to where it was.
func (s *source) Close() error {
	err := errors.Join(s.Unthrottle(), s.src.Close(context.Background()))
	if s.closing != nil {
		err = errors.Join(err, s.closing())
		s.closing = nil
	}
	if !s.gone && !s.held {
		s.h.resumeConsole(s.instance)
	}
	if s.env != nil || s.gone {
		return err
	}
	err = errors.Join(err, s.h.endPort(context.Background(), s.name, "", false))
	if s.before != nil {
		err = errors.Join(err, moveInto(s.before, s.src.Processes()))
	}
	return errors.Join(err, removeCgroup(s.cgroup))
}

// skeleton is a restore.Skeleton as package move sees it, with what surrounds it.
type skeleton struct {
	h     *host
	sk    *restore.Skeleton
	env   *workload.Env
	netns *os.File // nil for that of the host
	conns []*clusterapi.Connection
	// probes make the peers' data acknowledged once the sockets are out of repair.
	probes [][]byte
	held   bool
	runs   bool
}

func (s *skeleton) WritePages(space uint32, addr uint64, data []byte) error {
	return s.sk.WritePages(space, addr, data)
}

func (s *skeleton) ZeroPages(space uint32, addr uint64, n uint32) error {
	return s.sk.ZeroPages(space, addr, n)
}

// Handle says how to find the copy again. It has a process id once the copy is complete.
func (s *skeleton) Handle() move.Handle {
	rec := s.env.Record()
	hd := move.Handle{Instance: rec.Instance, Cgroup: rec.Cgroup, Port: rec.Port, Bare: s.env.Spec().GetBare(), Spec: rec.Spec}
	if !s.held {
		return hd
	}
	for _, p := range s.sk.Processes() {
		if hd.PID == 0 {
			hd.PID, hd.VPID = p.PID, p.VPID
		}
		hd.PIDs = append(hd.PIDs, p.PID)
	}
	return hd
}

func (s *skeleton) Follow(ctx context.Context, layout []byte) error {
	l, err := images.UnmarshalLayout(layout)
	if err != nil {
		return err
	}
	return s.sk.Follow(ctx, l)
}

func (s *skeleton) Finish(ctx context.Context, checkpoint []byte) error {
	_, end := span.Begin(ctx, "decode")
	cp, err := images.Unmarshal(checkpoint)
	end()
	if err != nil {
		return err
	}
	if err := s.sk.Finish(ctx, cp); err != nil {
		return err
	}
	if err := s.h.loadOutput(s.env, cp); err != nil {
		return err
	}
	if err := span.Do(ctx, "hold", s.sk.Hold); err != nil {
		return err
	}
	s.held = true
	s.conns, s.probes, err = savedTCP(cp)
	return err
}

func (s *skeleton) Digest(context.Context) ([]byte, error) { return s.sk.Digest().Bytes(), nil }

func (s *skeleton) Release(ctx context.Context) ([][]byte, error) { return s.probes, s.sk.Release(ctx) }

func (s *skeleton) Connections() []*clusterapi.Connection { return s.conns }

// Thaw lets the finished copy run.
func (s *skeleton) Thaw(ctx context.Context) error {
	if s.runs {
		return nil
	}
	if err := s.sk.Resume(ctx); err != nil {
		return err
	}
	s.runs = true
	return s.sk.Close()
}

func (s *skeleton) closeNS() error {
	if s.netns == nil {
		return nil
	}
	err := s.netns.Close()
	s.netns = nil
	return err
}

func (s *skeleton) Destroy(ctx context.Context) error {
	if s.runs {
		return fmt.Errorf("copy %d runs and is not destroyed", s.env.Instance())
	}
	// A skeleton that failed half-way cannot always take itself down in order. What counts is that its pid 1 and its cgroup
	// are killed with all that is in them.
	if err := s.sk.Destroy(ctx); err != nil {
		s.h.log.Debug("a skeleton did not go in order", "instance", s.env.Instance(), "error", err)
	}
	return errors.Join(s.closeNS(), s.h.remove(ctx, s.env))
}

// heldTree is a copy that was found after a restart of the agent.
type heldTree struct {
	h      *host
	env    *workload.Env // nil for a bare process
	cgroup *ns.Cgroup
	// Of a bare process:
	name   string
	around string     // the cgroup around the one that holds it, below the v2 mount
	before *ns.Cgroup // where it was; nil if that is not known
}

// Thaw lets the tree run. Its sockets may still be in repair, as the agent that died has left them.
func (t *heldTree) Thaw(ctx context.Context) error {
	pids, err := t.cgroup.Processes()
	if err != nil {
		return err
	}
	tree := make([]*engine.Process, 0, len(pids))
	for _, pid := range pids {
		tree = append(tree, &engine.Process{PID: pid})
	}
	d := files.NewDumper(files.Options{})
	_, err = d.Recover(ctx, tree)
	if err := errors.Join(err, d.Close()); err != nil {
		return err
	}
	if err := errors.Join(ns.UnlimitCPU(t.cgroup), t.cgroup.Thaw()); err != nil {
		return err
	}
	if t.env != nil {
		t.h.resumeConsole(t.env.Instance())
	}
	return nil
}

// Leave takes a bare process that runs on back to where it was, and its gate away.
func (t *heldTree) Leave(ctx context.Context) error {
	if t.env != nil {
		return nil
	}
	frozen, err := t.cgroup.Frozen()
	if err != nil || frozen { // out of its cgroup it would run
		return err
	}
	if t.before != nil {
		pids, err := t.cgroup.Processes()
		for len(pids) > 0 && err == nil { // again for those that were born meanwhile
			for _, pid := range pids {
				if e := t.before.Add(pid); e != nil && !errors.Is(e, unix.ESRCH) {
					err = errors.Join(err, e)
				}
			}
			if err = errors.Join(err, ctx.Err()); err == nil {
				pids, err = t.cgroup.Processes()
			}
		}
		if err == nil {
			err = removeCgroup(t.around)
		}
		return errors.Join(err, t.h.endPort(ctx, t.name, "", false))
	}
	return t.h.endPort(ctx, t.name, "", false)
}

// Destroy ends it. It stands still since its vote, so its sockets are in repair, where the agent that died has left them:
// they vanish without a packet.
func (t *heldTree) Destroy(ctx context.Context) error {
	if t.env != nil {
		return t.h.remove(ctx, t.env)
	}
	if err := errors.Join(t.cgroup.Kill(), t.cgroup.Empty(ctx)); err != nil {
		return err
	}
	return errors.Join(t.h.endPort(ctx, t.name, "", true), removeCgroup(t.around))
}

// savedTCP decodes the TCP connections of a checkpoint.
func savedTCP(cp *images.Checkpoint) (conns []*clusterapi.Connection, probes [][]byte, err error) {
	for name, b := range cp.Blobs {
		if !strings.HasPrefix(name, "tcp-") {
			continue
		}
		st, err := sock.DecodeTCP(b)
		if err != nil {
			return nil, nil, fmt.Errorf("blob %s: %w", name, err)
		}
		conns = append(conns, &clusterapi.Connection{Local: st.Local.String(), Remote: st.Remote.String(), State: st.TCP.String(),
			UnackedBytes: uint64(len(st.SendQueue)), UnreadBytes: uint64(len(st.RecvQueue))})
		if st.Unacknowledged() > 0 {
			probes = append(probes, st.AckProbe())
		}
	}
	slices.SortFunc(conns, func(a, b *clusterapi.Connection) int { return cmp.Compare(a.Remote, b.Remote) })
	return conns, probes, nil
}

// trackerName is how the engine finds writes on this kernel.
func trackerName() string {
	switch {
	case kernel.UserfaultWP.Have() && kernel.PagemapScan.Have():
		return "uffd-wp"
	case kernel.SoftDirty.Have():
		return "soft-dirty"
	}
	return "hash"
}
