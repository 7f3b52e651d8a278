//go:build linux

package files

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"migrate/engine/images/imagespb"
	"migrate/engine/peek"
)

// kernelTTY is what only the kernel's memory tells of a terminal. System calls show what waits in a terminal only by taking
// it away, and change the terminal where they ask about lines that are not complete.
type kernelTTY struct {
	addr      uint64 // of its struct tty_struct: what it is told apart by; of a pseudoterminal, the slave's
	rdev      uint64
	count     uint32 // how often it is open
	exclusive bool
	session   bool // it controls a session
	slave     *peek.View
	master    *peek.View // of a pseudoterminal whose master is there
}

// ttyExclusive is TTY_EXCLUSIVE of tty_struct.flags (include/linux/tty.h).
const ttyExclusive = 1 << 3

// kernelMemory opens the kernel's memory, once.
func (d *Dumper) kernelMemory() (*peek.Kernel, error) {
	if d.peek == nil {
		k, err := peek.Open()
		if err != nil {
			return nil, err
		}
		d.peek = k
	}
	return d.peek, nil
}

// readTTY reads the terminal behind a descriptor of this program.
func (d *Dumper) readTTY(fd int, master bool) (*kernelTTY, error) {
	k, err := d.kernelMemory()
	if err != nil {
		return nil, err
	}
	file, err := k.File(fd)
	if err != nil {
		return nil, err
	}
	private, err := k.Follow(file, "private_data", "tty_file_private")
	if err != nil {
		return nil, err
	}
	tty, err := k.Follow(private, "tty", "tty_struct")
	if err != nil {
		return nil, err
	}
	if master {
		if tty, err = k.Follow(tty, "link", "tty_struct"); err != nil {
			return nil, err
		}
	}
	return newKernelTTY(k, tty)
}

func newKernelTTY(k *peek.Kernel, tty *peek.View) (*kernelTTY, error) {
	t := &kernelTTY{addr: tty.Addr, slave: tty}
	driver, err := k.Follow(tty, "driver", "tty_driver")
	if err != nil {
		return nil, err
	}
	var errs []error
	u32 := func(v *peek.View, name string) uint32 {
		n, err := v.Uint32(name)
		errs = append(errs, err)
		return n
	}
	t.rdev = unix.Mkdev(u32(driver, "major"), u32(driver, "minor_start")+u32(tty, "index"))
	t.count = u32(tty, "count")
	t.exclusive = u32(tty, "flags")&ttyExclusive != 0
	session, err := tty.Uint64("ctrl.session")
	t.session = session != 0
	errs = append(errs, err)
	link, err := tty.Uint64("link")
	if errs = append(errs, err); link != 0 {
		t.master, err = k.Load("tty_struct", link)
		errs = append(errs, err)
	}
	return t, errors.Join(errs...)
}

// discipline is the state of the usual line discipline (drivers/tty/n_tty.c) and of the buffer before it.
type discipline struct {
	readHead, canonHead, readTail uint64
	lnext                         bool
	buf, marks                    []byte // rings; a mark ends a line
	pending                       []byte // not yet taken by the discipline
	next                          uint64 // bytes of pending that were taken already: to tell whether anything moved
}

const nttyBuf = 4096 // N_TTY_BUF_SIZE

// maxReads bounds how often a discipline is read until nothing moves. The tree stands still, so only what the kernel's worker
// is just carrying over keeps it going.
const maxReads = 1000

// readDiscipline reads both until two readings are equal.
func readDiscipline(k *peek.Kernel, tty *peek.View) (*discipline, error) {
	var last *discipline
	for range maxReads {
		now, err := readDisciplineOnce(k, tty)
		if err != nil {
			return nil, err
		}
		if last != nil && last.readHead == now.readHead && last.readTail == now.readTail && last.next == now.next && len(last.pending) == len(now.pending) {
			return now, nil
		}
		last = now
	}
	return nil, fmt.Errorf("it does not come to rest: %w", ErrBusy)
}

func readDisciplineOnce(k *peek.Kernel, tty *peek.View) (*discipline, error) {
	data, err := k.Follow(tty, "disc_data", "n_tty_data")
	if err != nil {
		return nil, err
	}
	d := &discipline{}
	var errs []error
	for name, to := range map[string]*uint64{"read_head": &d.readHead, "canon_head": &d.canonHead, "read_tail": &d.readTail} {
		*to, err = data.Uint64(name)
		errs = append(errs, err)
	}
	d.lnext, err = data.Bool("lnext")
	errs = append(errs, err)
	d.buf, err = data.Bytes("read_buf", nttyBuf)
	errs = append(errs, err)
	d.marks, err = data.Bytes("read_flags", nttyBuf/8)
	errs = append(errs, err)
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if n := d.readHead - d.readTail; n > nttyBuf {
		return nil, fmt.Errorf("the line discipline holds %d bytes: %w", n, ErrBusy)
	}
	if d.canonHead-d.readTail > d.readHead-d.readTail { // stale, while the terminal has no lines
		d.canonHead = d.readTail
	}
	port, err := k.Follow(tty, "port", "tty_port")
	if err != nil {
		return nil, err
	}
	off, err := port.Offset("buf")
	if err != nil {
		return nil, err
	}
	head, err := k.Load("tty_bufhead", port.Addr+off)
	if err != nil {
		return nil, err
	}
	d.pending, d.next, err = readFlip(k, head)
	return d, err
}

// maxFlip bounds the buffers of a port; the kernel keeps at most some 64 KiB in them (TTYB_DEFAULT_MEM_LIMIT).
const maxFlip = 1024

// readFlip reads the buffers before a line discipline (drivers/tty/tty_buffer.c).
func readFlip(k *peek.Kernel, head *peek.View) (out []byte, taken uint64, err error) {
	for v, n := head, 0; ; n++ {
		member := "next"
		if v == head {
			member = "head"
		}
		addr, err := v.Uint64(member)
		if err != nil || addr == 0 {
			return out, taken, err
		}
		if n > maxFlip {
			return nil, 0, fmt.Errorf("more than %d buffers: %w", maxFlip, ErrBusy)
		}
		if v, err = k.Load("tty_buffer", addr); err != nil {
			return nil, 0, err
		}
		var at [3]uint32
		for i, name := range []string{"read", "commit", "size"} {
			if at[i], err = v.Uint32(name); err != nil {
				return nil, 0, err
			}
		}
		if at[0] > at[1] || at[1] > 2*at[2] || at[1] > 1<<20 { // bytes without flags may take up twice the size
			return nil, 0, fmt.Errorf("a buffer with %d of %d bytes read: %w", at[0], at[1], ErrBusy)
		}
		taken += uint64(at[0])
		off, err := v.Offset("data")
		if err != nil {
			return nil, 0, err
		}
		part := make([]byte, at[1]-at[0])
		if err := k.Read(addr+off+uint64(at[0]), part); err != nil {
			return nil, 0, err
		}
		out = append(out, part...)
	}
}

// bytes are those between two positions of the ring.
func (d *discipline) bytes(from, to uint64) []byte {
	out := make([]byte, 0, to-from)
	for ; from != to; from++ {
		out = append(out, d.buf[from%nttyBuf])
	}
	return out
}

// lines takes the input apart where the discipline has lines.
func (d *discipline) lines(x *imagespb.Terminal) {
	from := d.readTail
	for at := d.readTail; at != d.canonHead; at++ {
		i := at % nttyBuf
		if binary.LittleEndian.Uint64(d.marks[i/64*8:])>>(i%64)&1 == 0 {
			continue
		}
		l := &imagespb.TerminalLine{Data: d.bytes(from, at)}
		switch c := d.buf[i]; c {
		case 0: // __DISABLED_CHAR: the end-of-file character was here
			l.EndOfFile = true
		case '\n':
			l.Data = append(l.Data, c)
		default: // an additional end-of-line character: the line reads the same
			l.Data, l.EndOfFile = append(l.Data, c), true
		}
		x.Lines = append(x.Lines, l)
		from = at + 1
	}
	x.Partial = d.bytes(from, d.readHead)
}

// readQueues reads what waits in a pseudoterminal and how its output is held up.
func (r *dump) readQueues(t *terminal, x *imagespb.Terminal) error {
	k, err := r.kernelMemory()
	if err != nil {
		return err
	}
	in, err := readDiscipline(k, t.kernel.slave)
	if err != nil {
		return fmt.Errorf("input: %w", err)
	}
	termios, err := unix.IoctlGetTermios(t.master.fd, unix.TCGETS2)
	if err != nil {
		return fmt.Errorf("TCGETS2: %w", err)
	}
	x.Pending, x.Quote = in.pending, in.lnext
	if isCanonical(termios) {
		in.lines(x)
	} else {
		x.Partial = in.bytes(in.readTail, in.readHead)
	}
	out, err := readDiscipline(k, t.kernel.master)
	if err != nil {
		return fmt.Errorf("output: %w", err)
	}
	x.Output = append(out.bytes(out.readTail, out.readHead), out.pending...)
	slave, err := k.Load("tty_struct", t.kernel.addr) // as it is now
	if err != nil {
		return err
	}
	var errs []error
	flag := func(name string, to *bool) {
		v, err := slave.Bool(name)
		*to = v
		errs = append(errs, err)
	}
	flag("flow.stopped", &x.Stopped)
	flag("flow.tco_stopped", &x.StoppedByCall)
	status, err := slave.Bytes("ctrl.pktstatus", 1)
	if errs = append(errs, err); err == nil {
		x.PacketStatus = uint32(status[0])
	}
	return errors.Join(errs...)
}

// isCanonical tells whether a terminal keeps its input in lines (termios(3)).
func isCanonical(t *unix.Termios) bool {
	return t.Lflag&unix.ICANON != 0 && t.Lflag&unix.EXTPROC == 0
}
