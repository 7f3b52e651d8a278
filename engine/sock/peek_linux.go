package sock

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// A Peeked is a Packet of a socket that is still being read: its credentials are as this program sees them.
type Peeked struct {
	Packet
	FDs []int // duplicates of the descriptors in flight with it, for the caller to close
}

// Options that x/sys lacks (asm-generic/socket.h).
const (
	soPassRights = 83
	soInq        = 84
	siocAtMark   = 0x8905 // SIOCATMARK of asm-generic/sockios.h
)

// forPeeking are the values that options have while a queue is peeked, so that all ancillary data is seen and none that a read
// makes up.
var forPeeking = []struct{ opt, value int }{
	{unix.SO_PEEK_OFF, 0}, {unix.SO_PASSCRED, 1}, {unix.SO_PASSPIDFD, 0}, {unix.SO_PASSSEC, 0}, {soPassRights, 1}, {soInq, 0}, {unix.SO_OOBINLINE, 0},
}

// PeekUnix reads all that waits in the receive queue of a unix socket and leaves it there, with its options as they were. The
// owners of the socket must be stopped. ends tells that a read at the end of the queue yields no bytes instead of EAGAIN: a
// stream, or a record socket that was shut for reading.
// In a stream, descriptors are seen with all that can be read before them together with what they were sent with.
// An empty datagram can be peeked only once: the kernel passes over one that has been peeked (__skb_try_recv_from_queue in
// net/core/datagram.c), so a second PeekUnix of the same queue does not see it.
func PeekUnix(fd int, stream, ends bool) (list []Peeked, err error) {
	for _, o := range forPeeking {
		was, e := unix.GetsockoptInt(fd, unix.SOL_SOCKET, o.opt)
		if e == nil && was != o.value {
			e = unix.SetsockoptInt(fd, unix.SOL_SOCKET, o.opt, o.value)
			defer func() {
				if e := unix.SetsockoptInt(fd, unix.SOL_SOCKET, o.opt, was); e != nil {
					err = errors.Join(err, fmt.Errorf("put socket option %d back to %d: %w", o.opt, was, e))
				}
			}()
		}
		if e != nil && !quiet(e) {
			return nil, fmt.Errorf("socket option %d: %w", o.opt, e)
		}
	}
	p := &peeker{fd: fd, stream: stream, buf: make([]byte, 64<<10), oob: make([]byte, 4096)}
	if n, err := unix.IoctlGetInt(fd, unix.TIOCINQ); err == nil && stream {
		p.buf = make([]byte, n+1) // so that no read ends within what came together
	}
	if err := p.all(ends); err != nil {
		ClosePeeked(p.list)
		return nil, err
	}
	return p.list, p.markUrgent()
}

// ClosePeeked closes the duplicates.
func ClosePeeked(list []Peeked) {
	for _, p := range list {
		closeAll(p.FDs)
	}
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd) // a duplicate: its owner keeps the description
	}
}

type peeker struct {
	fd       int
	stream   bool
	buf, oob []byte
	list     []Peeked
	total    int
}

func (p *peeker) all(ends bool) error {
	for {
		m, err := p.one(p.buf)
		if errors.Is(err, unix.EAGAIN) || err == nil && ends && len(m.Data) == 0 && m.FDs == nil {
			return nil
		}
		var big tooLong
		if errors.As(err, &big) && int(big) <= MaxQueue {
			p.buf = make([]byte, int(big))
			if err := p.seek(p.total); err != nil { // what was copied of it has moved the offset
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		p.list = append(p.list, m)
		if p.total += len(m.Data); p.total > MaxQueue || len(p.list) >= MaxMessages {
			return fmt.Errorf("the queue holds more than %d bytes or %d messages", MaxQueue, MaxMessages)
		}
	}
}

func (p *peeker) seek(off int) error {
	if err := unix.SetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, off); err != nil {
		return fmt.Errorf("set SO_PEEK_OFF: %w", err)
	}
	return nil
}

func (p *peeker) one(buf []byte) (Peeked, error) {
	for {
		n, oobn, flags, from, err := recvmsgPeek(p.fd, buf, p.oob)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return Peeked{}, err
		}
		var m Peeked
		err = m.ancillary(p.oob[:oobn])
		switch {
		case err != nil:
		case flags&unix.MSG_CTRUNC != 0:
			err = errors.New("its ancillary data is cut off (raise the limit of open files, LimitNOFILE)")
		case n > len(buf):
			err = tooLong(n)
		}
		if err != nil {
			closeAll(m.FDs)
			return Peeked{}, err
		}
		m.Data, m.From = bytes.Clone(buf[:n]), nameOf(from)
		return m, nil
	}
}

// ancillary reads the control messages of unix(7).
func (m *Peeked) ancillary(oob []byte) error {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return err
	}
	ne := binary.NativeEndian
	for _, c := range msgs {
		switch {
		case c.Header.Level == unix.SOL_SOCKET && c.Header.Type == unix.SCM_RIGHTS:
			fds, err := unix.ParseUnixRights(&c)
			if err != nil {
				return err
			}
			m.FDs = append(m.FDs, fds...)
		case c.Header.Level == unix.SOL_SOCKET && c.Header.Type == unix.SCM_CREDENTIALS && len(c.Data) >= 12:
			if pid := ne.Uint32(c.Data); pid != 0 || ne.Uint32(c.Data[4:]) != overflowID {
				m.Cred = &Cred{pid, ne.Uint32(c.Data[4:]), ne.Uint32(c.Data[8:])}
			}
		default:
			return fmt.Errorf("ancillary data of level %d, type %d: %w", c.Header.Level, c.Header.Type, ErrAncillary)
		}
	}
	return nil
}

// overflowID is what the kernel tells where there is no user or group (fs.overflowuid in proc(5)).
const overflowID = 65534

// markUrgent finds the byte that was sent out of band. A read ends before it, so it begins a packet.
func (p *peeker) markUrgent() error {
	if !p.stream || len(p.list) == 0 {
		return nil
	}
	var b [1]byte
	if n, _, err := unix.Recvfrom(p.fd, b[:], unix.MSG_OOB|unix.MSG_PEEK|unix.MSG_DONTWAIT); err != nil || n != 1 {
		return nil // there is none
	}
	if at, err := unix.IoctlGetInt(p.fd, siocAtMark); err == nil && at != 0 {
		p.list[0].Urgent = true
		return nil
	}
	best := -1
	for i := 1; i < len(p.list); i++ {
		before := &p.list[i-1]
		if p.list[i].Data[0] != b[0] {
			continue
		}
		if best = i; len(before.FDs) == 0 && sameCred(before.Cred, p.list[i].Cred) {
			break // nothing else explains that the read ended there
		}
	}
	if best < 0 {
		return errors.New("the byte that was sent out of band is not where it should be")
	}
	p.list[best].Urgent = true
	return nil
}

func sameCred(a, b *Cred) bool { return a == b || a != nil && b != nil && *a == *b }

// Filling says how the packets of an image are sent again.
type Filling struct {
	// Weight is what the packets of a stream are to take of the sender's buffer, so that it is as full as it was; 0 for any.
	Weight uint32
	To     []byte                           // name of the socket to send to; empty: the peer
	FD     func(record uint32) (int, error) // the descriptor of a record, in this program
	PID    func(pid uint32) (int, error)    // the process that stands for one of the tree, in this program's pid namespace
}

// FillUnix sends packets from a socket, so that they wait in the queue of another one. The send buffer of from is widened
// for it; set the options afterwards.
func FillUnix(from int, packets []Packet, f Filling) error {
	total := 0
	for _, p := range packets {
		total += len(p.Data) + 2048 // the kernel counts its own structures
	}
	total = max(total, int(f.Weight))
	if total == 0 {
		return nil
	}
	if err := unix.SetsockoptInt(from, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, min(2*total+4096, 1<<30)); err != nil {
		return fmt.Errorf("widen the send buffer: %w", err)
	}
	var addr []byte
	if len(f.To) > 0 {
		var err error
		if addr, err = unixAddr(f.To); err != nil {
			return err
		}
	}
	size, err := f.pieces(packets)
	if err != nil {
		return err
	}
	for i := range packets {
		if err := f.send(from, &packets[i], addr, size); err != nil {
			return fmt.Errorf("packet %d of the queue, %d bytes: %w", i, len(packets[i].Data), err)
		}
	}
	return nil
}

// pieces finds the size in which a stream must be written to take its weight: small pieces take more. 0: as it comes.
func (f *Filling) pieces(packets []Packet) (size int, err error) {
	total := 0
	for _, p := range packets {
		total += len(p.Data)
	}
	if f.Weight == 0 || total == 0 {
		return 0, nil
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return 0, err
	}
	defer closeAll(fds[:])
	low, high := 1, min(total, 16<<10) // of the largest size that takes at least the weight
	buf := make([]byte, high)
	for low < high {
		mid := (low + high + 1) / 2
		if _, err := unix.Write(fds[0], buf[:mid]); err != nil {
			return 0, err
		}
		one, err := unix.IoctlGetInt(fds[0], unix.TIOCOUTQ)
		if err != nil {
			return 0, err
		}
		if _, err := unix.Read(fds[1], buf[:mid]); err != nil {
			return 0, err
		}
		if uint64(total/mid)*uint64(one) >= uint64(f.Weight) {
			low = mid
		} else {
			high = mid - 1
		}
	}
	return low, nil
}

func (f *Filling) send(from int, p *Packet, addr []byte, size int) error {
	rights, cred, err := f.control(p)
	if err != nil {
		return err
	}
	oob := append(rights, cred...)
	data, flags := p.Data, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL
	if p.Urgent && len(data) > 0 {
		if err := sendmsg(from, data[:1], oob, addr, flags|unix.MSG_OOB); err != nil {
			return err
		}
		if data, oob = data[1:], cred; len(data) == 0 {
			return nil
		}
	}
	for size > 0 && len(data) > size && len(rights) == 0 {
		if err := sendmsg(from, data[:size], oob, addr, flags); err != nil {
			return err
		}
		data, oob = data[size:], cred
	}
	return sendmsg(from, data, oob, addr, flags)
}

// control is the ancillary data of a packet. Descriptors come with the first piece, credentials with every one.
func (f *Filling) control(p *Packet) (rights, cred []byte, err error) {
	if len(p.Rights) > 0 {
		fds := make([]int, len(p.Rights))
		for i, id := range p.Rights {
			if fds[i], err = f.FD(id); err != nil {
				return nil, nil, err
			}
		}
		rights = unix.UnixRights(fds...)
	}
	if p.Cred != nil {
		pid, err := f.PID(p.Cred.PID)
		if err != nil {
			return nil, nil, err
		}
		cred = unix.UnixCredentials(&unix.Ucred{Pid: int32(pid), Uid: p.Cred.UID, Gid: p.Cred.GID})
	}
	return rights, cred, nil
}

// PeerCred is what SO_PEERCRED tells, as this program sees it; nil when there is none. groups are those of SO_PEERGROUPS.
func PeerCred(fd int) (cred *Cred, groups []uint32, err error) {
	u, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return nil, nil, fmt.Errorf("SO_PEERCRED: %w", err)
	}
	if u.Uid == ^uint32(0) {
		return nil, nil, nil
	}
	buf := make([]byte, 4<<16) // NGROUPS_MAX
	n, err := getsockopt(fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS, buf)
	if err != nil && !quiet(err) && !errors.Is(err, unix.ENODATA) {
		return nil, nil, fmt.Errorf("SO_PEERGROUPS: %w", err)
	}
	for b := buf[:n]; len(b) >= 4; b = b[4:] {
		groups = append(groups, binary.NativeEndian.Uint32(b))
	}
	return &Cred{uint32(u.Pid), u.Uid, u.Gid}, groups, nil
}

// BoundFile opens the file that a unix socket is bound to (SIOCUNIXFILE in include/uapi/linux/un.h; CAP_NET_ADMIN). The
// descriptor is one of O_PATH.
func BoundFile(fd int) (int, error) {
	const siocUnixFile = 0x89E0
	r, err := ioctl(fd, siocUnixFile)
	if err != nil {
		return -1, fmt.Errorf("file of a unix socket (SIOCUNIXFILE): %w", err)
	}
	return r, nil
}
