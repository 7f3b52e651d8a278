package move

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	agentapi "migrate/agent/api"
	"migrate/agent/volume"
	"migrate/coordinator/handoff"
	"migrate/engine/span"
	"migrate/pagexfer"
)

// Volumes lists the directories that a move brings over: those of the workload and those of the order, each once. On
// shared storage there are none. An error is the operator's.
func Volumes(spec *agentapi.WorkloadSpec, o *agentapi.MoveOptions) ([]string, error) {
	var out []string
	for _, v := range append(slices.Clone(spec.GetVolumes()), o.GetVolumes()...) {
		if err := volume.CheckDir(v); err != nil {
			return nil, err
		}
		if slices.Contains(out, v) {
			continue
		}
		for _, other := range out {
			if (volume.Unit{Dir: v}).Holds(other) || (volume.Unit{Dir: other}).Holds(v) {
				return nil, fmt.Errorf("of the volumes %s and %s one is in the other", v, other)
			}
		}
		out = append(out, v)
	}
	if o.GetFiles() == agentapi.FilesMode_FILES_MODE_SHARED {
		return nil, nil
	}
	return out, nil
}

// DirUnits are the units of volumes.
func DirUnits(volumes []string) []volume.Unit {
	out := make([]volume.Unit, 0, len(volumes))
	for _, v := range volumes {
		out = append(out, volume.Unit{Dir: v})
	}
	return out
}

// filesOut is the files of a move, at the source. It is used by one goroutine at a time.
type filesOut struct {
	to     string // the destination's name
	units  []volume.Unit
	sender *volume.Sender
	dial   func(ctx context.Context) (net.Conn, error)
	log    *slog.Logger
	failed bool      // the connection has
	broken time.Time // when; zero while there is one
}

// bringFiles tells the destination what the tree needs, and brings what it lacks. It returns when all that was there at
// some instant is on the destination's disk; what changes afterwards is found by rounds.
func (s *source) bringFiles(ctx context.Context) error {
	opts := s.opts()
	ctx, cancel := context.WithTimeoutCause(ctx, opts.timeout, fmt.Errorf("the files of the program could not be brought over within %v", opts.timeout))
	defer cancel()
	volumes, err := Volumes(s.spec, opts.asked)
	if err != nil {
		return err
	}
	units := DirUnits(volumes)
	req := &agentapi.PrepareFilesRequest{Session: s.session(0), Volumes: volumes, Probe: fmt.Sprintf(".migrate-probe-%s", rand.Text())}
	if opts.asked.GetFiles() == agentapi.FilesMode_FILES_MODE_COPY {
		if req.Files, err = s.tree.Contents(ctx, units, true); err != nil {
			return err
		}
	}
	if len(units) == 0 && len(req.Files) == 0 {
		return nil
	}
	req.Dirs = dirsAround(volumes, req.Files)
	reply, err := s.askForFiles(ctx, volumes, req)
	if err != nil {
		return err
	}
	for _, w := range reply.GetWanted() {
		units = append(units, volume.UnitOf(w, false))
	}
	if err := s.openFiles(units, reply); err != nil {
		return err
	}
	if s.files == nil {
		return nil
	}
	st, err := s.fileRound(ctx)
	s.log.Info("files are brought over", "units", len(units), "entries", st.Entries, "changed", st.Changed, "bytes", st.Sent, "took", st.Took, "error", err)
	return err
}

// dirsAround describes the directories that volumes and files are in.
func dirsAround(volumes []string, list []*agentapi.FileNeed) (out []*agentapi.DirNeed) {
	seen := map[string]bool{"/": true}
	around := func(p string) {
		for d := filepath.Dir(p); !seen[d]; d = filepath.Dir(d) {
			seen[d] = true
			var st unix.Stat_t
			if err := unix.Lstat(d, &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
				out = append(out, &agentapi.DirNeed{Path: d, Mode: st.Mode & 0o7777, Uid: st.Uid, Gid: st.Gid})
			}
		}
	}
	for _, v := range volumes {
		around(v)
	}
	for _, f := range list {
		around(f.GetPath())
	}
	return out
}

// askForFiles makes the call, with a file in each volume by which storage that both hosts see is known.
func (s *source) askForFiles(ctx context.Context, volumes []string, req *agentapi.PrepareFilesRequest) (*agentapi.PrepareFilesReply, error) {
	for _, v := range volumes {
		remove, err := probe(v, req.Probe)
		if err != nil {
			return nil, err
		}
		defer func() {
			if err := remove(); err != nil {
				s.log.Warn("a file stays behind in a volume", "volume", v, "error", err)
			}
		}()
	}
	reply, err := s.peer.client.PrepareFiles(ctx, req)
	if err != nil {
		return nil, &peerError{fmt.Sprintf("%s could not make room for the program's files", s.peerNode.GetName()), err}
	}
	if o := reply.GetObstacles(); len(o) > 0 {
		return nil, fmt.Errorf("%s cannot take the program's files: %s: %s", s.peerNode.GetName(), o[0].GetWhere(), o[0].GetReason())
	}
	if len(reply.GetWanted()) > len(req.GetFiles()) {
		return nil, fmt.Errorf("%s wants more files than it was told of", s.peerNode.GetName())
	}
	return reply, nil
}

// probe makes a file in a directory and returns what removes it, with the directory's times as they were. What cannot
// be written to has no probe.
func probe(dir, name string) (remove func() error, err error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return nil, fmt.Errorf("volume %s: %w", dir, err)
	}
	p := filepath.Join(dir, name)
	f, err := os.OpenFile(p, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return func() error { return nil }, nil
	}
	return func() error {
		return errors.Join(f.Close(), os.Remove(p), unix.UtimesNanoAt(unix.AT_FDCWD, dir, []unix.Timespec{st.Atim, st.Mtim}, 0))
	}, nil
}

// openFiles opens the units. Those of an earlier attempt are gone on with, if they are the same.
func (s *source) openFiles(units []volume.Unit, reply *agentapi.PrepareFilesReply) error {
	if s.files != nil && slices.Equal(s.files.units, units) {
		return nil
	}
	if err := s.closeFiles(); err != nil {
		s.log.Debug("files of an earlier attempt", "error", err)
	}
	s.view.set(func(*view) { s.units = units })
	if len(units) == 0 {
		return nil
	}
	opts := s.opts()
	sender, err := volume.NewSender(units, volume.Options{Compress: opts.codec == pagexfer.S2 || opts.codec == pagexfer.Zstd || opts.bandwidth > 0, Bandwidth: opts.bandwidth})
	if err != nil {
		return err
	}
	dial, address, token := s.peer.dialPages(reply.GetPagesAddress()), reply.GetPagesAddress(), reply.GetToken()
	s.files = &filesOut{to: s.peerNode.GetName(), log: s.log, units: units, sender: sender, failed: true, dial: func(ctx context.Context) (net.Conn, error) {
		conns, err := pagexfer.Dial(ctx, dial, 1, token)
		if err != nil {
			return nil, fmt.Errorf("the connection for files to %s: %w", address, err)
		}
		return conns[0], nil
	}}
	return nil
}

// fileRound brings the destination's files up to date; without any it does nothing. A connection that breaks is replaced.
func (s *source) fileRound(ctx context.Context) (volume.Stats, error) {
	if s.files == nil {
		return volume.Stats{}, nil
	}
	mapped, err := s.tree.Mapped(ctx)
	if err != nil {
		return volume.Stats{}, err
	}
	s.files.sender.SetBandwidth(s.opts().bandwidth)
	return s.files.round(ctx, func(p string) bool { return mapped[p] })
}

// lastFiles sends the last difference while the state is recorded. The function that it returns waits for the
// destination to have it on its disk.
func (s *source) lastFiles(ctx context.Context) (wait func() error, err error) {
	if s.files == nil {
		return func() error { return nil }, nil
	}
	mapped, err := s.tree.Mapped(ctx)
	if err != nil {
		return nil, err
	}
	f, done := s.files, make(chan error, 1)
	go func() {
		ctx, end := span.Begin(ctx, "files")
		defer end()
		st, err := f.once(ctx, func(p string) bool { return mapped[p] }) // no second try: the tree stands still
		s.log.Info("the last difference of the files", "changed", st.Changed, "bytes", st.Sent, "read", st.Read, "scan", st.Scan, "flush", st.Flush, "took", st.Took)
		done <- err
	}()
	return func() error {
		_, end := span.Begin(ctx, "await files")
		defer end()
		err := <-done
		if remote := (*volume.RemoteError)(nil); errors.As(err, &remote) {
			return f.refusedThere(remote)
		}
		if err != nil {
			return fmt.Errorf("the last difference of the files: %w", err)
		}
		return nil
	}, nil
}

const (
	// patience is for how long it is tried to replace a connection for files that has broken.
	patience = 20 * time.Second
	// dialTime bounds one try: what was lost on the way is sent again by TCP after a second, and after three.
	dialTime = 4 * time.Second
)

func (f *filesOut) round(ctx context.Context, mapped func(string) bool) (volume.Stats, error) {
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		st, err := f.once(ctx, mapped)
		if err == nil {
			return st, nil
		}
		var remote *volume.RemoteError
		switch {
		case ctx.Err() != nil:
			return st, errors.Join(context.Cause(ctx), err)
		case errors.As(err, &remote):
			return st, f.refusedThere(remote)
		case errors.Is(err, volume.ErrCorrupt), !f.failed, !f.broken.IsZero() && time.Since(f.broken) > patience:
			return st, fmt.Errorf("bringing files over: %w", err)
		case f.broken.IsZero():
			f.broken = time.Now()
			f.log.Warn("the connection for files has broken; it goes on over another one", "error", err)
		}
		if !pause(ctx, wait) {
			return st, context.Cause(ctx)
		}
	}
}

// refusedThere is an error of the destination's, for people.
func (f *filesOut) refusedThere(remote *volume.RemoteError) error {
	remedy := ""
	if strings.Contains(remote.Text, unix.ENOSPC.Error()) || strings.Contains(remote.Text, unix.EDQUOT.Error()) {
		remedy = "; make room there, or move to another host"
	}
	return fmt.Errorf("%s could not write the program's files: %w%s", f.to, remote, remedy)
}

// once makes a round, over a new connection if the one before has failed.
func (f *filesOut) once(ctx context.Context, mapped func(string) bool) (volume.Stats, error) {
	if f.failed {
		dctx, cancel := context.WithTimeout(ctx, dialTime)
		c, err := f.dial(dctx)
		cancel()
		if err != nil {
			return volume.Stats{}, err
		}
		f.broken = time.Time{}
		if err := f.sender.Attach(c); err != nil {
			return volume.Stats{}, err
		}
		f.failed = false
	}
	st, err := f.sender.Round(ctx, mapped)
	f.failed = err != nil && f.sender.Detached()
	return st, err
}

func (s *source) closeFiles() error {
	if s.files == nil {
		return nil
	}
	err := s.files.sender.Close()
	s.files = nil
	return err
}

// leaveFiles marks what stays behind of a tree that has moved away.
func (s *source) leaveFiles() {
	units := get(&s.view, func(*view) []volume.Unit { return s.units })
	if len(units) == 0 {
		return
	}
	if err := s.m.cfg.Store.Leave(units, s.id.Instance, s.id.Migration); err != nil {
		s.log.Warn("files that stay behind could not be marked: a move back needs --overwrite", "error", err)
	}
}

// filesIn is the files of a move, at the destination, under destination.mu.
type filesIn struct {
	units    []volume.Unit
	token    []byte
	receiver *volume.Receiver
}

// prepareFiles makes room for what the source's tree has and this host lacks.
func (d *destination) prepareFiles(ctx context.Context, req *agentapi.PrepareFilesRequest) (*agentapi.PrepareFilesReply, error) {
	ctx, leave, err := d.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	if !d.awaitsFiles() {
		return nil, refuseCall("this host does not expect files")
	}
	volumes, err := Volumes(d.spec, d.options)
	if err != nil || !slices.Equal(volumes, req.GetVolumes()) {
		return nil, refuseCall("the volumes %v are not those of the order, %v", req.GetVolumes(), volumes)
	}
	reply := &agentapi.PrepareFilesReply{}
	block := func(kind, where, reason string) {
		reply.Obstacles = append(reply.Obstacles, &agentapi.Obstacle{Host: d.m.cfg.Node, Kind: kind, Where: where, Reason: reason})
	}
	units := DirUnits(volumes)
	for _, v := range volumes {
		if _, err := os.Lstat(filepath.Join(v, filepath.Base(req.GetProbe()))); req.GetProbe() != "" && err == nil {
			block("volume", v, "both hosts see the same directory: use --files shared")
		}
	}
	if d.options.GetFiles() == agentapi.FilesMode_FILES_MODE_COPY {
		if reply.Wanted, err = d.wanted(ctx, req.GetFiles()); err != nil {
			return nil, refuseCall("%v", err)
		}
	} else if len(req.GetFiles()) > 0 {
		return nil, refuseCall("files are not to be copied by this order")
	}
	for _, w := range reply.Wanted {
		units = append(units, volume.UnitOf(w, false))
	}
	for _, u := range units {
		if len(reply.Obstacles) > 0 {
			break
		}
		if err := d.m.cfg.Store.Claim(u, d.id.Instance, d.id.Migration, d.options.GetOverwrite(), likeOf(req.GetDirs())); err != nil {
			block("volume", u.Path(), err.Error())
		}
	}
	if len(reply.Obstacles) == 0 && len(units) > 0 {
		reply.PagesAddress, reply.Token = d.m.cfg.PagesAddress, d.expectFiles(units)
	}
	return reply, nil
}

// likeOf looks directories up.
func likeOf(list []*agentapi.DirNeed) func(dir string) (volume.Entry, bool) {
	return func(dir string) (volume.Entry, bool) {
		i := slices.IndexFunc(list, func(n *agentapi.DirNeed) bool { return n.GetPath() == dir })
		if i < 0 {
			return volume.Entry{}, false
		}
		return volume.Entry{Path: dir, Type: volume.TypeDir, Mode: list[i].GetMode(), UID: list[i].GetUid(), GID: list[i].GetGid()}, true
	}
}

const (
	// maxWanted and maxWantedBytes bound the single files of a move and their names: the durable record holds them.
	maxWanted, maxWantedBytes = 512, 24 << 10
)

// wanted lists the files that are missing here or differ, and those that have been brought already for this copy.
func (d *destination) wanted(ctx context.Context, list []*agentapi.FileNeed) (out []string, err error) {
	size := 0
	for _, n := range list {
		if p := n.GetPath(); !filepath.IsAbs(p) || filepath.Clean(p) != p {
			return nil, fmt.Errorf("file %q has no plain absolute path", p)
		}
		claimed, err := d.m.cfg.Store.Claimed(volume.UnitOf(n.GetPath(), false), d.id.Instance)
		if err != nil {
			return nil, err
		}
		why := ""
		if !claimed {
			if why, _, err = d.m.cfg.Hasher.Difference(ctx, n, true); err != nil {
				return nil, fmt.Errorf("%s: %w", n.GetPath(), err)
			}
		}
		if !claimed && why == "" {
			continue
		}
		out = append(out, n.GetPath())
		if size += len(n.GetPath()); len(out) > maxWanted || size > maxWantedBytes {
			return nil, fmt.Errorf("more than %d files are missing or differ: bring their directories with --volume", len(out)-1)
		}
	}
	return out, nil
}

func (d *destination) awaitsFiles() bool {
	phase := d.m.phaseOfDestination(d.id)
	return phase == handoff.DestinationExpecting || phase == handoff.DestinationSkeleton
}

// expectFiles lets connections in that present the token that it returns.
func (d *destination) expectFiles(units []volume.Unit) []byte {
	d.mu.Lock()
	old := d.filesIn
	if old != nil && slices.Equal(old.units, units) {
		d.mu.Unlock()
		return old.token
	}
	token := []byte(rand.Text())
	d.filesIn = &filesIn{units: units, token: token, receiver: volume.NewReceiver(units)}
	d.mu.Unlock()
	if old != nil {
		old.receiver.Close()
	}
	return token
}

// acceptsFiles says whether a connection presents the token of this migration's files.
func (d *destination) acceptsFiles(token []byte) *volume.Receiver {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.filesIn == nil || subtle.ConstantTimeCompare(token, d.filesIn.token) != 1 {
		return nil
	}
	return d.filesIn.receiver
}

// endFiles takes no more files; when it returns nothing is written any more.
func (d *destination) endFiles() {
	d.mu.Lock()
	in := d.filesIn
	d.filesIn = nil
	d.mu.Unlock()
	if in != nil {
		in.receiver.Close()
	}
}
