package sock

import "fmt"

// A Cred names who sent or connected: a process as the tree knows it, its user and its group (struct ucred in unix(7)).
type Cred struct{ PID, UID, GID uint32 }

// A Packet is what a unix socket's queue holds in one piece: a datagram or record, or a stretch of a stream that came with
// the same ancillary data.
type Packet struct {
	Data   []byte
	From   []byte   // datagrams: name of the sender as UnixName tells it, empty when it had none
	Cred   *Cred    // credentials that were sent along
	Rights []uint32 // records of the descriptors in flight with it (SCM_RIGHTS)
	Urgent bool     // its first byte was sent out of band (MSG_OOB)
}

// UnixState is what CRIU's record of a unix socket has no place for.
type UnixState struct {
	PeerName []byte   // name of the peer
	Cred     *Cred    // what SO_PEERCRED tells
	Groups   []uint32 // what SO_PEERGROUPS tells
	Path     string   // of the file that it is bound to, from the root of the process that binds it
	Reset    bool     // an error waits: the peer closed without having read all
	Packets  []Packet
	Weight   uint32    // streams: what Packets take of the sender's buffer (SIOCOUTQ in unix(7))
	Pending  []Pending // listeners: connections that wait to be accepted, in order
}

// Pending is a connection that waits to be accepted.
type Pending struct {
	Client  uint32 // its record; 0 if it was closed
	Packets []Packet
}

// EncodeUnix lays the state of a unix socket out for an image, as EncodeTCP does a connection.
func EncodeUnix(s *UnixState) []byte {
	w := &coder{}
	return w.unix(s).out
}

// DecodeUnix reads what EncodeUnix wrote and validates it.
func DecodeUnix(b []byte) (*UnixState, error) {
	s := &UnixState{}
	r := &coder{in: b, reading: true}
	if err := r.unix(s).finish(); err != nil {
		return nil, fmt.Errorf("unix socket: %w", err)
	}
	return s, nil
}

func (c *coder) unix(s *UnixState) *coder {
	c.version()
	c.bytes(&s.PeerName)
	c.cred(&s.Cred)
	c.list(&s.Groups)
	c.string(&s.Path)
	c.bool(&s.Reset)
	c.packets(&s.Packets)
	c.u32(&s.Weight)
	n := c.count(len(s.Pending))
	if c.reading {
		s.Pending = make([]Pending, 0, min(n, 4096))
	}
	for i := 0; i < n && c.err == nil; i++ {
		if c.reading {
			s.Pending = append(s.Pending, Pending{})
		}
		c.u32(&s.Pending[i].Client)
		c.packets(&s.Pending[i].Packets)
	}
	return c
}

// count is the length of a list, bounded by what may follow in the image.
func (c *coder) count(n int) int {
	u := uint32(n)
	c.u32(&u)
	if c.reading && c.err == nil && (u > MaxMessages || uint64(u) > uint64(len(c.in))) {
		c.err = fmt.Errorf("a list of %d in %d bytes", u, len(c.in))
	}
	if c.err != nil {
		return 0
	}
	return int(u)
}

func (c *coder) list(l *[]uint32) {
	n := c.count(len(*l))
	if c.reading && n > 0 {
		*l = make([]uint32, n)
	}
	for i := range n {
		c.u32(&(*l)[i])
	}
}

func (c *coder) cred(p **Cred) {
	has := *p != nil
	c.bool(&has)
	if !has || c.err != nil {
		return
	}
	if c.reading {
		*p = &Cred{}
	}
	c.u32(&(*p).PID)
	c.u32(&(*p).UID)
	c.u32(&(*p).GID)
}

func (c *coder) packets(list *[]Packet) {
	n := c.count(len(*list))
	for i := 0; i < n && c.err == nil; i++ {
		if c.reading {
			*list = append(*list, Packet{})
		}
		p := &(*list)[i]
		c.bytes(&p.Data)
		c.bytes(&p.From)
		c.cred(&p.Cred)
		c.list(&p.Rights)
		c.bool(&p.Urgent)
	}
}
