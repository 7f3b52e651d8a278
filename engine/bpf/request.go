//go:build linux

package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// A Request is a connection that a listener is to take for one whose handshake the kernel has seen: its queue of connections that
// wait to be accepted has no other way in. The kernel makes it of the next segment with Mark from Remote to Local, which must acknowledge
// without data or other flags; its numbers become those of the connection (bpf_sk_assign_tcp_reqsk, Linux 6.9; the network namespace
// must not have net.ipv4.tcp_syncookies off).
type Request struct {
	Mark                 uint32
	Local, Remote        netip.AddrPort
	MSS                  uint16
	WindowScaling        bool
	SendScale, RecvScale uint8
	SACK, ECN            bool
	Timestamps, Micro    bool
	PeerTimestamp        uint32 // the last one that came from the peer
	Timestamp            uint32 // what our clock of the option is to show now
}

const kfuncRequest = "bpf_sk_assign_tcp_reqsk"

// Requests makes Requests. Open it before anything depends on it: an error means that this kernel has not the way.
type Requests struct{ kfunc int32 }

// OpenRequests finds out whether the kernel can.
func OpenRequests() (*Requests, error) {
	t, err := Kernel(kfuncRequest)
	if err != nil {
		return nil, err
	}
	id := t.Func(kfuncRequest)
	if id == 0 {
		return nil, errors.New("this kernel has no way into a listener's queue (bpf_sk_assign_tcp_reqsk, Linux 6.9)")
	}
	r := &Requests{kfunc: int32(id)}
	fd, err := load(r.program(&Request{Local: netip.MustParseAddrPort("127.0.0.1:1"), Remote: netip.MustParseAddrPort("127.0.0.1:2")}), bpfProgTypeCls, 0, 0, 0, "migrate_request")
	if err != nil {
		return nil, fmt.Errorf("loading the BPF program that fills a listener's queue: %w", err)
	}
	return r, unix.Close(fd)
}

// With runs fn, which sends the segment over the loopback interface, while the request stands. It must be called on a thread in the
// listener's network namespace.
func (r *Requests) With(req *Request, fn func() error) (err error) {
	prog, err := load(r.program(req), bpfProgTypeCls, 0, 0, 0, "migrate_request")
	if err != nil {
		return fmt.Errorf("loading the BPF program that fills a listener's queue: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Close(prog)) }()
	const loopback = 1 // the index of lo in every network namespace
	link, err := attachIngress(prog, loopback)
	if err != nil {
		return fmt.Errorf("attaching a BPF program to lo: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Close(link)) }()
	return fn()
}

// attributes is struct bpf_tcp_req_attrs (include/net/tcp.h).
func (r *Request) attributes() []byte {
	ne := binary.NativeEndian
	b := ne.AppendUint32(nil, r.PeerTimestamp)
	b = ne.AppendUint32(b, r.Timestamp)
	b = ne.AppendUint16(b, r.MSS)
	b = append(b, r.RecvScale, r.SendScale)
	for _, v := range []bool{r.ECN, r.WindowScaling, r.SACK, r.Timestamps, r.Micro} {
		if v {
			b = append(b, 1)
		} else {
			b = append(b, 0)
		}
	}
	return append(b, 0, 0, 0)
}

// tuple is struct bpf_sock_tuple of the segment, and where in a frame the ports stand.
func (r *Request) tuple() (b []byte, ports int32) {
	remote, local := r.Remote.Addr().Unmap(), r.Local.Addr().Unmap()
	b = append(append(b, remote.AsSlice()...), local.AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, r.Remote.Port())
	b = binary.BigEndian.AppendUint16(b, r.Local.Port())
	const ethernet = 14
	if local.Is4() {
		return b, ethernet + 20
	}
	return b, ethernet + 40
}

// program is, for the frames of lo:
//
//	int f(struct __sk_buff *skb) {
//		if (skb->mark == Mark && ports of the segment are those of the tuple) {
//			skc = bpf_skc_lookup_tcp(skb, &tuple, sizeof tuple, BPF_F_CURRENT_NETNS, 0);
//			if (skc) {
//				sk = bpf_skc_to_tcp_sock(skc);
//				if (sk)
//					bpf_sk_assign_tcp_reqsk(skb, sk, &attributes, sizeof attributes);
//				bpf_sk_release(skc);
//			}
//		}
//		return TCX_NEXT;
//	}
func (r *Requests) program(req *Request) []byte {
	const (
		load32, storeImm, mov, movImm, addImm, jeqImm, jneImm, jne32, call, exit = 0x61, 0x62, 0xbf, 0xb7, 0x07, 0x15, 0x55, 0x56, 0x85, 0x95
		loadBytes, release, lookup, toTCP                                        = 26, 86, 99, 137 // BPF_FUNC_*
		kfunc                                                                    = 2               // BPF_PSEUDO_KFUNC_CALL
		fp, mark, atPorts, atTuple, atAttrs                                      = 10, 8, -8, -48, -80
	)
	tuple, ports := req.tuple()
	attrs := req.attributes()
	ne := binary.NativeEndian
	var body [][]byte
	place := func(at int16, b []byte) {
		for ; len(b) >= 4; b, at = b[4:], at+4 {
			body = append(body, Insn(storeImm, fp, 0, at, int32(ne.Uint32(b))))
		}
	}
	address := func(reg uint8, at int32) { body = append(body, Insn(mov, reg, fp, 0, 0), Insn(addImm, reg, 0, 0, at)) }
	add := func(list ...[]byte) { body = append(body, list...) }

	place(atTuple, tuple)
	place(atAttrs, attrs)
	add(Insn(mov, 1, 6, 0, 0))
	address(2, atTuple)
	add(Insn(movImm, 3, 0, 0, int32(len(tuple))), Insn(movImm, 4, 0, 0, -1), Insn(movImm, 5, 0, 0, 0), Insn(call, 0, 0, 0, lookup))
	found := [][]byte{Insn(mov, 7, 0, 0, 0), Insn(mov, 1, 7, 0, 0), Insn(call, 0, 0, 0, toTCP)}
	assign := [][]byte{Insn(mov, 1, 6, 0, 0), Insn(mov, 2, 0, 0, 0), Insn(mov, 3, fp, 0, 0), Insn(addImm, 3, 0, 0, atAttrs),
		Insn(movImm, 4, 0, 0, int32(len(attrs))), Insn(call, 0, kfunc, 0, r.kfunc)}
	end := [][]byte{Insn(mov, 1, 7, 0, 0), Insn(call, 0, 0, 0, release)}
	add(Insn(jeqImm, 0, 0, int16(len(found)+1+len(assign)+len(end)), 0))
	add(found...)
	add(Insn(jeqImm, 0, 0, int16(len(assign)), 0))
	add(assign...)
	add(end...)

	head := [][]byte{Insn(mov, 6, 1, 0, 0), Insn(load32, 2, 6, mark, 0), nil,
		Insn(mov, 1, 6, 0, 0), Insn(movImm, 2, 0, 0, ports), Insn(mov, 3, fp, 0, 0), Insn(addImm, 3, 0, 0, atPorts), Insn(movImm, 4, 0, 0, 4),
		Insn(call, 0, 0, 0, loadBytes), nil, Insn(load32, 2, fp, atPorts, 0), nil}
	skip := func(i int) int16 { return int16(len(head) - i - 1 + len(body)) }
	head[2] = Insn(jne32, 2, 0, skip(2), int32(req.Mark))
	head[9] = Insn(jneImm, 0, 0, skip(9), 0)
	head[11] = Insn(jne32, 2, 0, skip(11), int32(ne.Uint32(tuple[len(tuple)-4:])))
	var p []byte
	for _, list := range [][][]byte{head, body, {Insn(movImm, 0, 0, 0, -1), Insn(exit, 0, 0, 0, 0)}} {
		for _, i := range list {
			p = append(p, i...)
		}
	}
	return p
}
