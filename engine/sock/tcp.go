package sock

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"migrate/tcprepair"
)

// The blob of a TCP connection or listener in an image: a version byte, then the fields of the structure in the
// order of its declaration. Integers are little-endian in their own size, bools one byte, strings and byte strings have
// their length (4 bytes) before them, addresses are strings, Options is a count and that many pairs of name and
// 8-byte value in the order of the names.
const tcpVersion = 3

// EncodeTCP lays a connection out for an image.
func EncodeTCP(s *tcprepair.State) []byte {
	w := &coder{out: make([]byte, 0, 2048+len(s.RecvQueue)+len(s.SendQueue))}
	return w.state(s).out
}

// DecodeTCP reads what EncodeTCP wrote and validates it.
func DecodeTCP(b []byte) (*tcprepair.State, error) {
	s := &tcprepair.State{}
	r := &coder{in: b, reading: true}
	if err := r.state(s).finish(); err != nil {
		return nil, fmt.Errorf("TCP connection: %w", err)
	}
	return s, s.Validate()
}

// EncodeListener lays a listener out for an image.
func EncodeListener(l *tcprepair.Listener) []byte {
	w := &coder{out: make([]byte, 0, 2048)}
	return w.listener(l).out
}

// DecodeListener reads what EncodeListener wrote and validates it.
func DecodeListener(b []byte) (*tcprepair.Listener, error) {
	l := &tcprepair.Listener{}
	r := &coder{in: b, reading: true}
	if err := r.listener(l).finish(); err != nil {
		return nil, fmt.Errorf("TCP listener: %w", err)
	}
	return l, l.Validate()
}

// EncodeIdle lays a socket without a connection out for an image.
func EncodeIdle(s *tcprepair.Idle) []byte {
	w := &coder{out: make([]byte, 0, 2048+len(s.RecvQueue))}
	return w.idle(s).out
}

// DecodeIdle reads what EncodeIdle wrote and validates it.
func DecodeIdle(b []byte) (*tcprepair.Idle, error) {
	s := &tcprepair.Idle{}
	r := &coder{in: b, reading: true}
	if err := r.idle(s).finish(); err != nil {
		return nil, fmt.Errorf("TCP socket: %w", err)
	}
	return s, s.Validate()
}

func (c *coder) state(s *tcprepair.State) *coder {
	c.version()
	c.bool(&s.V6)
	c.addr(&s.Local)
	c.addr(&s.Remote)
	c.u8((*uint8)(&s.TCP))
	c.bool(&s.ReadShutdown)
	c.bytes(&s.RecvQueue)
	c.u8((*uint8)(&s.Urgent))
	c.u32(&s.UrgentAt)
	c.u32(&s.RecvSeq)
	c.bytes(&s.SendQueue)
	c.u32(&s.SendSeq)
	c.u32(&s.Unsent)
	c.bool(&s.FinUnsent)
	for _, f := range []*uint32{&s.Window.SndWl1, &s.Window.SndWnd, &s.Window.MaxWindow, &s.Window.RcvWnd, &s.Window.RcvWup, &s.MSSClamp} {
		c.u32(f)
	}
	c.bool(&s.WindowScaling)
	c.u8(&s.SendScale)
	c.u8(&s.RecvScale)
	c.bool(&s.SACK)
	c.bool(&s.ECN)
	c.bool(&s.Timestamps)
	c.u32(&s.Timestamp)
	c.bool(&s.MicroTimestamps)
	c.settings(&s.Settings)
	return c
}

func (c *coder) listener(l *tcprepair.Listener) *coder {
	c.version()
	c.bool(&l.V6)
	c.bool(&l.MPTCP)
	c.addr(&l.Local)
	c.bool(&l.Foreign)
	c.i32(&l.Backlog)
	c.i32(&l.FastOpen)
	c.settings(&l.Settings)
	return c
}

func (c *coder) idle(s *tcprepair.Idle) *coder {
	c.version()
	c.bool(&s.V6)
	c.bool(&s.MPTCP)
	c.addr(&s.Local)
	c.bool(&s.Foreign)
	c.addr(&s.Remote)
	c.u8((*uint8)(&s.TCP))
	c.u32(&s.SynSeq)
	c.i32(&s.FastOpen)
	c.u8(&s.Shutdown)
	c.bool(&s.Finished)
	c.i32(&s.Error)
	c.bytes(&s.RecvQueue)
	c.settings(&s.Settings)
	return c
}

func (c *coder) settings(s *tcprepair.Settings) {
	c.u32(&s.UID)
	c.buffers(&s.Buffers, &s.Linger)
	c.bool(&s.ReuseAddr)
	c.string(&s.Congestion)
	c.string(&s.Device)
	c.options(&s.Options)
	c.values(&s.Values)
}

// values bounds the count as options does.
func (c *coder) values(m *map[string][]byte) {
	n := uint32(len(*m))
	c.u32(&n)
	if !c.reading {
		for _, name := range slices.Sorted(maps.Keys(*m)) {
			v := (*m)[name]
			c.string(&name)
			c.bytes(&v)
		}
		return
	}
	if c.err == nil && n > 1024 {
		c.err = fmt.Errorf("%d values of options", n)
	}
	*m = make(map[string][]byte)
	for range n {
		var name string
		var v []byte
		c.string(&name)
		c.bytes(&v)
		if c.err != nil {
			return
		}
		(*m)[name] = v
	}
}

func (c *coder) buffers(b *tcprepair.Buffers, l *tcprepair.Linger) {
	c.u32(&b.Send)
	c.u32(&b.Recv)
	c.u32(&b.Locked)
	c.bool(&b.LockKnown)
	c.bool(&l.On)
	c.i32(&l.Seconds)
}

// A coder writes fields to out or reads them from in, so that both directions have one description.
type coder struct {
	in      []byte
	out     []byte
	reading bool
	err     error
}

func (c *coder) finish() error {
	if c.err == nil && len(c.in) > 0 {
		c.err = fmt.Errorf("%d bytes too many", len(c.in))
	}
	return c.err
}

// take returns the next n bytes of in, or nil and an error when there are fewer.
func (c *coder) take(n uint64) []byte {
	if c.err == nil && n > uint64(len(c.in)) {
		c.err = fmt.Errorf("%d bytes where %d should be", len(c.in), n)
	}
	if c.err != nil {
		return nil
	}
	p := c.in[:n]
	c.in = c.in[n:]
	return p
}

func (c *coder) version() {
	v := uint8(tcpVersion)
	c.u8(&v)
	if c.err == nil && v != tcpVersion {
		c.err = fmt.Errorf("version %d of the record, known is %d", v, tcpVersion)
	}
}

func (c *coder) u8(v *uint8) {
	if !c.reading {
		c.out = append(c.out, *v)
	} else if p := c.take(1); p != nil {
		*v = p[0]
	}
}

func (c *coder) u32(v *uint32) {
	if !c.reading {
		c.out = binary.LittleEndian.AppendUint32(c.out, *v)
	} else if p := c.take(4); p != nil {
		*v = binary.LittleEndian.Uint32(p)
	}
}

func (c *coder) i32(v *int32) {
	u := uint32(*v)
	c.u32(&u)
	*v = int32(u)
}

func (c *coder) i64(v *int64) {
	if !c.reading {
		c.out = binary.LittleEndian.AppendUint64(c.out, uint64(*v))
	} else if p := c.take(8); p != nil {
		*v = int64(binary.LittleEndian.Uint64(p))
	}
}

func (c *coder) bool(v *bool) {
	var u uint8
	if *v {
		u = 1
	}
	c.u8(&u)
	if c.err == nil && u > 1 {
		c.err = fmt.Errorf("%d where 0 or 1 should be", u)
	}
	*v = u == 1
}

func (c *coder) bytes(v *[]byte) {
	n := uint32(len(*v))
	c.u32(&n)
	if !c.reading {
		c.out = append(c.out, *v...)
	} else if p := c.take(uint64(n)); p != nil {
		*v = p
	}
}

func (c *coder) string(v *string) {
	n := uint32(len(*v))
	c.u32(&n)
	if !c.reading {
		c.out = append(c.out, *v...)
	} else if p := c.take(uint64(n)); p != nil {
		*v = string(p)
	}
}

func (c *coder) addr(v *netip.AddrPort) {
	var s string
	if !c.reading {
		s = v.String()
	}
	c.string(&s)
	if !c.reading || c.err != nil {
		return
	}
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		c.err = fmt.Errorf("address %.60q: %w", s, err)
		return
	}
	*v = a
}

// options bounds the count by the names that exist, because each may stand once.
func (c *coder) options(m *map[string]int64) {
	n := uint32(len(*m))
	c.u32(&n)
	if !c.reading {
		names := make([]string, 0, len(*m))
		for name := range *m {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			v := (*m)[name]
			c.string(&name)
			c.i64(&v)
		}
		return
	}
	if c.err == nil && n > 1024 {
		c.err = fmt.Errorf("%d options", n)
	}
	*m = make(map[string]int64)
	for range n {
		var name string
		var v int64
		c.string(&name)
		c.i64(&v)
		if c.err != nil {
			return
		}
		(*m)[name] = v
	}
}
