//go:build linux

package files

import (
	"bytes"
	"fmt"

	"golang.org/x/sys/unix"

	"migrate/engine/images/imagespb"
)

// A filler gives a new pseudoterminal what waited in the old one. Input is written by the master, under settings by which the
// line discipline keeps every byte as it is; output is written by the slave.
type filler struct {
	master, slave int // slave is -1 where it was never open, which must stay so
	x             *imagespb.Terminal
	stop, start   byte // flow control characters that do not occur in the input
	lnext, eof    byte
}

// fillPatience bounds how long the kernel's worker may take to carry what was written from one end to the other, in ms.
const fillPatience = 10000

// plain are settings under which nothing is changed, echoed or acted upon, except flow control if asked for.
func (f *filler) plain(canonical bool) *unix.Termios {
	t := &unix.Termios{Iflag: unix.IXON, Cflag: unix.CS8 | unix.CREAD | unix.B38400, Ispeed: 38400, Ospeed: 38400}
	if canonical {
		t.Lflag = unix.ICANON | unix.IEXTEN
	}
	t.Cc[unix.VMIN], t.Cc[unix.VSTART], t.Cc[unix.VSTOP], t.Cc[unix.VLNEXT], t.Cc[unix.VEOF] = 1, f.start, f.stop, f.lnext, f.eof
	return t
}

func (f *filler) set(t *unix.Termios) error {
	if err := unix.IoctlSetTermios(f.master, unix.TCSETS2, t); err != nil {
		return fmt.Errorf("TCSETS2: %w", err)
	}
	return nil
}

// pick chooses characters for special purposes: if possible such as do not occur. In lines others can be quoted.
func (f *filler) pick() (unused int) {
	var used [256]bool
	for _, l := range f.x.GetLines() {
		for _, b := range l.GetData() {
			used[b] = true
		}
	}
	for _, b := range f.x.GetPartial() {
		used[b] = true
	}
	used[0], used['\n'], used[0xff] = true, true, true
	to := []*byte{&f.stop, &f.start, &f.lnext, &f.eof}
	for i := range to {
		*to[i] = byte(0xf0 + i)
	}
	for b := 1; b < 256 && unused < len(to); b++ {
		if !used[b] {
			*to[unused] = byte(b)
			unused++
		}
	}
	return unused
}

// quoted puts the literal-next character before what would be special in a line.
func (f *filler) quoted(out, line []byte) []byte {
	for _, b := range line {
		if b == '\n' || b == f.stop || b == f.start || b == f.lnext || b == f.eof {
			out = append(out, f.lnext)
		}
		out = append(out, b)
	}
	return out
}

// input fills the input.
func (f *filler) input(canonical bool) error {
	unused := f.pick()
	if err := f.set(f.plain(canonical)); err != nil {
		return err
	}
	if !canonical {
		return f.raw(unused)
	}
	var out []byte
	kept := 0
	for _, l := range f.x.GetLines() {
		data := l.GetData()
		kept += len(data)
		if n := len(data); !l.GetEndOfFile() && n > 0 && data[n-1] == '\n' {
			out = append(f.quoted(out, data[:n-1]), '\n')
			continue
		}
		out = append(f.quoted(out, data), f.eof)
		kept++
	}
	out = f.quoted(out, f.x.GetPartial())
	if kept += len(f.x.GetPartial()); kept >= nttyBuf {
		return fmt.Errorf("%d bytes of input, and a terminal holds fewer than %d", kept, nttyBuf)
	}
	return f.writeMarked(out, nil, false)
}

// held leaves the terminal as if the stop character, or the literal-next character, had just been typed.
func (f *filler) held(canonical bool) error {
	hold := f.x.GetStopped() && !f.x.GetStoppedByCall()
	quote := canonical && f.x.GetQuote()
	if !hold && !quote {
		return nil
	}
	if err := f.set(f.plain(canonical)); err != nil {
		return err
	}
	var after []byte
	if quote {
		after = []byte{f.lnext}
	}
	return f.writeMarked(nil, after, hold)
}

// raw fills input without lines. Where every byte occurs in it, flow control cannot mark its end, so its arrival is counted.
func (f *filler) raw(unused int) error {
	data := f.x.GetPartial()
	if unused >= 2 && len(data) < nttyBuf-8 {
		return f.writeMarked(data, nil, false)
	}
	if f.slave < 0 {
		return fmt.Errorf("%d bytes of input to a terminal that was never open: %w", len(data), ErrNotCarried)
	}
	t := f.plain(false)
	t.Iflag = 0
	if err := f.set(t); err != nil {
		return err
	}
	if err := write(f.master, data); err != nil {
		return err
	}
	return f.arrived(f.slave, len(data))
}

// arrived waits until n bytes can be read.
func (f *filler) arrived(fd, n int) error {
	for range fillPatience {
		have, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
		if err != nil || have >= n {
			return err
		}
		// Nothing tells when a given number of bytes is there.
		if _, err := unix.Poll(nil, 1); err != nil && err != unix.EINTR {
			return err
		}
	}
	return fmt.Errorf("%d bytes do not arrive", n)
}

// writeMarked writes by the master and returns when all of it has passed the line discipline: a stop and a start character behind
// it, which the master sees pass in packet mode (TIOCPKT in ioctl_tty(2)). Where the output is to be held, the start is left out.
func (f *filler) writeMarked(data, after []byte, hold bool) error {
	if err := unix.IoctlSetPointerInt(f.master, unix.TIOCPKT, 1); err != nil {
		return fmt.Errorf("TIOCPKT: %w", err)
	}
	out := append(bytes.Clone(data), f.stop)
	want := byte(unix.TIOCPKT_STOP)
	if !hold {
		out, want = append(out, f.start), unix.TIOCPKT_START
	}
	if err := write(f.master, append(out, after...)); err != nil {
		return err
	}
	for range fillPatience {
		// The kernel wakes for this status only those who wait for input as well.
		if err := await(f.master, unix.POLLIN|unix.POLLPRI); err != nil {
			return fmt.Errorf("input of %d bytes: %w", len(data), err)
		}
		if !polled(f.master, unix.POLLPRI) { // output waits, and hides when the status comes
			if _, err := unix.Poll(nil, 1); err != nil && err != unix.EINTR {
				return err
			}
			continue
		}
		var status [1]byte
		if n, err := unix.Read(f.master, status[:]); err != nil || n != 1 {
			return fmt.Errorf("status of packet mode: %d bytes: %w", n, err)
		}
		if status[0]&want != 0 {
			return unix.IoctlSetPointerInt(f.master, unix.TIOCPKT, 0)
		}
	}
	return fmt.Errorf("input of %d bytes does not arrive", len(data))
}

// await waits for an event of poll(2).
func await(fd int, event int16) error {
	p := []unix.PollFd{{Fd: int32(fd), Events: event}}
	for {
		n, err := unix.Poll(p, fillPatience)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return err
		case n == 0:
			return fmt.Errorf("the terminal does not go on for %d ms", fillPatience)
		case p[0].Revents&event == 0:
			return fmt.Errorf("the terminal was closed (poll says 0x%x)", p[0].Revents)
		}
		return nil
	}
}

// flipChunk is the unit in which the kernel allocates the buffers of a terminal (drivers/tty/tty_buffer.c). Longer writes may
// leave a part of a buffer unused, and then less fits than a program that wrote little at a time has brought to fit.
const flipChunk = 256

// write writes all of it to a descriptor with O_NONBLOCK.
func write(fd int, data []byte) error {
	for waited := 0; len(data) > 0; {
		n, err := unix.Write(fd, data[:min(len(data), flipChunk)])
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			// Room comes when the kernel's worker has moved on; nobody is told of it.
			if waited++; waited > fillPatience {
				return fmt.Errorf("%d bytes do not fit into the terminal", len(data))
			}
			if _, err := unix.Poll(nil, 1); err != nil && err != unix.EINTR {
				return err
			}
		case err != nil:
			return err
		}
		data = data[max(n, 0):]
	}
	return nil
}

// output fills what the master has not read, where the slave was open. The settings of input are in place, under which nothing
// is changed on the way.
func (f *filler) output() error {
	if f.slave < 0 {
		return nil
	}
	return write(f.slave, f.x.GetOutput())
}

// maxEcho is how much one line may echo: less than what the line discipline holds.
const maxEcho = 1024

// echoed fills the output of a terminal whose slave was never open, in the way in which it came there: as the echo of a line,
// which is then erased.
func (f *filler) echoed(data []byte) error {
	const kill = 0x15
	f.lnext, f.stop, f.start = 0x16, 0x13, 0x11
	done := 0
	for len(data) > 0 {
		n := min(len(data), maxEcho)
		var line []byte
		for _, b := range data[:n] {
			if b == '\n' || b == kill || b == f.lnext {
				line = append(line, f.lnext)
			}
			line = append(line, b)
		}
		t := f.plain(true)
		t.Iflag, t.Lflag = 0, unix.ICANON|unix.IEXTEN|unix.ECHO
		t.Cc[unix.VKILL], t.Cc[unix.VEOF] = kill, 0
		if err := f.set(t); err != nil {
			return err
		}
		if err := write(f.master, line); err != nil {
			return err
		}
		done += n
		if err := f.arrived(f.master, min(done, nttyBuf-1)); err != nil {
			return err
		}
		t.Lflag, t.Iflag = t.Lflag&^unix.ECHO, unix.IXON
		if err := f.set(t); err != nil {
			return err
		}
		if err := f.writeMarked([]byte{kill}, nil, false); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}
