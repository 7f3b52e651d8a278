//go:build linux

package files

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"migrate/engine/images/imagespb"
	"migrate/engine/sock"
	"migrate/tcprepair"
)

// diagnosis asks the kernel about the sockets of the network namespaces in which a tree has any. The first is that of its root.
// Inode numbers of sockets are unique in all of them.
type diagnosis struct {
	first  *sock.Diag
	spaces []*netSpace // the others
}

// netSpace is a network namespace that the root of the tree is not in.
type netSpace struct {
	file *os.File
	ino  uint64
	diag *sock.Diag // nil until a socket of it was met
}

func newDiagnosis(ns *os.File) (*diagnosis, error) {
	first, err := diagIn(ns)
	return &diagnosis{first: first}, err
}

func diagIn(ns *os.File) (d *sock.Diag, err error) {
	err = sock.In(sock.Place{NetNS: ns}, func() error {
		d, err = sock.NewDiag()
		return err
	})
	return d, err
}

func (d *diagnosis) close() error {
	errs := []error{d.first.Close()}
	for _, s := range d.spaces {
		errs = append(errs, s.file.Close())
		if s.diag != nil {
			errs = append(errs, s.diag.Close())
		}
	}
	return errors.Join(errs...)
}

// all are those that can be asked.
func (d *diagnosis) all() []*sock.Diag {
	out := []*sock.Diag{d.first}
	for _, s := range d.spaces {
		if s.diag != nil {
			out = append(out, s.diag)
		}
	}
	return out
}

// of is that of a socket's namespace; nil if it is not known.
func (d *diagnosis) of(desc *description) *sock.Diag {
	cookie, err := sock.NetNSCookie(desc.fd)
	if err != nil {
		return nil
	}
	for _, a := range d.all() {
		if a.NetNS() == cookie {
			return a
		}
	}
	return nil
}

// orFirst is of, or that of the root's namespace.
func (d *diagnosis) orFirst(desc *description) *sock.Diag {
	if a := d.of(desc); a != nil {
		return a
	}
	return d.first
}

// note takes a network namespace in which a socket of the tree is, or of which it has a handle.
func (d *diagnosis) note(desc *description) error {
	var fd int
	switch {
	case desc.format() == unix.S_IFSOCK:
		if cookie, err := sock.NetNSCookie(desc.fd); err != nil || cookie == d.first.NetNS() || d.of(desc) != nil {
			return nil // or a kernel that does not tell, where what needs it is refused
		}
		var err error
		if fd, err = unix.IoctlRetInt(desc.fd, unix.SIOCGSKNS); err != nil {
			return nil // it is refused as a socket of another namespace
		}
	case desc.kind == kindNamespace:
		if typ, err := unix.IoctlRetInt(desc.fd, nsGetType); err != nil || typ != unix.CLONE_NEWNET {
			return nil
		}
		var err error
		if fd, err = unix.FcntlInt(uintptr(desc.fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			return err
		}
	default:
		return nil
	}
	return d.add(os.NewFile(uintptr(fd), "network namespace"), desc.format() == unix.S_IFSOCK)
}

func (d *diagnosis) add(f *os.File, ask bool) (err error) {
	fd, err := rawFD(f)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return errors.Join(fmt.Errorf("network namespace: %w", err), f.Close())
	}
	for _, s := range d.spaces {
		if s.ino != st.Ino {
			continue
		}
		if ask && s.diag == nil {
			s.diag, err = diagIn(s.file)
		}
		return errors.Join(err, f.Close())
	}
	s := &netSpace{file: f, ino: st.Ino}
	d.spaces = append(d.spaces, s)
	if ask {
		s.diag, err = diagIn(f)
	}
	return err
}

// Unix asks about a unix socket by its inode number.
func (d *diagnosis) Unix(ino uint32) (u *sock.UnixInfo, err error) {
	for _, a := range d.all() {
		if u, err = a.Unix(ino); !errors.Is(err, sock.ErrNoSocket) {
			return u, err
		}
	}
	return u, err
}

// Packet asks about a packet socket by its inode number.
func (d *diagnosis) Packet(ino uint32) (p *sock.PacketInfo, err error) {
	for _, a := range d.all() {
		if p, err = a.Packet(ino); !errors.Is(err, sock.ErrNoSocket) {
			return p, err
		}
	}
	return p, err
}

// Datagrams lists datagram sockets, by their inode numbers.
func (d *diagnosis) Datagrams(proto int) (map[uint32]sock.DatagramInfo, error) {
	out := map[uint32]sock.DatagramInfo{}
	for _, a := range d.all() {
		list, err := a.Datagrams(proto)
		if err != nil {
			return nil, err
		}
		for ino, i := range list {
			out[ino] = i
		}
	}
	return out, nil
}

// TCP lists TCP sockets.
func (d *diagnosis) TCP(states ...tcprepair.ConnState) (out []sock.TCPInfo, err error) {
	for _, a := range d.all() {
		list, err := a.TCP(states...)
		if err != nil {
			return nil, err
		}
		out = append(out, list...)
	}
	return out, nil
}

// tcpOf tells of one connection.
func (d *diagnosis) tcpOf(desc *description, local, remote netip.AddrPort) (sock.TCPInfo, error) {
	a := d.of(desc)
	if a == nil {
		return sock.TCPInfo{}, sock.ErrNoSocket
	}
	return a.TCPOf(desc.sock.domain == unix.AF_INET6, local, remote)
}

// NetSpaces are handles of the network namespaces that the root of the tree is not in, but sockets or descriptors that were met lead to.
// They are open until Close.
func (d *Dumper) NetSpaces() []*os.File {
	var out []*os.File
	if d.diag != nil {
		for _, s := range d.diag.spaces {
			out = append(out, s.file)
		}
	}
	return out
}

// noteNets notes the network namespaces of a snapshot's descriptions.
func (d *Dumper) noteNets(s *snapshot) error {
	for _, desc := range s.list {
		if err := d.diag.note(desc); err != nil {
			return fmt.Errorf("%s: %w", desc.where(), err)
		}
	}
	return nil
}

// netOf is the nested network namespace of a socket, as the header has it; 0 for the one of the root.
func (r *dump) netOf(desc *description) (uint32, error) {
	if desc.format() != unix.S_IFSOCK || len(r.diag.spaces) == 0 {
		return 0, nil
	}
	a := r.diag.of(desc)
	if a == nil || a == r.diag.first {
		return 0, nil
	}
	for _, s := range r.diag.spaces {
		if s.diag == a {
			if id := nestedID(r.cp.Header, s.ino); id != 0 {
				return id, nil
			}
		}
	}
	return 0, fmt.Errorf("%s: it is a socket of a network namespace that is not the tree's: %w", desc.where(), ErrNotCarried)
}

// nestedID is the number of a nested namespace by its inode; 0 if it is none.
func nestedID(h *imagespb.Header, ino uint64) uint32 {
	for _, n := range h.GetNamespaces().GetNested() {
		if n.GetIno() == ino {
			return n.GetId()
		}
	}
	return 0
}

// findNets opens the network namespaces of the records.
func (r *Restorer) findNets() error {
	for _, f := range r.cp.Header.GetFiles() {
		if f.GetNet() == 0 {
			continue
		}
		var net *os.File
		if r.env.Nested != nil {
			net = r.env.Nested(f.GetNet())
		}
		if net == nil {
			return fmt.Errorf("migrate.img: header.files: file %d: net: namespace %d is not there", f.GetId(), f.GetNet())
		}
		r.nets[f.GetId()] = net
	}
	return nil
}

// netNS is the network namespace of a record.
func (r *Restorer) netNS(id uint32) *os.File {
	if f := r.nets[id]; f != nil {
		return f
	}
	return r.env.NetNS
}
