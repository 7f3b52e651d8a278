package tcprepair

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// Held is a complete connection at the destination that is still in repair. Exactly one of Release and Drop ends it.
type Held struct {
	f    *os.File
	st   *State
	deaf bool // a filter keeps resets away (keepResetsAway)
}

// Restore makes a connection of a fresh socket: one of the state's family (AF_INET, or AF_INET6 if State.V6) and of TCP, not
// bound, in the network namespace that is to have the connection, where the local address is configured and the way to the
// peer's is up. It needs CAP_NET_ADMIN there, and over the machine for the buffers' sizes.
//
// What the namespace sends must be held back from before this call until after Release, since the peer's
// switches learn from it where the address lives; with State.TCP past ESTABLISHED or unsent data, the kernel does send here.
// Listeners on the same port are best restored first.
func Restore(f *os.File, st *State) (*Held, error) {
	if err := st.Validate(); err != nil {
		return nil, err
	}
	if err := control(f, func(fd int) error { return restore(fd, st) }); err != nil {
		return nil, fmt.Errorf("restore connection %s: %w", st.Name(), err)
	}
	return &Held{f: f, st: st, deaf: st.receives()}, nil
}

// Adopt takes over a connection that Restore has completed for a caller that died before Release.
func Adopt(f *os.File, st *State) (*Held, error) {
	h := &Held{f: f, st: st}
	err := control(f, func(fd int) (err error) {
		if h.deaf, err = keepsResetsAway(fd); err != nil {
			return err
		}
		v, err := getInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR)
		if err != nil {
			return fmt.Errorf("TCP_REPAIR: %w", err)
		}
		if v != unix.TCP_REPAIR_ON {
			return ErrNotInRepair
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("adopt connection %s: %w", st.Name(), err)
	}
	return h, nil
}

func restore(fd int, st *State) error {
	v6, _, err := mustBe(fd, false)
	if err != nil {
		return err
	}
	if v6 != st.V6 {
		return errors.New("the fresh socket is of another address family")
	}
	if err := setRepair(fd, unix.TCP_REPAIR_ON); err != nil {
		return err
	}
	if err := st.Settings.restore(fd, onConn, v6); err != nil {
		return err
	}
	if err := growBuffers(fd, st); err != nil {
		return err
	}
	local, err := sockaddr(fd, st.V6, st.Local)
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, local); err != nil {
		return fmt.Errorf("bind to %v (is the address configured?): %w", st.Local, err)
	}
	if err := join(fd, st); err != nil {
		return err
	}
	if err := negotiated(fd, st); err != nil {
		return err
	}
	if err := fillQueues(fd, st); err != nil {
		return err
	}
	if err := restoreOptions(fd, st.Options, late, onConn, v6); err != nil {
		return err
	}
	return settle(fd, st)
}

// growBuffers makes room for the queues. A byte in a queue costs more than a byte of its buffer: at the worst one page for each
// segment, so four times the queue and a floor are asked for. The final sizes are set by settle.
func growBuffers(fd int, st *State) error {
	const floor = 1 << 20
	room := func(size uint32, queue int) uint32 {
		return uint32(min(max(uint64(size), 4*uint64(queue)+floor), 1<<31-2))
	}
	return setBuffers(fd, room(st.Buffers.Send, len(st.SendQueue)), room(st.Buffers.Recv, len(st.RecvQueue)))
}

// join gives a bound socket its numbers and its other end. In repair that sends nothing and ends in ESTABLISHED.
func join(fd int, st *State) error {
	for _, q := range []struct {
		queue int
		seq   uint32
	}{{sendQueue, st.unacked()}, {recvQueue, st.RecvSeq - uint32(len(st.RecvQueue))}} {
		if err := selectQueue(fd, q.queue); err != nil {
			return err
		}
		if err := setUint32(fd, unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ, q.seq); err != nil {
			return fmt.Errorf("set TCP_QUEUE_SEQ of queue %d: %w", q.queue, err)
		}
	}
	// The size of segments is worked out while connecting, from the interface and this limit; what TCP_REPAIR_OPTIONS
	// sets later does not reach it (tcp_connect_init in net/ipv4/tcp_output.c). The kernel accepts no limit under 88.
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_MAXSEG, int(min(max(st.MSSClamp, 88), 32767))); err != nil {
		return fmt.Errorf("set TCP_MAXSEG to %d: %w", st.MSSClamp, err)
	}
	remote, err := sockaddr(fd, st.V6, st.Remote)
	if err != nil {
		return err
	}
	if err := unix.Connect(fd, remote); err != nil {
		return fmt.Errorf("connect to %v (is there a route?): %w", st.Remote, err)
	}
	return nil
}

// negotiated sets what the two ends agreed upon when the connection was opened.
func negotiated(fd int, st *State) error {
	opts := []unix.TCPRepairOpt{{Code: optMSS, Val: st.MSSClamp}}
	if st.WindowScaling {
		opts = append(opts, unix.TCPRepairOpt{Code: optWindow, Val: uint32(st.SendScale) | uint32(st.RecvScale)<<16})
	}
	if st.SACK {
		opts = append(opts, unix.TCPRepairOpt{Code: optSACK})
	}
	if st.Timestamps {
		opts = append(opts, unix.TCPRepairOpt{Code: optTimestamp})
	}
	if err := unix.SetsockoptTCPRepairOpt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR_OPTIONS, opts); err != nil {
		return fmt.Errorf("set TCP_REPAIR_OPTIONS: %w", err)
	}
	if !st.Timestamps {
		return nil
	}
	// The lowest bit says that the clock counts microseconds, to kernels that know of it.
	stamp := st.Timestamp &^ 1
	if st.MicroTimestamps {
		stamp |= 1
	}
	if err := setUint32(fd, unix.IPPROTO_TCP, unix.TCP_TIMESTAMP, stamp); err != nil {
		return fmt.Errorf("set TCP_TIMESTAMP: %w", err)
	}
	i, err := tcpInfo(fd)
	if err != nil {
		return err
	}
	if st.MicroTimestamps && i.options&infoMicro == 0 {
		return &NotCarriedError{Socket: st.Name(), What: "the microsecond clock of its timestamps",
			Remedy: "the destination's kernel must be 6.7 or newer"}
	}
	return nil
}

// fillQueues writes both queues. In repair, what goes into the send queue counts as sent; so what was never sent is written
// outside of repair, with a peer that lets nothing be sent until Release tells otherwise.
func fillQueues(fd int, st *State) error {
	if st.receives() {
		if err := keepResetsAway(fd); err != nil {
			return err
		}
	}
	if err := fillReceived(fd, st); err != nil {
		return fmt.Errorf("receive queue: %w", err)
	}
	sent := st.SendQueue[:len(st.SendQueue)-int(st.Unsent)]
	if err := writeQueue(fd, sendQueue, sent); err != nil {
		return fmt.Errorf("send queue: %w", err)
	}
	if err := setWindow(fd, st.hungWindow()); err != nil {
		return err
	}
	if st.TCP == CloseWait || st.TCP == LastAck {
		if err := receive(fd, st, CloseWait, st.rcvNext()-1, flagFIN); err != nil {
			return err
		}
	}
	if err := fillEnd(fd, st); err != nil {
		return err
	}
	switch st.TCP {
	case Closing:
		return receive(fd, st, Closing, st.rcvNext()-1, flagFIN)
	case FinWait2:
		return receive(fd, st, FinWait2, st.rcvNext(), 0)
	}
	return nil
}

// fillEnd writes what comes after the sent part of the send queue: a FIN that counts as sent, or else what was never sent.
func fillEnd(fd int, st *State) error {
	if st.TCP.weClosed() && !st.FinUnsent {
		// The send queue is selected: this FIN counts as sent.
		if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
			return fmt.Errorf("shut down: %w", err)
		}
	}
	if st.Unsent > 0 || st.FinUnsent {
		if err := fillUnsent(fd, st); err != nil {
			return err
		}
	}
	return selectQueue(fd, noQueue)
}

// fillUnsent writes the part that was never sent, with the window shut so that it stays so.
func fillUnsent(fd int, st *State) error {
	if err := setWindow(fd, st.hungWindow()); err != nil {
		return err
	}
	if err := setRepair(fd, unix.TCP_REPAIR_OFF_NO_WP); err != nil {
		return err
	}
	if err := writeAll(fd, st.SendQueue[len(st.SendQueue)-int(st.Unsent):]); err != nil {
		return fmt.Errorf("unsent part of the send queue: %w", err)
	}
	if st.FinUnsent {
		if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
			return fmt.Errorf("shut down: %w", err)
		}
	}
	return setRepair(fd, unix.TCP_REPAIR_ON)
}

// hungWindow is the window of a held connection: shut towards the peer if there is something unsent. It stands before the
// peer's FIN has been received anew.
func (s *State) hungWindow() Window {
	w := s.Window
	if s.Unsent > 0 || s.FinUnsent {
		w.SndWnd = 0
	}
	if s.TCP.peerClosed() && after(w.RcvWup, s.RecvSeq) {
		w.RcvWup = s.RecvSeq
	}
	if after(w.SndWl1, s.RecvSeq+w.RcvWnd) {
		w.SndWl1 = s.RecvSeq
	}
	return w
}

func writeQueue(fd, queue int, data []byte) error {
	if err := selectQueue(fd, queue); err != nil {
		return err
	}
	return writeAll(fd, data)
}

// writeAll sends without blocking: the buffers have been made large enough, so a full one is an error. One call takes
// what it finds memory for.
func writeAll(fd int, data []byte) error {
	const chunk = 64 << 10
	for off := 0; off < len(data); {
		n, err := unix.SendmsgN(fd, data[off:min(off+chunk, len(data))], nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("after %d of %d bytes: %w", off, len(data), err)
		}
		off += n
	}
	return nil
}

// settle sets what the calls before would have disturbed: the window, the buffers' final sizes, the state of the ends.
func settle(fd int, st *State) error {
	w := st.Window
	if st.Unsent > 0 || st.FinUnsent {
		w.SndWnd = 0
	}
	if err := setWindow(fd, w); err != nil {
		return err
	}
	if clamp, ok := st.Options[windowClamp]; ok && clamp > 0 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_WINDOW_CLAMP, int(int32(min(clamp, MaxQueue)))); err != nil {
			return fmt.Errorf("set %s to %d: %w", windowClamp, clamp, err)
		}
	}
	if st.ReadShutdown {
		if err := unix.Shutdown(fd, unix.SHUT_RD); err != nil {
			return fmt.Errorf("shut down reading: %w", err)
		}
	}
	if err := setBuffers(fd, st.Buffers.Send, st.Buffers.Recv); err != nil {
		return err
	}
	if err := unlockBuffers(fd, st.Buffers); err != nil {
		return err
	}
	i, err := tcpInfo(fd)
	if err != nil {
		return err
	}
	if i.state != st.TCP {
		return fmt.Errorf("the socket came out as %v, want %v", i.state, st.TCP)
	}
	// The limit of segments has served its purpose.
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_MAXSEG, 0); err != nil {
		return fmt.Errorf("reset TCP_MAXSEG: %w", err)
	}
	if st.receives() {
		return nil // TakeResets does it
	}
	return st.Settings.finish(fd, onConn, st.V6)
}

// receives says that the restored socket is sent segments in its peer's name, and so may acknowledge them.
func (s *State) receives() bool {
	return s.Urgent != NotUrgent || s.TCP == CloseWait || s.TCP == LastAck || s.TCP == Closing
}

// withoutResets drops resets: it returns 0 for a segment with that flag, and else lets all of it pass.
var withoutResets = []unix.SockFilter{
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 13}, // the flags (RFC 9293, section 3.1): the filter of a TCP socket begins at the header
	{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: flagRST, Jf: 1},
	{Code: unix.BPF_RET | unix.BPF_K},
	{Code: unix.BPF_RET | unix.BPF_K, K: 1<<32 - 1},
}

// keepResetsAway attaches a filter that drops resets. Where the other end of a connection is restored, too, and is not there yet, the kernel
// answers with a reset when this end acknowledges what it has received: at once, or when its delayed acknowledgement is due.
func keepResetsAway(fd int) error {
	program := unix.SockFprog{Len: uint16(len(withoutResets)), Filter: &withoutResets[0]}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program); err != nil {
		return fmt.Errorf("attach a socket filter: %w", err)
	}
	return nil
}

// keepsResetsAway reports whether keepResetsAway was the last to attach a filter.
func keepsResetsAway(fd int) (bool, error) {
	b, err := filterOf(fd)
	return slices.Equal(filterProgram(b), withoutResets), err
}

// TakeResets lets the connection see resets of its peer, which Restore has kept away from it. It is to be called once the other ends of
// connections within the tree have been restored; Release does it otherwise.
func (h *Held) TakeResets() error {
	if !h.deaf {
		return nil
	}
	err := control(h.f, func(fd int) error {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0); err != nil {
			return fmt.Errorf("detach the socket filter: %w", err)
		}
		return h.st.Settings.finish(fd, onConn, h.st.V6)
	})
	if err != nil {
		return fmt.Errorf("restore connection %s: %w", h.st.Name(), err)
	}
	h.deaf = false
	return nil
}

// Release lets the connection go on here. It sends what was unsent as far as the peer's window and the congestion control
// allow, and nothing else; captured frames that are delivered now reach it. State.AckProbe says what to do when nothing
// was captured.
func (h *Held) Release() error {
	if err := h.TakeResets(); err != nil {
		return err
	}
	err := control(h.f, func(fd int) error {
		unsent := h.st.Unsent > 0 || h.st.FinUnsent
		if unsent {
			if err := setWindow(fd, h.st.Window); err != nil {
				return err
			}
		}
		if err := setRepair(fd, unix.TCP_REPAIR_OFF_NO_WP); err != nil {
			return err
		}
		if err := setReuse(fd, h.st.ReuseAddr); err != nil {
			return err
		}
		if !unsent {
			return nil
		}
		return push(fd, h.st.Options["TCP_NODELAY"] != 0)
	})
	if err != nil {
		return fmt.Errorf("release connection %s: %w", h.st.Name(), err)
	}
	return nil
}

// push makes the kernel send what waits: setting TCP_NODELAY does, even on a corked socket (tcp(7)).
func push(fd int, nodelay bool) error {
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return fmt.Errorf("set TCP_NODELAY: %w", err)
	}
	if nodelay {
		return nil
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 0); err != nil {
		return fmt.Errorf("reset TCP_NODELAY: %w", err)
	}
	return nil
}

// Drop closes f and leaves the connection in repair, so that the last of its descriptors to be closed ends it without a packet.
func (h *Held) Drop() error { return h.f.Close() }
