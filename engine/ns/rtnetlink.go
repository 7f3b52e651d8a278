//go:build linux

package ns

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// raw is a piece of a netlink message that is ready.
type raw []byte

func (r raw) Len() int          { return len(r) }
func (r raw) Serialize() []byte { return r }

// dumpNetlink asks for all objects of a kind (rtnetlink(7)): what is the RTM_GET*, answer the RTM_NEW* that comes back, and
// head the fixed part of the request. The messages come without their headers.
func dumpNetlink(what, answer uint16, head []byte) ([][]byte, error) {
	out, err := dumpOf(unix.NETLINK_ROUTE, int(what), answer, head)
	if err != nil {
		return nil, fmt.Errorf("netlink request %d: %w", what, err)
	}
	return out, nil
}

// dumpTries is how often a list is asked for that changes each time while it is told.
const dumpTries = 1000

// dumpOf asks for a list. One that has changed while it was told may lack something, and is asked for again (NLM_F_DUMP_INTR in
// netlink(7)): the kernel tests addresses, say, in its own time.
func dumpOf(protocol, what int, answer uint16, head []byte) (out [][]byte, err error) {
	for range dumpTries {
		req := nl.NewNetlinkRequest(what, unix.NLM_F_DUMP)
		req.AddData(raw(head))
		if out, err = req.Execute(protocol, answer); !errors.Is(err, nl.ErrDumpInterrupted) {
			break
		}
	}
	return out, err
}

// askNetlink asks about one object.
func askNetlink(what, answer uint16, message []byte) ([][]byte, error) {
	req := nl.NewNetlinkRequest(int(what), 0)
	req.AddData(raw(message))
	return req.Execute(unix.NETLINK_ROUTE, answer)
}

// send makes one change. flags are NLM_F_*.
func sendNetlink(what uint16, flags int, message []byte) error {
	return sendTo(unix.NETLINK_ROUTE, what, flags, message)
}

// sendTo makes one change by a protocol of netlink(7).
func sendTo(protocol int, what uint16, flags int, message []byte) error {
	req := nl.NewNetlinkRequest(int(what), flags|unix.NLM_F_ACK)
	req.AddData(raw(message))
	_, err := req.Execute(protocol, 0)
	return err
}

// attr is an attribute of a netlink message (struct rtattr).
type attr struct {
	kind   uint16
	data   []byte
	nested uint16 // NLA_F_NESTED, if it was marked so
}

// attrs takes the attributes apart that follow the fixed part of a message.
func attrs(message []byte, head int) ([]attr, error) {
	if len(message) < head {
		return nil, fmt.Errorf("a netlink message of %d bytes, which begins with %d", len(message), head)
	}
	var out []attr
	for b := message[head:]; len(b) >= unix.SizeofRtAttr; {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofRtAttr || size > len(b) {
			return nil, fmt.Errorf("an attribute of %d bytes in the %d that are left of a netlink message", size, len(b))
		}
		kind := binary.NativeEndian.Uint16(b[2:])
		out = append(out, attr{kind &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER), b[unix.SizeofRtAttr:size], kind & unix.NLA_F_NESTED})
		b = b[min((size+3)&^3, len(b)):]
	}
	return out, nil
}

// find returns the data of the first attribute of a kind; nil if there is none.
func find(list []attr, kind uint16) []byte {
	for _, a := range list {
		if a.kind == kind {
			return a.data
		}
	}
	return nil
}

// appendAttr appends an attribute, padded to four bytes.
func appendAttr(b []byte, kind uint16, data []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofRtAttr+len(data)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, data...)
	return append(b, make([]byte, (4-len(data)%4)%4)...)
}

// keep rebuilds a message from its fixed part and those of its attributes that are wanted.
func keep(message []byte, head int, wanted func(kind uint16) bool) ([]byte, error) {
	list, err := attrs(message, head)
	if err != nil {
		return nil, err
	}
	out := append([]byte(nil), message[:head]...)
	for _, a := range list {
		if wanted(a.kind) {
			out = appendAttr(out, a.kind, a.data)
		}
	}
	return out, nil
}

func text(b []byte) string { return unix.ByteSliceToString(b) }

func word(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}
