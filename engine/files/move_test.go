//go:build linux

package files

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var scenarios = map[string]scenario{
	"regular": {setupRegular, verifyRegular},
	"pipe":    {setupPipe, verifyPipe},
	"anon":    {setupAnon, verifyAnon},
	"epoll":   {setupEpoll, verifyEpoll},
	"unix":    {setupUnix, verifyUnix},
}

func TestMoveRegular(t *testing.T) { move(t, "regular", nil, nil, nil) }
func TestMovePipe(t *testing.T)    { move(t, "pipe", nil, nil, nil) }
func TestMoveAnon(t *testing.T)    { move(t, "anon", nil, nil, nil) }
func TestMoveEpoll(t *testing.T)   { move(t, "epoll", nil, nil, nil) }
func TestMoveUnix(t *testing.T)    { move(t, "unix", nil, nil, nil) }

func setupRegular(h *half) {
	name := filepath.Join(h.dir, "file")
	h.must(os.WriteFile(name, []byte("0123456789"), 0o600))
	open := func(path string, flags, number int) {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o600)
		h.at(fd, number, err)
	}
	open(name, unix.O_RDWR, 100)
	h.must(unix.Dup3(100, 101, unix.O_CLOEXEC))
	open(name, unix.O_RDONLY|unix.O_NONBLOCK, 102)
	open(name, unix.O_WRONLY|unix.O_APPEND, 103)
	_, err := unix.Seek(100, 3, unix.SEEK_SET)
	h.must(err)
	_, err = unix.Seek(102, 8, unix.SEEK_SET)
	h.must(err)
	open(h.dir, unix.O_RDONLY|unix.O_DIRECTORY, 104)
	open("/dev/null", unix.O_RDWR, 105)
	open("/dev/urandom", unix.O_RDONLY, 106)
	open("/proc/version", unix.O_RDONLY, 107)
	open(name, unix.O_PATH, 108)
	gone := filepath.Join(h.dir, "gone")
	h.must(os.WriteFile(gone, []byte("deleted"), 0o640))
	open(gone, unix.O_WRONLY|unix.O_APPEND, 109)
	open(gone, unix.O_RDONLY, 110)
	h.must(os.Remove(gone))
	open("/dev/zero", unix.O_RDONLY, 111)
	lock := &unix.Flock_t{Type: unix.F_WRLCK, Start: 2, Len: 3}
	h.must(unix.FcntlFlock(100, unix.F_SETLK, lock))
	h.must(unix.FcntlFlock(102, unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Start: 7}))
	h.must(unix.Flock(103, unix.LOCK_EX))
}

func verifyRegular(h *half) {
	var locks []string
	for _, fd := range []int{100, 102, 103} {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); f[0] == "lock:" {
				locks = append(locks, fmt.Sprintf("%d %s %s %s-%s", fd, f[2], f[4], f[7], f[8]))
			}
		}
	}
	if want := []string{"100 POSIX WRITE 2-4", "102 OFDLCK READ 7-EOF", "103 FLOCK WRITE 0-EOF"}; !slices.Equal(locks, want) {
		h.errorf("locks %q, want %q", locks, want)
	}
	h.expectRead(100, "3456789")
	h.expectRead(101, "") // the same description, at the same offset
	h.expectRead(102, "89")
	h.expectCloexec(100, false)
	h.expectCloexec(101, true)
	h.expectFlags(102, unix.O_RDONLY|unix.O_NONBLOCK, unix.O_ACCMODE|unix.O_NONBLOCK|unix.O_APPEND)
	h.expectFlags(103, unix.O_WRONLY|unix.O_APPEND, unix.O_ACCMODE|unix.O_NONBLOCK|unix.O_APPEND)
	h.expectFlags(108, unix.O_PATH, unix.O_PATH)
	_, err := unix.Write(103, []byte("+"))
	h.expectErr("append", err, nil)
	h.expectRead(100, "+")
	if names, err := os.ReadDir("/proc/self/fd/104"); err != nil || len(names) != 1 {
		h.errorf("directory: %v (%v)", names, err)
	}
	h.expectRead(105, "")
	_, err = unix.Write(109, []byte(" file"))
	h.expectErr("append to a deleted file", err, nil)
	h.expectRead(110, "deleted file")
	var st unix.Stat_t
	if err := unix.Fstat(110, &st); err != nil || st.Nlink != 0 || st.Mode&0o777 != 0o640 {
		h.errorf("deleted file: %d links, mode %o (%v)", st.Nlink, st.Mode, err)
	}
	buf := make([]byte, 64)
	if n, err := unix.Read(107, buf); err != nil || !strings.HasPrefix(string(buf[:n]), "Linux") {
		h.errorf("proc file: %q (%v)", buf, err)
	}
}

func setupPipe(h *half) {
	pipe := func(flags, r, w int) {
		var p [2]int
		h.must(unix.Pipe2(p[:], flags))
		h.at(p[0], r, nil)
		h.at(p[1], w, nil)
	}
	pipe(unix.O_NONBLOCK, 100, 101)
	_, err := unix.FcntlInt(100, unix.F_SETPIPE_SZ, 1<<18)
	h.must(err)
	_, err = unix.Write(101, []byte(strings.Repeat("x", 200000)))
	h.must(err)
	pipe(unix.O_DIRECT, 102, 103)
	for _, s := range []string{"one", "two", "three"} {
		_, err = unix.Write(103, []byte(s))
		h.must(err)
	}
	pipe(0, 104, 105) // the writing end is closed
	_, err = unix.Write(105, []byte("last"))
	h.must(err)
	h.must(unix.Close(105))
	pipe(0, 106, 107) // the reading end is closed
	h.must(unix.Close(106))
	fd, err := unix.Open("/proc/self/fd/100", unix.O_RDWR, 0)
	h.at(fd, 108, err)
	fifo := filepath.Join(h.dir, "fifo")
	h.must(unix.Mkfifo(fifo, 0o600))
	fd, err = unix.Open(fifo, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	h.at(fd, 110, err)
	fd, err = unix.Open(fifo, unix.O_WRONLY|unix.O_APPEND, 0)
	h.at(fd, 111, err)
	_, err = unix.Write(111, []byte("by path"))
	h.must(err)
}

func verifyPipe(h *half) {
	if n, err := unix.FcntlInt(100, unix.F_GETPIPE_SZ, 0); err != nil || n != 1<<18 {
		h.errorf("capacity %d (%v)", n, err)
	}
	h.expectFlags(100, unix.O_NONBLOCK, unix.O_ACCMODE|unix.O_NONBLOCK)
	h.expectFlags(101, unix.O_WRONLY|unix.O_NONBLOCK, unix.O_ACCMODE|unix.O_NONBLOCK)
	h.expectFlags(108, unix.O_RDWR, unix.O_ACCMODE|unix.O_NONBLOCK)
	h.expectRead(100, strings.Repeat("x", 200000))
	_, err := unix.Read(100, make([]byte, 1))
	h.expectErr("read of an empty pipe", err, unix.EAGAIN)
	_, err = unix.Write(108, []byte("via rdwr"))
	h.expectErr("write", err, nil)
	h.expectRead(100, "via rdwr")
	h.expectRead(102, "one")
	h.expectRead(102, "two")
	h.expectRead(102, "three")
	h.expectFlags(103, unix.O_WRONLY|unix.O_DIRECT, unix.O_ACCMODE|unix.O_DIRECT)
	h.expectFlags(110, unix.O_RDONLY|unix.O_NONBLOCK, unix.O_ACCMODE|unix.O_NONBLOCK)
	h.expectFlags(111, unix.O_WRONLY|unix.O_APPEND, unix.O_ACCMODE|unix.O_NONBLOCK|unix.O_APPEND)
	h.expectRead(110, "by path")
	h.must(unix.Close(111))
	h.expectRead(110, "")
	h.expectRead(104, "last")
	h.expectRead(104, "")
	_, err = unix.Write(107, []byte("x"))
	h.expectErr("write without a reader", err, unix.EPIPE)
}

func setupAnon(h *half) {
	fd, err := unix.Eventfd(7, unix.EFD_NONBLOCK)
	h.at(fd, 100, err)
	fd, err = unix.Eventfd(3, unix.EFD_SEMAPHORE)
	h.at(fd, 101, err)
	var mask unix.Sigset_t
	mask.Val[0] = 1<<(unix.SIGUSR1-1) | 1<<(unix.SIGTERM-1)
	fd, err = unix.Signalfd(-1, &mask, unix.SFD_NONBLOCK)
	h.at(fd, 102, err)
	fd, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK)
	h.at(fd, 103, err)
	h.must(unix.TimerfdSettime(103, 0, &unix.ItimerSpec{Value: unix.NsecToTimespec(1e6), Interval: unix.NsecToTimespec(3600e9)}, nil))
	fd, err = unix.TimerfdCreate(unix.CLOCK_REALTIME, 0)
	h.at(fd, 104, err)
	h.must(unix.TimerfdSettime(104, unix.TFD_TIMER_ABSTIME, &unix.ItimerSpec{Value: unix.NsecToTimespec(time.Now().Add(time.Hour).UnixNano())}, nil))
	fd, err = unix.TimerfdCreate(unix.CLOCK_BOOTTIME, 0)
	h.at(fd, 105, err)
	fd, err = unix.PidfdOpen(os.Getpid(), unix.PIDFD_NONBLOCK)
	h.at(fd, 106, err)
	time.Sleep(5 * time.Millisecond) // the first timer expires
}

func verifyAnon(h *half) {
	one := func(n uint64) string { return string(binary.NativeEndian.AppendUint64(nil, n)) }
	h.expectRead(100, one(7))
	_, err := unix.Read(100, make([]byte, 8))
	h.expectErr("empty eventfd", err, unix.EAGAIN)
	h.expectRead(101, one(1))
	h.expectRead(101, one(1))
	b, _ := os.ReadFile("/proc/self/fdinfo/102")
	if !strings.Contains(string(b), "sigmask:\t0000000000004200") {
		h.errorf("signalfd: %s", b)
	}
	h.expectFlags(102, unix.O_NONBLOCK, unix.O_NONBLOCK)
	h.expectRead(103, one(1))
	left := func(fd int) time.Duration {
		var s unix.ItimerSpec
		h.expectErr("gettime", unix.TimerfdGettime(fd, &s), nil)
		return time.Duration(s.Value.Nano())
	}
	if l := left(103); l > time.Hour || l < time.Hour-20*time.Second {
		h.errorf("periodic timer: %v left", l)
	}
	if l := left(104); l > time.Hour || l < time.Hour-20*time.Second {
		h.errorf("timer of the wall clock: %v left", l)
	}
	if l := left(105); l != 0 {
		h.errorf("disarmed timer: %v left", l)
	}
	h.expectErr("signal through a pidfd", unix.PidfdSendSignal(106, 0, nil, 0), nil)
	h.expectFlags(106, unix.O_NONBLOCK, unix.O_NONBLOCK)
	b, _ = os.ReadFile("/proc/self/fdinfo/106")
	if !strings.Contains(string(b), fmt.Sprintf("Pid:\t%d\n", os.Getpid())) {
		h.errorf("pidfd: %s", b)
	}
	b, _ = os.ReadFile("/proc/self/fdinfo/104")
	if !strings.Contains(string(b), "settime flags: 01") {
		h.errorf("timerfd: %s", b)
	}
}

func setupEpoll(h *half) {
	fd, err := unix.EpollCreate1(0)
	h.at(fd, 100, err)
	fd, err = unix.Eventfd(1, 0)
	h.at(fd, 101, err)
	fd, err = unix.Eventfd(0, 0)
	h.at(fd, 102, err)
	fd, err = unix.Eventfd(0, 0) // fires once, and is disarmed when the program moves
	h.at(fd, 103, err)
	fd, err = unix.EpollCreate1(0)
	h.at(fd, 104, err)
	add := func(set, fd int, events uint32, data int32) {
		h.must(unix.EpollCtl(set, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: data, Pad: 77}))
	}
	add(100, 103, unix.EPOLLOUT|unix.EPOLLONESHOT, 3)
	if n, err := unix.EpollWait(100, make([]unix.EpollEvent, 4), 0); err != nil || n != 1 {
		h.errorf("%d events (%v)", n, err)
	}
	add(100, 101, unix.EPOLLIN, 1)
	add(100, 102, unix.EPOLLIN|unix.EPOLLET, 2)
	add(104, 100, unix.EPOLLIN, 4)
	fd, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC) // its targets' numbers are reused or closed
	h.at(fd, 105, err)
	for i, number := range []int{110, 111, 105} {
		fd, err = unix.Eventfd(uint(i), 0)
		h.at(fd, 120+i, err)
		if number == 105 {
			h.must(unix.Dup3(105, 106, 0))
		}
		h.must(unix.Dup3(120+i, number, 0))
		add(map[bool]int{false: 105, true: 106}[number == 105], number, unix.EPOLLIN, int32(10+i))
	}
	h.must(unix.Dup3(106, 105, unix.O_CLOEXEC))
	h.must(unix.Close(106))
	h.must(unix.Close(111))
	h.must(unix.Dup3(102, 110, unix.O_CLOEXEC))
}

func verifyEpoll(h *half) {
	wait := func(set int) map[int32]uint32 {
		events := make([]unix.EpollEvent, 8)
		n, err := unix.EpollWait(set, events, 0)
		h.expectErr("epoll_wait", err, nil)
		out := map[int32]uint32{}
		for _, e := range events[:max(n, 0)] {
			out[e.Fd] = e.Events
			if e.Fd != 4 && e.Pad != 77 {
				h.errorf("data %d/%d", e.Fd, e.Pad)
			}
		}
		return out
	}
	if e := wait(104); len(e) != 1 || e[4] != unix.EPOLLIN {
		h.errorf("outer set: %v", e)
	}
	if e := wait(100); len(e) != 1 || e[1] != unix.EPOLLIN {
		h.errorf("set: %v", e)
	}
	_, err := unix.Write(102, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	h.expectErr("write", err, nil)
	if e := wait(100); len(e) != 2 || e[2] != unix.EPOLLIN {
		h.errorf("set after a write: %v", e)
	}
	if e := wait(100); len(e) != 1 {
		h.errorf("edge-triggered again: %v", e)
	}
	if e := wait(105); len(e) != 2 || e[11] != unix.EPOLLIN || e[12] != unix.EPOLLIN {
		h.errorf("targets under other numbers: %v", e)
	}
	h.expectCloexec(105, true)
	h.expectCloexec(110, true)
	for _, fd := range []int{111, 123, 124, 125} {
		_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		h.expectErr(fmt.Sprintf("descriptor %d", fd), err, unix.EBADF)
	}
	h.must(unix.Dup3(121, 111, 0)) // the registration is under the number that it had
	h.expectErr("removal", unix.EpollCtl(105, unix.EPOLL_CTL_DEL, 111, nil), nil)
	h.must(unix.Close(111))
	h.expectErr("arm again", unix.EpollCtl(100, unix.EPOLL_CTL_MOD, 103, &unix.EpollEvent{Events: unix.EPOLLOUT, Fd: 3, Pad: 77}), nil)
	if e := wait(100); e[3] != unix.EPOLLOUT {
		h.errorf("armed again: %v", e)
	}
}

func setupUnix(h *half) {
	pair := func(typ, a, b int) {
		fds, err := unix.Socketpair(unix.AF_UNIX, typ, 0)
		h.at(fds[0], a, err)
		h.at(fds[1], b, nil)
	}
	send := func(fd int, s string) {
		_, err := unix.Write(fd, []byte(s))
		h.must(err)
	}
	pair(unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 100, 101)
	send(100, "to 101, ")
	send(100, "in two writes")
	send(101, strings.Repeat("y", 100000))
	pair(unix.SOCK_DGRAM, 102, 103)
	for _, s := range []string{"first", "", "third"} {
		send(102, s)
	}
	pair(unix.SOCK_SEQPACKET, 104, 105)
	send(105, "record")
	send(105, strings.Repeat("z", 70000))
	h.must(unix.Shutdown(105, unix.SHUT_WR))
	pair(unix.SOCK_STREAM, 106, 107)
	send(107, "last words")
	h.must(unix.Close(107))
	listen := func(sa unix.Sockaddr, l, c, s int) {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		h.at(fd, l, err)
		h.must(unix.Bind(l, sa))
		h.must(unix.Listen(l, 5))
		fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		h.at(fd, c, err)
		h.must(unix.Connect(c, sa))
		fd, _, err = unix.Accept(l)
		h.at(fd, s, err)
		send(c, "hello server")
	}
	listen(&unix.SockaddrUnix{Name: "@migrate-files-test-" + h.dir[len(h.dir)-8:]}, 110, 111, 112)
	listen(&unix.SockaddrUnix{Name: filepath.Join(h.dir, "sock")}, 113, 114, 115)
	h.must(os.Chmod(filepath.Join(h.dir, "sock"), 0o604))
	h.must(unix.SetsockoptInt(114, unix.SOL_SOCKET, unix.SO_SNDBUF, 50000))
	h.must(unix.SetsockoptTimeval(114, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5, Usec: 4000}))
}

func verifyUnix(h *half) {
	h.expectRead(101, "to 101, in two writes")
	h.expectRead(100, strings.Repeat("y", 100000))
	_, err := unix.Read(100, make([]byte, 1))
	h.expectErr("empty queue", err, unix.EAGAIN)
	h.expectRead(103, "first")
	h.expectRead(103, "")
	h.expectRead(103, "third")
	h.expectRead(104, "record")
	h.expectRead(104, strings.Repeat("z", 70000))
	h.expectRead(104, "")
	_, err = unix.Write(104, []byte("other way"))
	h.expectErr("write", err, nil)
	h.expectRead(105, "other way")
	h.expectRead(106, "last words")
	h.expectRead(106, "")
	h.expectRead(112, "hello server")
	h.expectRead(115, "hello server")
	name := filepath.Join(h.dir, "sock")
	for _, fd := range []int{113, 115} {
		if sa, err := unix.Getsockname(fd); err != nil || sa.(*unix.SockaddrUnix).Name != name {
			h.errorf("name of %d: %v (%v)", fd, sa, err)
		}
	}
	if sa, err := unix.Getpeername(114); err != nil || sa.(*unix.SockaddrUnix).Name != name {
		h.errorf("name of the peer: %v (%v)", sa, err)
	}
	if st, err := os.Stat(name); err != nil || st.Mode().Perm() != 0o604 {
		h.errorf("socket file: %v (%v)", st, err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	h.must(err)
	h.expectErr("a new connection", unix.Connect(fd, &unix.SockaddrUnix{Name: name}), nil)
	if n, err := unix.GetsockoptInt(114, unix.SOL_SOCKET, unix.SO_SNDBUF); err != nil || n != 100000 {
		h.errorf("send buffer %d (%v)", n, err)
	}
	if tv, err := unix.GetsockoptTimeval(114, unix.SOL_SOCKET, unix.SO_RCVTIMEO); err != nil || tv.Sec != 5 || tv.Usec != 4000 {
		h.errorf("time-out %v (%v)", tv, err)
	}
	if _, err := os.Stat(filepath.Join(h.dir, ".sock.migrate-")); err == nil {
		h.errorf("a file stands aside")
	}
}
