//go:build linux

package files

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"migrate/engine/peek"
	"migrate/engine/sock"
)

// unreadPending reads what clients have sent to connections that wait to be accepted. The sockets of these belong to nobody yet,
// so it is read from the kernel's memory. A kernel that cannot be read leaves it to the caller to try again.
func (r *dump) unreadPending(d *description, s *sock.UnixState) (err error) {
	k, err := peek.Open()
	if err != nil {
		return fmt.Errorf("%d connections wait to be accepted, and what their clients have sent cannot be seen: %w: %w", len(s.Pending), err, ErrBusy)
	}
	defer func() { err = errors.Join(err, k.Close()) }()
	q := &queueReader{kernel: k, r: r}
	listener, err := q.socket(d.fd)
	if err != nil {
		return err
	}
	i := 0
	err = q.each(listener, func(skb *peek.View) error {
		if i == len(s.Pending) {
			return errors.New("one more connection waits than before")
		}
		connection, err := skb.Uint64("sk")
		if err != nil {
			return err
		}
		err = q.each(connection, func(skb *peek.View) error {
			p, err := q.packet(skb)
			s.Pending[i].Packets = append(s.Pending[i].Packets, p)
			return err
		})
		i++
		return err
	})
	if err == nil && i != len(s.Pending) {
		err = fmt.Errorf("%d connections wait, not %d", i, len(s.Pending))
	}
	if err != nil {
		return fmt.Errorf("connections that wait to be accepted: %w", err)
	}
	return nil
}

// A queueReader reads queues of unix sockets in the kernel's memory.
type queueReader struct {
	kernel *peek.Kernel
	r      *dump
	files  map[uint64]*description // by the address of struct file; nil until asked for
}

// unreadQueue reads the queue of a connection that has been reset: to read it as programs do would take the error away.
func (r *dump) unreadQueue(d *description, u *sock.UnixInfo, s *sock.UnixState) (err error) {
	if !s.Reset {
		return fmt.Errorf("an error waits at the socket, which is not of a connection: %w", ErrNotCarried)
	}
	k, err := peek.Open()
	if err != nil {
		return fmt.Errorf("its connection has been reset, and what is left to be read cannot be seen: %w: %w", err, ErrBusy)
	}
	defer func() { err = errors.Join(err, k.Close()) }()
	q := &queueReader{kernel: k, r: r}
	sk, err := q.socket(d.fd)
	if err != nil {
		return err
	}
	return q.each(sk, func(skb *peek.View) error {
		p, err := q.packet(skb)
		if err == nil && (len(p.Data) > 0 || u.Type != unix.SOCK_STREAM) {
			s.Packets = append(s.Packets, p)
		}
		return err
	})
}

// socket is where the kernel has the socket behind a descriptor of this program (struct sock).
func (q *queueReader) socket(fd int) (uint64, error) {
	file, err := q.kernel.File(fd)
	if err != nil {
		return 0, err
	}
	socket, err := q.kernel.Follow(file, "private_data", "socket")
	if err != nil {
		return 0, err
	}
	return socket.Uint64("sk")
}

// each visits what waits in the receive queue of a socket (struct sock).
func (q *queueReader) each(sk uint64, visit func(skb *peek.View) error) error {
	s, err := q.kernel.Load("sock", sk)
	if err != nil {
		return err
	}
	off, err := s.Offset("sk_receive_queue")
	if err != nil {
		return err
	}
	head := sk + off // a ring, of which the first word of the queue is a part
	next, err := s.Uint64("sk_receive_queue")
	for n := 0; err == nil && next != head; n++ {
		if n == sock.MaxMessages {
			return errors.New("the queue has no end")
		}
		var skb *peek.View
		if skb, err = q.kernel.Load("sk_buff", next); err != nil {
			return err
		}
		if err = visit(skb); err != nil {
			return err
		}
		next, err = skb.Uint64("next")
	}
	return err
}

// packet reads one buffer: its data and what was sent along (struct unix_skb_parms).
func (q *queueReader) packet(skb *peek.View) (p sock.Packet, err error) {
	off, err := skb.Offset("cb")
	if err != nil {
		return p, err
	}
	parms, err := q.kernel.Load("unix_skb_parms", skb.Addr+off)
	if err != nil {
		return p, err
	}
	if p.Data, err = q.data(skb); err != nil {
		return p, err
	}
	consumed, err := parms.Uint32("consumed") // what has been read of it already, of a stream
	if err != nil || uint64(consumed) > uint64(len(p.Data)) {
		return p, fmt.Errorf("%d of %d bytes of a buffer have been read: %w", consumed, len(p.Data), err)
	}
	p.Data = p.Data[consumed:]
	if pid, err := parms.Uint64("pid"); err != nil {
		return p, err
	} else if pid != 0 {
		if p.Cred, err = q.cred(parms, pid); err != nil {
			return p, err
		}
	}
	fp, err := parms.Uint64("fp")
	if err == nil && fp != 0 {
		p.Rights, err = q.rights(fp)
	}
	return p, err
}

// data is what a buffer holds: a linear part, then parts of pages.
func (q *queueReader) data(skb *peek.View) ([]byte, error) {
	var u32 [3]uint32
	for i, name := range []string{"len", "data_len", "end"} {
		var err error
		if u32[i], err = skb.Uint32(name); err != nil {
			return nil, err
		}
	}
	size, paged, end := u32[0], u32[1], u32[2]
	if size > 1<<26 || paged > size {
		return nil, fmt.Errorf("a buffer of %d bytes, %d of them in pages", size, paged)
	}
	at, err := skb.Uint64("data")
	if err != nil {
		return nil, err
	}
	out := make([]byte, size-paged, size)
	if err := q.kernel.Read(at, out); err != nil || paged == 0 {
		return out, err
	}
	head, err := skb.Uint64("head")
	if err != nil {
		return nil, err
	}
	info, err := q.kernel.Load("skb_shared_info", head+uint64(end))
	if err != nil {
		return nil, err
	}
	count, err := info.Bytes("nr_frags", 1)
	if err != nil {
		return nil, err
	}
	const fragment = 16 // skb_frag_t: page, length, offset
	frags, err := info.Bytes("frags", int(count[0])*fragment)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	for ; len(frags) >= fragment; frags = frags[fragment:] {
		page, err := q.pageAddress(le.Uint64(frags))
		n := le.Uint32(frags[8:])
		if err != nil || uint64(n) > uint64(size)-uint64(len(out)) {
			return nil, fmt.Errorf("%d bytes in a page: %w", n, err)
		}
		part := make([]byte, n)
		if err := q.kernel.Read(page+uint64(le.Uint32(frags[12:])), part); err != nil {
			return nil, err
		}
		out = append(out, part...)
	}
	if uint32(len(out)) != size {
		return nil, fmt.Errorf("%d of %d bytes were found", len(out), size)
	}
	return out, nil
}

// pageAddress is where the kernel has the page of a struct page (page_address, on processors whose kernel names the bases of both).
func (q *queueReader) pageAddress(page uint64) (uint64, error) {
	const structPage, pageSize = 64, 4096
	var bases [2]uint64
	for i, name := range []string{"vmemmap_base", "page_offset_base"} {
		addr, err := kernelSymbol(name)
		if err != nil {
			return 0, err
		}
		var b [8]byte
		if err := q.kernel.Read(addr, b[:]); err != nil {
			return 0, err
		}
		bases[i] = binary.LittleEndian.Uint64(b[:])
	}
	if page < bases[0] || page%structPage != 0 {
		return 0, fmt.Errorf("%#x is no struct page", page)
	}
	return bases[1] + (page-bases[0])/structPage*pageSize, nil
}

// kernelSymbol finds a variable of the kernel in /proc/kallsyms, which hides addresses from those without CAP_SYSLOG.
func kernelSymbol(name string) (uint64, error) {
	text, err := os.ReadFile("/proc/kallsyms")
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(text) {
		if f := bytes.Fields(line); len(f) == 3 && string(f[2]) == name {
			addr, err := strconv.ParseUint(string(f[0]), 16, 64)
			if err == nil && addr != 0 {
				return addr, nil
			}
		}
	}
	return 0, fmt.Errorf("the address of %s is not known: %w", name, ErrBusy)
}

// cred is who has sent it: the process by its id in its own pid namespace.
func (q *queueReader) cred(parms *peek.View, pid uint64) (*sock.Cred, error) {
	nr, err := pidNumber(q.kernel, pid)
	if err != nil {
		return nil, err
	}
	uid, err := parms.Uint32("uid")
	if err != nil {
		return nil, err
	}
	gid, err := parms.Uint32("gid")
	return &sock.Cred{PID: nr, UID: uid, GID: gid}, err
}

// rights finds descriptors in flight among those of the tree: none of its own can be had for one.
func (q *queueReader) rights(list uint64) ([]uint32, error) {
	l, err := q.kernel.Load("scm_fp_list", list)
	if err != nil {
		return nil, err
	}
	count, err := l.Bytes("count", 2)
	if err != nil {
		return nil, err
	}
	files, err := l.Bytes("fp", int(binary.LittleEndian.Uint16(count))*8)
	if err != nil {
		return nil, err
	}
	if q.files == nil {
		q.files = map[uint64]*description{}
		for _, d := range q.r.snap.list {
			f, err := q.kernel.File(d.fd)
			if err != nil {
				return nil, err
			}
			q.files[f.Addr] = d
		}
	}
	var out []uint32
	for ; len(files) >= 8; files = files[8:] {
		d := q.files[binary.LittleEndian.Uint64(files)]
		if d == nil {
			return nil, fmt.Errorf("a descriptor was sent to a connection that is not accepted, and nobody has it open any more: %w", ErrNotCarried)
		}
		out = append(out, d.id)
	}
	return out, nil
}
