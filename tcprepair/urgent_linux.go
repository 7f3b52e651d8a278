package tcprepair

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// saveReceived reads the receive queue, with the mark of urgent data if there is one.
func saveReceived(fd int, st *State) (err error) {
	inline := st.Options["SO_OOBINLINE"] != 0
	if err := setInline(fd, false); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, setInline(fd, inline)) }()
	// Up to the mark while urgent data is not in line, else all (tcp_inq in include/net/tcp.h).
	before, err := unix.IoctlGetInt(fd, unix.SIOCINQ)
	if err != nil {
		return fmt.Errorf("SIOCINQ: %w", err)
	}
	var b [1]byte
	_, _, oob := unix.Recvfrom(fd, b[:], unix.MSG_OOB|unix.MSG_PEEK|unix.MSG_DONTWAIT)
	if err := setInline(fd, true); err != nil {
		return err
	}
	n, err := unix.IoctlGetInt(fd, unix.SIOCINQ)
	if err != nil {
		return fmt.Errorf("SIOCINQ: %w", err)
	}
	if before >= n {
		st.RecvQueue, st.RecvSeq, err = saveQueue(fd, recvQueue, n)
		return err
	}
	st.Urgent, st.UrgentAt = UrgentWaits, uint32(before)
	if oob != nil && !inline {
		st.Urgent = UrgentWasRead
	}
	// A read ends before the mark, so there are two.
	if st.RecvQueue, st.RecvSeq, err = saveQueue(fd, recvQueue, before); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, before); err != nil {
		return &NotCarriedError{Socket: st.Name(), What: "urgent data that the program has not read", Remedy: "Linux 6.9 has SO_PEEK_OFF for TCP"}
	}
	rest, _, err := saveQueue(fd, recvQueue, n-before)
	st.RecvQueue = append(st.RecvQueue, rest...)
	return errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, -1))
}

func setInline(fd int, on bool) error {
	v := 0
	if on {
		v = 1
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, v); err != nil {
		return fmt.Errorf("set SO_OOBINLINE: %w", err)
	}
	return nil
}

// fillReceived writes the receive queue. What comes from a mark of urgent data on has to be received anew, for only a segment that
// arrives can set the mark.
func fillReceived(fd int, st *State) error {
	if st.Urgent == NotUrgent {
		return writeQueue(fd, recvQueue, st.RecvQueue)
	}
	if err := writeQueue(fd, recvQueue, st.RecvQueue[:st.UrgentAt]); err != nil {
		return err
	}
	rest := st.RecvQueue[st.UrgentAt:]
	seq := st.RecvSeq - uint32(len(rest))
	w := st.Window
	w.SndWl1, w.RcvWup, w.RcvWnd = seq, seq, min(MaxQueue, uint32(len(rest))+w.RcvWnd)
	if err := setWindow(fd, w); err != nil {
		return err
	}
	const most = 8 << 10
	for flags := byte(flagURG); len(rest) > 0; flags = 0 {
		n := min(len(rest), most)
		if err := receiveData(fd, st, seq, flags, rest[:n]); err != nil {
			return err
		}
		seq, rest = seq+uint32(n), rest[n:]
	}
	if st.Urgent == UrgentWaits {
		return nil
	}
	if err := setRepair(fd, unix.TCP_REPAIR_OFF_NO_WP); err != nil {
		return err
	}
	var b [1]byte
	_, _, err := unix.Recvfrom(fd, b[:], unix.MSG_OOB|unix.MSG_DONTWAIT)
	return errors.Join(err, setRepair(fd, unix.TCP_REPAIR_ON))
}

// receiveData makes the socket receive data from its peer, as receive does a bare segment.
func receiveData(fd int, st *State, seq uint32, flags byte, data []byte) error {
	raw, err := besides(fd, func() (int, error) { return openRaw(st.Local.Addr().Unmap().Is6()) })
	if err != nil {
		return err
	}
	defer unix.Close(raw) //nolint:errcheck // nothing was written that could be lost
	to, err := rawAddress(fd, st)
	if err != nil {
		return err
	}
	if err := unix.Sendto(raw, st.packet(seq, flags, data), 0, to); err != nil {
		return fmt.Errorf("send over the loopback interface (is lo up?): %w", err)
	}
	if err := selectQueue(fd, recvQueue); err != nil {
		return err
	}
	for end := time.Now().Add(time.Second); ; time.Sleep(20 * time.Microsecond) { // as in receive
		next, err := getUint32(fd, unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ)
		if err != nil {
			return fmt.Errorf("TCP_QUEUE_SEQ: %w", err)
		}
		if next == seq+uint32(len(data)) {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("data with a mark of urgent data did not arrive: the next number is %d", next)
		}
	}
}
