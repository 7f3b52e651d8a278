//go:build linux

package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// A Socket is what the kernel keeps of a socket of the internet protocols where no option reaches.
type Socket struct {
	Family, State uint8
	Remote        netip.AddrPort // also of a connection that has ended
	Error         int32          // errno that the next call will report (sk_err)
	Shutdown      uint8          // bit 0: for reading, bit 1: for writing (sk_shutdown)
	Done          bool           // the peer has ended its direction (SOCK_DONE)
	Urgent        uint16         // urg_data of TCP: TCP_URG_* and the byte, 0 if there is none
	UrgentSeq     uint32         // its sequence number
	PeerTimestamp uint32         // the timestamp option of TCP that came last
	CopiedSeq     uint32         // the sequence number of the next byte that the program reads
}

// Where the fields stand in what the program writes.
const (
	sockFD       = 0
	sockPrivate  = 8
	sockPointer  = 16
	sockError    = 24
	sockShutdown = 28
	sockFlags    = 32
	sockCommon   = 40 // the beginning of struct sock_common: addresses, hash, ports, family, state
	sockV6       = 64
	sockUrgent   = 80
	sockUrgSeq   = 84
	sockCopied   = 88
	sockStamp    = 92
	sockRecord   = 96

	commonSize = 19
	flagDone   = 1 << 1 // SOCK_DONE of include/net/sock.h
	maxSockets = 1 << 16
)

// Sockets tells of the sockets that this program itself has open, by descriptor. What it says of other files means nothing.
func Sockets() (_ map[int]Socket, err error) {
	t, err := Kernel("file", "socket", "sock", "sock_common", "tcp_sock", "tcp_options_received", "bpf_iter_task_file")
	if err != nil {
		return nil, err
	}
	program, err := socketProgram(t)
	if err != nil {
		return nil, err
	}
	iterator := t.Func("bpf_iter_task_file")
	if iterator == 0 {
		return nil, errors.New("this kernel has no BPF iterator over open files (Linux 5.8 has)")
	}
	prog, err := LoadIterator(iterator, program)
	if err != nil {
		return nil, fmt.Errorf("loading the BPF program for sockets: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Close(prog)) }()
	raw, err := RunIterator(prog, uint32(unix.Getpid()), sockRecord*maxSockets)
	if err != nil {
		return nil, fmt.Errorf("sockets in the kernel: %w", err)
	}
	out := map[int]Socket{}
	for ; len(raw) >= sockRecord; raw = raw[sockRecord:] {
		out[int(binary.NativeEndian.Uint32(raw[sockFD:]))] = parseSocket(raw[:sockRecord])
	}
	return out, nil
}

func parseSocket(b []byte) Socket {
	ne := binary.NativeEndian
	c := b[sockCommon:]
	s := Socket{Family: c[16], State: c[18], Error: int32(ne.Uint32(b[sockError:])), Shutdown: b[sockShutdown] & 3,
		Done: ne.Uint64(b[sockFlags:])&flagDone != 0, Urgent: ne.Uint16(b[sockUrgent:]), UrgentSeq: ne.Uint32(b[sockUrgSeq:]), CopiedSeq: ne.Uint32(b[sockCopied:]),
		PeerTimestamp: ne.Uint32(b[sockStamp:])}
	addr := netip.AddrFrom4([4]byte(c[:4]))
	if s.Family == unix.AF_INET6 {
		addr = netip.AddrFrom16([16]byte(b[sockV6:]))
	}
	s.Remote = netip.AddrPortFrom(addr, binary.BigEndian.Uint16(c[12:]))
	return s
}

// socketProgram is the iterator's program:
//
//	int f(struct bpf_iter__task_file *ctx) {
//		char record[sockRecord] = {};
//		if (ctx->file) {
//			*(u32 *)(record + sockFD) = ctx->fd;
//			// then, by bpf_probe_read_kernel, which copes with what is no socket:
//			private_data of the file, sk of that, and the fields of that
//			bpf_seq_write(ctx->meta->seq, record, sizeof record);
//		}
//		return 0;
//	}
func socketProgram(t *Types) ([]byte, error) {
	const (
		load, load32, store, store32, mov, movImm, addImm, jneImm, call, exit = 0x79, 0x61, 0x7a, 0x63, 0xbf, 0xb7, 0x07, 0x55, 0x85, 0x95
		probeRead, seqWrite                                                   = 113, 127 // BPF_FUNC_*, include/uapi/linux/bpf.h
		fp                                                                    = 10
	)
	var p []byte
	var failed error
	emit := func(list ...[]byte) {
		for _, i := range list {
			p = append(p, i...)
		}
	}
	at := func(structure, member string) int32 {
		off, err := t.Member(structure, member)
		failed = errors.Join(failed, err)
		return int32(off)
	}
	read := func(base uint8, from, size, to int32) {
		emit(Insn(mov, 3, base, 0, 0), Insn(addImm, 3, 0, 0, from), Insn(movImm, 2, 0, 0, size),
			Insn(mov, 1, fp, 0, 0), Insn(addImm, 1, 0, 0, to-sockRecord), Insn(call, 0, 0, 0, probeRead))
	}
	emit(Insn(mov, 6, 1, 0, 0), Insn(load, 7, 6, 24, 0)) // r7 = ctx->file
	emit(Insn(jneImm, 7, 0, 2, 0), Insn(movImm, 0, 0, 0, 0), Insn(exit, 0, 0, 0, 0))
	for off := int16(0); off < sockRecord; off += 8 {
		emit(Insn(store, fp, 0, off-sockRecord, 0))
	}
	emit(Insn(load32, 1, 6, 16, 0), Insn(store32, fp, 1, sockFD-sockRecord, 0))
	read(7, at("file", "private_data"), 8, sockPrivate)
	emit(Insn(load, 8, fp, sockPrivate-sockRecord, 0))
	read(8, at("socket", "sk"), 8, sockPointer)
	emit(Insn(load, 8, fp, sockPointer-sockRecord, 0))
	read(8, at("sock", "sk_err"), 4, sockError)
	read(8, at("sock", "sk_shutdown"), 1, sockShutdown)
	read(8, at("sock_common", "skc_flags"), 8, sockFlags)
	read(8, at("sock", "__sk_common"), commonSize, sockCommon)
	read(8, at("sock_common", "skc_v6_daddr"), 16, sockV6)
	read(8, at("tcp_sock", "urg_data"), 2, sockUrgent)
	read(8, at("tcp_sock", "urg_seq"), 4, sockUrgSeq)
	read(8, at("tcp_sock", "copied_seq"), 4, sockCopied)
	read(8, at("tcp_sock", "rx_opt")+at("tcp_options_received", "ts_recent"), 4, sockStamp)
	emit(Insn(load, 1, 6, 0, 0), Insn(load, 1, 1, 0, 0)) // ctx->meta->seq
	emit(Insn(mov, 2, fp, 0, 0), Insn(addImm, 2, 0, 0, -sockRecord), Insn(movImm, 3, 0, 0, sockRecord), Insn(call, 0, 0, 0, seqWrite))
	emit(Insn(movImm, 0, 0, 0, 0), Insn(exit, 0, 0, 0, 0))
	return p, failed
}
