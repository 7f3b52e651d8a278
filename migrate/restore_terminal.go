//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
)

// ownTerminal gives a restored program the terminal of this command: by one of the program's own, whose other end is copied from and to
// this one, as script(1) does. The program has the settings of its own, and the size of this one.
type ownTerminal struct {
	in, out *os.File
	master  *os.File
	cooked  *unix.Termios
	typed   *typed
	stops   []func()
}

// terminalOf is the one of the command, if it has one.
func terminalOf(in, out any) *ownTerminal {
	i, ok := in.(*os.File)
	o, ok2 := out.(*os.File)
	if !ok || !ok2 {
		return nil
	}
	if _, err := unix.IoctlGetTermios(int(i.Fd()), unix.TCGETS2); err != nil {
		return nil
	}
	return &ownTerminal{in: i, out: o, typed: newTyped(nil)}
}

// take is given the other end of the program's terminal. This one gives up its line editing and its signals: the program's has them.
func (t *ownTerminal) take(master *os.File) (err error) {
	if t.master != nil {
		return errors.New("it has two terminals")
	}
	t.master = master
	if err := unix.SetNonblock(int(master.Fd()), true); err != nil {
		return err
	}
	if t.cooked, err = makeRaw(t.in); err != nil {
		return err
	}
	stop, err := t.typed.readFrom(t.in)
	if err != nil {
		return err
	}
	t.stops = append(t.stops, stop)
	return nil
}

// begin copies from now on, until end.
func (t *ownTerminal) begin() error {
	if t == nil || t.master == nil {
		return nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	var both sync.WaitGroup
	quit := make(chan struct{})
	both.Go(func() { t.print(int(r.Fd())) })
	both.Go(func() { t.typeIn(int(r.Fd()), quit) })
	sized := make(chan os.Signal, 1)
	signal.Notify(sized, unix.SIGWINCH)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for t.resize(); ; t.resize() {
			if _, ok := <-sized; !ok {
				return
			}
		}
	}()
	t.stops = append(t.stops, func() {
		close(quit)
		_ = w.Close() // wakes both
		both.Wait()
		_ = r.Close()
	}, func() {
		signal.Stop(sized)
		close(sized)
		<-ended
	})
	return nil
}

// resize gives the program's terminal the size of this one, and tells its foreground group in any case: it draws itself anew.
func (t *ownTerminal) resize() {
	fd := int(t.master.Fd())
	if w, err := unix.IoctlGetWinsize(int(t.in.Fd()), unix.TIOCGWINSZ); err == nil && w.Row > 0 && w.Col > 0 {
		_ = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, w) // a size is not worth an error
	}
	if group, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP); err == nil && group > 1 {
		_ = unix.Kill(-group, unix.SIGWINCH) // it may have ended
	}
}

const (
	// unopened is how often it is looked whether somebody has opened a terminal again that nobody has open, in milliseconds: the kernel
	// says that it is hung up until then.
	unopened = 100
	// leftOver bounds what is still printed when the program has ended, in bytes. The kernel holds less (TTYB_DEFAULT_MEM_LIMIT in
	// drivers/tty/tty_buffer.c): what is beyond it is of somebody who has stayed behind and prints on.
	leftOver = 1 << 20
)

// print prints what the program prints, until stop; then what it has printed by then.
func (t *ownTerminal) print(stop int) {
	fd, buf := int(t.master.Fd()), make([]byte, 32<<10)
	stopping := false
	for left := leftOver; left > 0; {
		n, err := unix.Read(fd, buf)
		switch {
		case n > 0:
			_, _ = t.out.Write(buf[:n]) // nobody is there to be told
			stopping = stopping || await(stop, -1, 0, 0)
			if stopping {
				left -= n
			}
		case errors.Is(err, unix.EINTR):
		case stopping:
			return
		default:
			stopping = await(stop, fd, unix.POLLIN, -1)
		}
	}
}

// typeIn passes on what is typed.
func (t *ownTerminal) typeIn(stop int, quit <-chan struct{}) {
	fd := int(t.master.Fd())
	for {
		offset, data, changed, _ := t.typed.next()
		for len(data) > 0 {
			n, err := unix.Write(fd, data)
			if n > 0 {
				offset, data = offset+uint64(n), data[n:]
				t.typed.taken(offset)
			} else if !errors.Is(err, unix.EINTR) && await(stop, fd, unix.POLLOUT, -1) {
				return
			}
		}
		select {
		case <-changed:
		case <-quit:
			return
		}
	}
}

// await waits for an event of a file (none: -1), at most for some milliseconds (-1: without end), and tells whether stop is to be heeded.
// Of a terminal that nobody has open it waits a while.
func await(stop, fd int, events int16, ms int) bool {
	p := []unix.PollFd{{Fd: int32(stop), Events: unix.POLLIN}, {Fd: int32(fd), Events: events}}
	_, err := unix.Poll(p, ms)
	if err == nil && p[0].Revents == 0 && p[1].Revents != 0 && p[1].Revents&events == 0 {
		return await(stop, -1, 0, unopened)
	}
	return err == nil && p[0].Revents != 0
}

// end gives this terminal back. It may be called again.
func (t *ownTerminal) end() error {
	if t == nil {
		return nil
	}
	for _, stop := range t.stops {
		stop()
	}
	t.stops = nil
	var errs []error
	if t.cooked != nil {
		errs = append(errs, unix.IoctlSetTermios(int(t.in.Fd()), unix.TCSETS2, t.cooked))
		t.cooked = nil
	}
	if t.master != nil {
		errs = append(errs, t.master.Close())
		t.master = nil
	}
	return errors.Join(errs...)
}

// makeRaw has a terminal pass every key on as it is, and returns its settings of before; nil if it is no terminal.
func makeRaw(f *os.File) (*unix.Termios, error) {
	fd := int(f.Fd())
	old, err := unix.IoctlGetTermios(fd, unix.TCGETS2)
	if err != nil {
		return nil, nil
	}
	raw := *old
	raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	raw.Oflag &^= unix.OPOST
	raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	raw.Cflag = raw.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS2, &raw); err != nil {
		return nil, fmt.Errorf("this terminal: %w", err)
	}
	return old, nil
}
