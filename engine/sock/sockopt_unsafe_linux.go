package sock

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// getsockopt is getsockopt(2) into any buffer; it returns how many bytes the kernel wrote.
func getsockopt(fd, level, opt int, buf []byte) (int, error) {
	n := uint32(len(buf))
	_, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(opt),
		uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(unsafe.Pointer(&n)), 0)
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}

// recvmsgPeek is recvmsg(2) with MSG_PEEK, MSG_TRUNC and MSG_DONTWAIT. It returns the whole length of the message,
// the length of its ancillary data, the flags and the raw address of the sender.
func recvmsgPeek(fd int, buf, oob []byte) (n, oobn, flags int, from []byte, err error) {
	var addr [128]byte
	iov := unix.Iovec{Base: unsafe.SliceData(buf)}
	iov.SetLen(len(buf))
	h := unix.Msghdr{Name: &addr[0], Namelen: uint32(len(addr)), Iov: &iov, Control: unsafe.SliceData(oob)}
	h.SetIovlen(1)
	h.SetControllen(len(oob))
	r, _, e := unix.Syscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&h)),
		unix.MSG_PEEK|unix.MSG_TRUNC|unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	if e != 0 {
		return 0, 0, 0, nil, e
	}
	return int(r), int(h.Controllen), int(h.Flags), addr[:min(int(h.Namelen), len(addr))], nil
}

// sockname is getsockname(2) or getpeername(2), as raw bytes of struct sockaddr.
func sockname(call uintptr, fd int) ([]byte, error) {
	var addr [128]byte
	n := uint32(len(addr))
	_, _, e := unix.Syscall(call, uintptr(fd), uintptr(unsafe.Pointer(&addr[0])), uintptr(unsafe.Pointer(&n)))
	if e != 0 {
		return nil, e
	}
	return addr[:min(int(n), len(addr))], nil
}

// bind is bind(2) with raw bytes of struct sockaddr; connect is connect(2).
func bind(fd int, addr []byte) error { return naming(unix.SYS_BIND, fd, addr) }

func connect(fd int, addr []byte) error { return naming(unix.SYS_CONNECT, fd, addr) }

func naming(call uintptr, fd int, addr []byte) error {
	_, _, e := unix.Syscall(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(addr))), uintptr(len(addr)))
	if e != 0 {
		return e
	}
	return nil
}

// sendmsg is sendmsg(2) of all of data with ancillary data, to an address or, if that is empty, to the peer. What a stream does
// not take at once is sent after it, without the ancillary data; a caller that has credentials to send makes small pieces.
func sendmsg(fd int, data, oob, addr []byte, flags int) error {
	for {
		iov := unix.Iovec{Base: unsafe.SliceData(data)}
		iov.SetLen(len(data))
		h := unix.Msghdr{Iov: &iov}
		h.SetIovlen(1)
		if len(addr) > 0 {
			h.Name, h.Namelen = &addr[0], uint32(len(addr))
		}
		if len(oob) > 0 {
			h.Control = &oob[0]
			h.SetControllen(len(oob))
		}
		n, _, e := unix.Syscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&h)), uintptr(flags))
		switch {
		case e == unix.EINTR:
			continue
		case e != 0:
			return e
		}
		if data, oob = data[n:], nil; len(data) == 0 {
			return nil
		}
	}
}

// ioctl is ioctl(2) without an argument.
func ioctl(fd, request int) (int, error) {
	r, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), 0)
	if e != 0 {
		return -1, e
	}
	return int(r), nil
}

// ioctlIfreq is ioctl(2) with a struct ifreq (netdevice(7)).
func ioctlIfreq(fd, request int, req *unix.Ifreq) error {
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(unsafe.Pointer(req)))
	if e != 0 {
		return e
	}
	return nil
}
