package tcprepair

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Paused is a connection in repair at the source. Exactly one of Resume and Drop ends it.
type Paused struct {
	f     *os.File
	v6    bool
	reuse bool
	// found tells that somebody who has died left it in repair, perhaps fenced.
	found bool
	// fenced is the peer's window that Save has hidden from the kernel; 0 if it has not.
	fenced uint32
	// timeouts is tcpi_total_rto at Save.
	timeouts uint16
}

// Timeouts is how many retransmission time-outs the connection had had when it was saved (tcpi_total_rto; 0 before Linux 6.7). The kernel
// counts them modulo 1<<16, and for a restored connection from 0.
func (p *Paused) Timeouts() uint16 { return p.timeouts }

// Pause takes a connection into repair. f is any descriptor of the socket, such as one from pidfd_getfd(2); the caller keeps
// it, and all copies of it, in other processes too, are of the one paused socket: programs that use it meanwhile see errors, so
// they must be stopped. It needs CAP_NET_ADMIN over the socket's network namespace.
//
// A socket that is in repair already, left so by a caller that died, is taken over.
func Pause(f *os.File) (*Paused, error) {
	p := &Paused{f: f}
	err := control(f, func(fd int) error {
		var err error
		if p.v6, _, err = mustBe(fd, false); err != nil {
			return err
		}
		i, err := tcpInfo(fd)
		if err != nil {
			return err
		}
		if !i.state.carried() {
			return &NotCarriedError{Socket: localName(fd), What: "the state " + i.state.String()}
		}
		// Repair overwrites SO_REUSEADDR (2 while in repair, 0 after it). What it was before is lost if this socket was
		// found in repair; then 1 is right for all that a server accepted and harmless for the rest.
		reuse, err := getInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR)
		if err != nil {
			return fmt.Errorf("SO_REUSEADDR: %w", err)
		}
		p.reuse = reuse != 0
		v, err := getInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR)
		if err != nil {
			return fmt.Errorf("TCP_REPAIR: %w", err)
		}
		p.found = v == unix.TCP_REPAIR_ON
		return setRepair(fd, unix.TCP_REPAIR_ON)
	})
	if err != nil {
		return nil, fmt.Errorf("pause connection: %w", err)
	}
	return p, nil
}

// FlushAck sends an acknowledgement that the kernel was about to delay, if it can be sent now. Call it while frames still
// leave the host; without it, State.Unacknowledged tells what the peer is owed.
func (p *Paused) FlushAck() error {
	return control(p.f, func(fd int) error {
		quick, err := getInt(fd, unix.IPPROTO_TCP, unix.TCP_QUICKACK)
		if err != nil {
			return fmt.Errorf("TCP_QUICKACK: %w", err)
		}
		// An even value other than 0 flushes and then goes back to delaying (tcp_sock_set_quickack in net/ipv4/tcp.c).
		v := 2
		if quick != 0 {
			v = 1
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_QUICKACK, v); err != nil {
			return fmt.Errorf("set TCP_QUICKACK: %w", err)
		}
		return nil
	})
}

// Save reads the connection's state. Frames must be kept away from the socket from before this call until Resume or the end of
// it; else what arrives is acknowledged and lost.
func (p *Paused) Save() (*State, error) {
	st := &State{V6: p.v6, Settings: Settings{ReuseAddr: p.reuse}}
	err := control(p.f, func(fd int) error {
		if err := saveNames(fd, st); err != nil {
			return err
		}
		if err := p.saveNumbers(fd, st); err != nil {
			return fmt.Errorf("connection %s: %w", st.Name(), err)
		}
		if err := saveSettings(fd, st); err != nil {
			return fmt.Errorf("connection %s: %w", st.Name(), err)
		}
		if p.fenced != 0 {
			st.Window.SndWnd = p.fenced // it is saved again
		}
		if err := p.fence(fd, st.Window.SndWnd); err != nil {
			return fmt.Errorf("connection %s: %w", st.Name(), err)
		}
		if err := saveQueues(fd, st); err != nil {
			return fmt.Errorf("connection %s: %w", st.Name(), err)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("save: %w", err)
	}
	return st, nil
}

// fence keeps the kernel from sending what was never sent: a stopped program's socket still has timers, and a loss probe (RFC 8985) or a
// paced segment takes new data if the peer's window has room. The peer would acknowledge what the restored socket has not sent yet,
// and that one would ignore it for ever (RFC 9293, 3.10.7.4). What was sent is sent again as before.
func (p *Paused) fence(fd int, window uint32) error {
	n, err := unix.IoctlGetInt(fd, unix.SIOCOUTQNSD)
	if err != nil {
		return fmt.Errorf("SIOCOUTQNSD: %w", err)
	}
	if n == 0 || window == 0 {
		return nil
	}
	if err := setSendWindow(fd, 0); err != nil {
		return err
	}
	p.fenced = window
	return nil
}

// Unfence lets the kernel know the peer's window again. Call it once no frames leave the host any more, if the connection may stay paused
// for long: a connection whose peer has shut its window ends sooner than others (tcp_rtx_probe0_timed_out in net/ipv4/tcp_timer.c).
func (p *Paused) Unfence() error {
	if p.fenced == 0 {
		return nil
	}
	err := control(p.f, func(fd int) error { return setSendWindow(fd, p.fenced) })
	if err != nil {
		return fmt.Errorf("the window of a paused connection: %w", err)
	}
	p.fenced = 0
	return nil
}

// setSendWindow sets the peer's window, and leaves our own as it is.
func setSendWindow(fd int, size uint32) error {
	w, err := getWindow(fd)
	if err != nil {
		return err
	}
	w.SndWnd, w.MaxWindow = size, max(w.MaxWindow, size)
	return setWindow(fd, w)
}

func saveNames(fd int, st *State) error {
	local, err := unix.Getsockname(fd)
	if err != nil {
		return fmt.Errorf("getsockname: %w", err)
	}
	remote, err := unix.Getpeername(fd)
	if err != nil {
		return fmt.Errorf("getpeername: %w", err)
	}
	if st.Local, err = addrPort(fd, local); err != nil {
		return err
	}
	st.Remote, err = addrPort(fd, remote)
	return err
}

// saveNumbers reads what changes with every segment, except the queues' bytes.
func (p *Paused) saveNumbers(fd int, st *State) error {
	i, err := tcpInfo(fd)
	if err != nil {
		return err
	}
	if !i.state.carried() {
		return &NotCarriedError{Socket: st.Name(), What: "the state " + i.state.String()}
	}
	st.TCP, p.timeouts = i.state, i.timeouts
	st.Timestamps = i.options&infoTimestamps != 0
	st.MicroTimestamps = i.options&infoMicro != 0
	st.SACK = i.options&infoSACK != 0
	st.ECN = i.options&infoECN != 0
	if st.WindowScaling = i.options&infoWScale != 0; st.WindowScaling {
		st.SendScale, st.RecvScale = i.sendScale, i.recvScale
	}
	if st.MSSClamp, err = getUint32(fd, unix.IPPROTO_TCP, unix.TCP_MAXSEG); err != nil {
		return fmt.Errorf("TCP_MAXSEG: %w", err)
	}
	if st.Timestamps {
		if st.Timestamp, err = getUint32(fd, unix.IPPROTO_TCP, unix.TCP_TIMESTAMP); err != nil {
			return fmt.Errorf("TCP_TIMESTAMP: %w", err)
		}
	}
	if st.Window, err = getWindow(fd); err != nil {
		return err
	}
	if !st.TCP.peerClosed() {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		if _, err := unix.Poll(fds, 0); err != nil {
			return fmt.Errorf("poll: %w", err)
		}
		st.ReadShutdown = fds[0].Revents&unix.POLLRDHUP != 0
	}
	return nil
}

func saveSettings(fd int, st *State) error {
	if err := st.Settings.save(fd, st.Name(), false, onConn, st.V6); err != nil {
		return err
	}
	clamp, err := getInt(fd, unix.IPPROTO_TCP, unix.TCP_WINDOW_CLAMP)
	if err != nil {
		return fmt.Errorf("%s: %w", windowClamp, err)
	}
	st.Options[windowClamp] = int64(clamp)
	return nil
}

// saveQueues reads both queues and their numbers. What is unsent is counted first: with the send queue selected, a timer of the
// kernel would take what it sends next as sent without sending it (tcp_write_xmit in net/ipv4/tcp_output.c).
func saveQueues(fd int, st *State) error {
	unsent, err := unix.IoctlGetInt(fd, unix.SIOCOUTQNSD)
	if err != nil {
		return fmt.Errorf("SIOCOUTQNSD: %w", err)
	}
	if off, ok := st.Options["SO_PEEK_OFF"]; ok && off >= 0 {
		// It would make the copies below start elsewhere, and move.
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, -1); err != nil {
			return fmt.Errorf("set SO_PEEK_OFF: %w", err)
		}
		defer unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, int(off)) //nolint:errcheck // it was its own value
	}
	if err := saveReceived(fd, st); err != nil {
		return fmt.Errorf("receive queue: %w", err)
	}
	outq, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
	if err != nil {
		return fmt.Errorf("SIOCOUTQ: %w", err)
	}
	if st.TCP.weClosed() && outq > 0 { // our FIN counts
		outq--
		if unsent > 0 {
			st.FinUnsent = true
			unsent--
		}
	}
	if st.SendQueue, st.SendSeq, err = saveQueue(fd, sendQueue, outq); err != nil {
		return fmt.Errorf("send queue: %w", err)
	}
	st.Unsent = uint32(unsent)
	if st.TCP.peerClosed() {
		st.RecvSeq--
	}
	if st.TCP.weClosed() {
		st.SendSeq--
	}
	return selectQueue(fd, noQueue)
}

// saveQueue copies one queue of n bytes, and reads the number after its last byte.
func saveQueue(fd, queue, n int) ([]byte, uint32, error) {
	if err := selectQueue(fd, queue); err != nil {
		return nil, 0, err
	}
	seq, err := getUint32(fd, unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ)
	if err != nil {
		return nil, 0, fmt.Errorf("TCP_QUEUE_SEQ: %w", err)
	}
	if n == 0 {
		return nil, seq, nil
	}
	buf := make([]byte, n+1) // one more, to notice a queue that is longer
	got, _, err := unix.Recvfrom(fd, buf, unix.MSG_PEEK|unix.MSG_DONTWAIT)
	if err != nil {
		return nil, 0, fmt.Errorf("peek %d bytes: %w", n, err)
	}
	if got != n {
		return nil, 0, fmt.Errorf("%d bytes, %d were counted: %w", got, n, ErrChanged)
	}
	return buf[:n:n], seq, nil
}

// Unchanged verifies that nothing has arrived or been acknowledged since st was saved; if it has, the error matches
// ErrChanged and the state must be saved again.
func (p *Paused) Unchanged(st *State) error {
	return control(p.f, func(fd int) error {
		i, err := tcpInfo(fd)
		if err != nil {
			return err
		}
		if i.state != st.TCP {
			return fmt.Errorf("connection %s is %v, was %v: %w", st.Name(), i.state, st.TCP, ErrChanged)
		}
		outq, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
		if err != nil {
			return fmt.Errorf("SIOCOUTQ: %w", err)
		}
		inq, err := unix.IoctlGetInt(fd, unix.SIOCINQ)
		if err != nil {
			return fmt.Errorf("SIOCINQ: %w", err)
		}
		unsent, err := unix.IoctlGetInt(fd, unix.SIOCOUTQNSD)
		if err != nil {
			return fmt.Errorf("SIOCOUTQNSD: %w", err)
		}
		was := int(st.Unsent)
		if st.FinUnsent {
			was++
		}
		if unsent != was {
			return fmt.Errorf("connection %s: %d bytes not yet sent (were %d): %w", st.Name(), unsent, was, ErrChanged)
		}
		want := len(st.SendQueue)
		if st.TCP.weClosed() && st.TCP != FinWait2 {
			want++
		}
		if outq != want || inq != len(st.RecvQueue) {
			return fmt.Errorf("connection %s: %d bytes unacknowledged (were %d), %d unread (were %d): %w",
				st.Name(), outq, want, inq, len(st.RecvQueue), ErrChanged)
		}
		return nil
	})
}

// Resume lets the connection go on here. It sends nothing itself, but of a connection that was found in repair: there the kernel may have
// to ask the peer for its window.
func (p *Paused) Resume() error {
	if err := p.Unfence(); err != nil {
		return err
	}
	return control(p.f, func(fd int) error {
		if err := setRepair(fd, unix.TCP_REPAIR_OFF_NO_WP); err != nil {
			return fmt.Errorf("resume connection %s: %w", localName(fd), err)
		}
		if err := setReuse(fd, p.reuse); err != nil || !p.found {
			return err
		}
		nodelay, err := getInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY)
		if err != nil {
			return fmt.Errorf("TCP_NODELAY: %w", err)
		}
		return push(fd, nodelay != 0)
	})
}

// Drop closes f and leaves the connection in repair, so that the last of its descriptors to be closed, in whatever process,
// ends it without a packet.
func (p *Paused) Drop() error { return p.f.Close() }

func setReuse(fd int, on bool) error {
	v := 0
	if on {
		v = 1
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, v); err != nil {
		return fmt.Errorf("set SO_REUSEADDR: %w", err)
	}
	return nil
}
