//go:build linux

package files

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"slices"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/eventpoll"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine/procfs"
	"migrate/engine/remote"
)

// A registration in an epoll set is a pair of a description and the number under which it was registered, and outlives the
// closing of that number while the description is open elsewhere (epoll(7), Q6). When the number means something else by
// now, or nothing, in the first process that holds the set and has the number open, a blob says which description is meant.
// What is ready is polled anew by the restore, so an edge-triggered event may be reported once more than it would have
// been, never once less. It is not reported again where that is certain: see seenEdge.
var kindEpoll = &Kind{
	Name: "epoll", Type: fdinfo.FdTypes_EVENTPOLL, Carried: true,
	Note: "with its targets, also those whose number was closed or reused while their file stayed open in the tree; with its settings of busy polling. An " +
		"edge-triggered event (EPOLLET) that the program has seen is not reported again for eventfds, pipes and connected unix sockets, if nothing else of the set is " +
		"ready and one process has it; else it is, once",
	match: func(d *description) bool { return d.anon("[eventpoll]") },
	check: checkEpoll, dump: dumpEpoll, open: openEpoll, inside: registerEpoll,
}

func checkEpoll(_ context.Context, dm *Dumper, d *description) []problem {
	var out []problem
	// A running program may close a target between the listing of its descriptors and this one: look again before
	// something is refused.
	for try := 0; try < 3; try++ {
		i, err := d.fdinfo()
		if err != nil {
			return []problem{{reason: err.Error()}}
		}
		out = nil
		for n, t := range i.Epoll {
			if target, _ := resolve(dm.current, d, i.Epoll, n); target == nil && stale(dm.current, d, i.Epoll, n) == nil {
				out = append(out, problem{passing: true, reason: fmt.Sprintf("a target was registered as descriptor %d, which was closed or reused since; "+
					"its file (inode %d) is still open outside of the tree or in flight", t.FD, t.Ino)})
			}
		}
		if dm.mayBeInFlight() {
			return nil
		}
		if len(out) == 0 || dm.frozen {
			break
		}
	}
	return out
}

// resolve finds the description of the n-th registration.
func resolve(s *snapshot, d *description, all []procfs.EpollTarget, n int) (*description, error) {
	t := all[n]
	for _, h := range d.holders {
		target := s.byFD[fdKey{h.proc.PID, t.FD}]
		if target == nil {
			continue
		}
		same, err := kcmpEpoll(os.Getpid(), target.fd, d.fd, t.FD, ordinal(all, n))
		if err != nil {
			return nil, fmt.Errorf("kcmp of target %d: %w", t.FD, err)
		}
		if !same {
			target = nil
		}
		return target, nil
	}
	return nil, nil
}

// ordinal counts the registrations of the same number before the n-th.
func ordinal(all []procfs.EpollTarget, n int) int {
	k := 0
	for i := range n {
		if all[i].FD == all[n].FD {
			k++
		}
	}
	return k
}

// stale finds the description of the n-th registration among all, when its number does not lead there.
func stale(s *snapshot, d *description, all []procfs.EpollTarget, n int) *description {
	for _, o := range s.list {
		if o.stat.Ino != all[n].Ino {
			continue
		}
		if same, err := kcmpEpoll(os.Getpid(), o.fd, d.fd, all[n].FD, ordinal(all, n)); err == nil && same {
			return o
		}
	}
	return nil
}

// staleBlob holds pairs of numbers (4 bytes each, little-endian): the index of a target in the record and the id of the
// description that is meant.
func staleBlob(id uint32) string { return fmt.Sprintf("epoll-%d", id) }

// busyBlob holds how the set polls network devices (struct epoll_params), if it is told to.
func busyBlob(id uint32) string { return fmt.Sprintf("epoll-busy-%d", id) }

// EPIOCSPARAMS and EPIOCGPARAMS of ioctl_eventpoll(2).
const (
	epollSetParams = 0x40088A01
	epollGetParams = 0x80088A02
)

func dumpEpoll(_ context.Context, r *dump, d *description) (*fdinfo.FileEntry, error) {
	i, err := d.fdinfo()
	if err != nil {
		return nil, err
	}
	owner, err := r.fown(d)
	if err != nil {
		return nil, err
	}
	e := &eventpoll.EventpollFileEntry{Id: proto.Uint32(d.id), Flags: proto.Uint32(uint32(d.flags)), Fown: owner}
	var closed, seen []byte
	idle := !polled(d.fd, unix.POLLIN)
	for n, t := range i.Epoll {
		target, err := resolve(r.snap, d, i.Epoll, n)
		if err != nil {
			return nil, err
		}
		if idle && target != nil && r.seenEdge(target, t.Events) {
			seen = binary.LittleEndian.AppendUint32(seen, uint32(n))
		}
		if target == nil {
			if target = stale(r.snap, d, i.Epoll, n); target == nil {
				return nil, fmt.Errorf("target %d: its file is not open in the tree: %w", t.FD, ErrNotCarried)
			}
			closed = binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(closed, uint32(n)), target.id)
		}
		e.Tfd = append(e.Tfd, &eventpoll.EventpollTfdEntry{Id: proto.Uint32(d.id), Tfd: proto.Uint32(uint32(t.FD)), Events: proto.Uint32(t.Events),
			Data: proto.Uint64(t.Data), Dev: proto.Uint32(t.Dev), Inode: proto.Uint64(t.Ino), Pos: proto.Uint64(uint64(t.Pos))})
	}
	if closed != nil {
		r.blob(staleBlob(d.id), closed)
	}
	if seen != nil {
		r.blob(seenBlob(d.id), seen)
	}
	if params, err := epollParams(d.fd, epollGetParams, [8]byte{}); err == nil && params != [8]byte{} { // ENOTTY before Linux 6.9
		r.blob(busyBlob(d.id), params[:])
	}
	return &fdinfo.FileEntry{Epfd: e}, nil
}

// seenBlob holds the indices (4 bytes each, little-endian) of the targets in the record for which seenEdge holds.
func seenBlob(id uint32) string { return fmt.Sprintf("epoll-seen-%d", id) }

// seenEdge tells of a target of a set in which nothing is ready whether it is ready all the same: the program has been told of the
// edge, and the next one is yet to come (epoll(7)). Only files of which nobody outside of the tree can make an edge until
// the restore has taken this one out of the set again: that one would be taken with it.
func (r *dump) seenEdge(target *description, events uint32) bool {
	if events&unix.EPOLLET == 0 || events&conditions == 0 {
		return false
	}
	switch target.kind {
	case kindEventfd, kindPipe:
	case kindUnix:
		listens, err := unix.GetsockoptInt(target.fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		if err != nil || listens != 0 || target.sock.typ == unix.SOCK_DGRAM || len(r.opts.ExternalUnix) > 0 {
			return false
		}
	default:
		return false
	}
	return polled(target.fd, int16(events&(unix.EPOLLIN|unix.EPOLLOUT|unix.EPOLLPRI|unix.EPOLLRDHUP))) // the same bits as of poll(2)
}

// seenEdges reads the blob of a set. A set that several processes have is registered by each of them in turn, and has none.
func (r *Restorer) seenEdges(e *fdinfo.FileEntry) (map[int]bool, error) {
	b := r.cp.Blobs[seenBlob(e.GetId())]
	if len(b)%4 != 0 || len(b)/4 > len(e.Epfd.GetTfd()) {
		return nil, fmt.Errorf("blob %s has %d bytes for %d targets", seenBlob(e.GetId()), len(b), len(e.Epfd.GetTfd()))
	}
	out := make(map[int]bool, len(b)/4)
	for ; len(b) > 0 && len(r.holders[e.GetId()]) == 1; b = b[4:] {
		out[int(binary.LittleEndian.Uint32(b))] = true
	}
	return out, nil
}

func openEpoll(_ context.Context, r *Restorer, e *fdinfo.FileEntry) error {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("epoll_create1: %w", err)
	}
	r.put(e.GetId(), fd)
	if b := r.cp.Blobs[busyBlob(e.GetId())]; b != nil {
		var params [8]byte
		if copy(params[:], b) != len(b) {
			return fmt.Errorf("blob %s: it has %d bytes", busyBlob(e.GetId()), len(b))
		}
		if _, err := epollParams(fd, epollSetParams, params); err != nil {
			return fmt.Errorf("busy polling of the set (EPIOCSPARAMS): %w", err)
		}
	}
	return nil
}

// registrar is the process that is to register a target: the first that holds the set and has the number.
func (r *Restorer) registrar(epoll uint32, tfd int) int {
	for _, vpid := range r.holders[epoll] {
		if _, ok := r.tables[vpid][tfd]; ok {
			return vpid
		}
	}
	return 0
}

// conditions are the bits of epoll_event.events that are not modes of the registration.
const conditions = ^uint32(unix.EPOLLET | unix.EPOLLONESHOT | unix.EPOLLWAKEUP | unix.EPOLLEXCLUSIVE)

// registerEpoll adds the targets. One that EPOLLONESHOT has disarmed cannot be added disarmed, since the kernel adds EPOLLERR and
// EPOLLHUP to what is asked for: it is added ready for anything, so that it fires at once if its file can be
// read or written, which disarms it. That happens in a first batch, before the others are added.
func registerEpoll(in *inside, e *fdinfo.FileEntry) error {
	set := -1
	for fd, id := range in.table {
		if id == e.GetId() {
			set = fd
			break
		}
	}
	if spare, ok := in.spare[e.GetId()]; ok && set < 0 {
		set = spare
	}
	if set < 0 {
		return nil
	}
	meant, err := in.r.staleTargets(e)
	if err != nil {
		return err
	}
	seen, err := in.r.seenEdges(e)
	if err != nil {
		return err
	}
	for n, t := range e.Epfd.GetTfd() {
		tfd := int(t.GetTfd())
		if id, ok := meant[n]; ok {
			if err := in.registerStale(e.GetId(), set, tfd, id, epollEvent(t.GetEvents(), t.GetData())); err != nil {
				return err
			}
			continue
		}
		switch in.r.registrar(e.GetId(), tfd) {
		case 0:
			return fmt.Errorf("target %d is open in no process that holds the set", tfd)
		case in.p.VPID:
		default:
			continue
		}
		what := fmt.Sprintf("register descriptor %d with epoll set %d", tfd, set)
		if events := t.GetEvents(); events&conditions == 0 && events&unix.EPOLLONESHOT != 0 {
			armed := events | unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLPRI | unix.EPOLLRDHUP
			in.early(what, unix.SYS_EPOLL_CTL, set, unix.EPOLL_CTL_ADD, tfd, in.first.Bytes(epollEvent(armed, t.GetData())))
			in.harvest[e.GetId()]++
			continue
		}
		if seen[n] { // it fires now, which is taken out of the set with those
			in.early(what, unix.SYS_EPOLL_CTL, set, unix.EPOLL_CTL_ADD, tfd, in.first.Bytes(epollEvent(t.GetEvents(), t.GetData())))
			in.harvest[e.GetId()]++
			continue
		}
		in.call(what, unix.SYS_EPOLL_CTL, set, unix.EPOLL_CTL_ADD, tfd, in.batch.Bytes(epollEvent(t.GetEvents(), t.GetData())))
	}
	return nil
}

// staleTargets reads the blob of a set: the record that each of those targets means.
func (r *Restorer) staleTargets(e *fdinfo.FileEntry) (map[int]uint32, error) {
	b := r.cp.Blobs[staleBlob(e.GetId())]
	if len(b)%8 != 0 || len(b)/8 > len(e.Epfd.GetTfd()) {
		return nil, fmt.Errorf("blob %s has %d bytes for %d targets", staleBlob(e.GetId()), len(b), len(e.Epfd.GetTfd()))
	}
	out := make(map[int]uint32, len(b)/8)
	for ; len(b) > 0; b = b[8:] {
		id := binary.LittleEndian.Uint32(b[4:])
		if r.files[id] == nil {
			return nil, fmt.Errorf("blob %s names file %d, which no descriptor holds", staleBlob(e.GetId()), id)
		}
		out[int(binary.LittleEndian.Uint32(b))] = id
	}
	return out, nil
}

// extras are the records that a process needs for a moment, to register them under numbers that mean something else.
func (r *Restorer) extras(vpid int) (ids []uint32, err error) {
	for _, e := range r.entries() {
		if r.needsLending(e) && r.homes[e.GetId()].vpid == vpid && !slices.Contains(ids, e.GetId()) {
			ids = append(ids, e.GetId())
		}
		if e.Epfd == nil || r.holders[e.GetId()][0] != vpid {
			continue
		}
		meant, err := r.staleTargets(e)
		if err != nil {
			return nil, err
		}
		for _, id := range meant {
			if !slices.Contains(ids, id) {
				ids = append(ids, id)
			}
		}
	}
	return ids, nil
}

// registerStale lends the number to the target while it is registered, and then gives it back or closes it.
func (in *inside) registerStale(epoll uint32, set, tfd int, id uint32, event []byte) error {
	if in.r.holders[epoll][0] != in.p.VPID {
		return nil
	}
	spare, ok := in.spare[id]
	if !ok {
		return fmt.Errorf("target %d: file %d is not at hand", tfd, id)
	}
	call := func(nr int, args ...any) *remote.Result {
		c := in.second.Call(nr, args...)
		in.steps = append(in.steps, step{c, fmt.Sprintf("register file %d as descriptor %d with epoll set %d", id, tfd, set)})
		return c
	}
	var kept *remote.Result
	var through any = set
	if _, used := in.table[tfd]; used {
		kept = call(unix.SYS_FCNTL, tfd, unix.F_DUPFD_CLOEXEC, 0)
		if tfd == set {
			through = kept
		}
	}
	call(unix.SYS_DUP3, spare, tfd, 0)
	call(unix.SYS_EPOLL_CTL, through, unix.EPOLL_CTL_ADD, tfd, in.second.Bytes(event))
	if kept == nil {
		call(unix.SYS_CLOSE, tfd)
		return nil
	}
	flags := 0
	if in.cloexec[tfd] {
		flags = unix.O_CLOEXEC
	}
	call(unix.SYS_DUP3, kept, tfd, flags)
	call(unix.SYS_CLOSE, kept)
	return nil
}

// disarm takes the events of the first batch out of the sets, which disarms their targets.
func (in *inside) disarm() error {
	for id, n := range in.harvest {
		fd, err := in.r.descriptor(id)
		if err != nil {
			return err
		}
		events := make([]unix.EpollEvent, n)
		for n > 0 {
			got, err := unix.EpollWait(fd, events, 0)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return fmt.Errorf("epoll set %d: %w", id, err)
			}
			if got == 0 {
				break
			}
			n -= got
		}
	}
	return nil
}

// epollEvent is struct epoll_event, which is packed on amd64 only (include/uapi/linux/eventpoll.h).
func epollEvent(events uint32, data uint64) []byte {
	b := binary.LittleEndian.AppendUint32(nil, events)
	if !epollPacked {
		b = append(b, 0, 0, 0, 0)
	}
	return binary.LittleEndian.AppendUint64(b, data)
}
