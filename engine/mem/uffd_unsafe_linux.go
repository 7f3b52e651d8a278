package mem

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Of include/uapi/linux/userfaultfd.h. The structures are arrays of __u64 in the header's order.
const (
	uffdAPIVersion = 0xaa // UFFD_API

	uffdUserModeOnly = 1 // UFFD_USER_MODE_ONLY, a flag of userfaultfd(2)

	uffdSigbus        = 1 << 7  // UFFD_FEATURE_SIGBUS
	uffdWPUnpopulated = 1 << 13 // UFFD_FEATURE_WP_UNPOPULATED
	uffdWPAsync       = 1 << 15 // UFFD_FEATURE_WP_ASYNC

	uffdModeMissing = 1 << 0 // UFFDIO_REGISTER_MODE_MISSING
	uffdModeWP      = 1 << 1 // UFFDIO_REGISTER_MODE_WP

	uffdioAPI          = 0xc018aa3f // _IOWR(0xaa, 0x3f, struct uffdio_api)
	uffdioRegister     = 0xc020aa00 // _IOWR(0xaa, 0x00, struct uffdio_register)
	uffdioCopy         = 0xc028aa03 // _IOWR(0xaa, 0x03, struct uffdio_copy)
	uffdioWriteProtect = 0xc018aa06 // _IOWR(0xaa, 0x06, struct uffdio_writeprotect)
)

func ioctl(fd int, request uintptr, arg unsafe.Pointer) (int, error) {
	for {
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg))
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// uffdAPI opens the protocol on a new userfaultfd. EINVAL: the kernel lacks one of the features.
func uffdAPI(fd int, features uint64) error {
	arg := [3]uint64{uffdAPIVersion, features}
	_, err := ioctl(fd, uffdioAPI, unsafe.Pointer(&arg))
	return err
}

// uffdRegister registers the mappings in r. EINVAL: nothing is mapped there, or something that cannot be registered,
// such as the vDSO. EPERM: a shared mapping of a file that was opened for reading. EBUSY: another userfaultfd has it.
// ENOMEM: the address space is gone, by an exec or the program's end.
func uffdRegister(fd int, r Range, mode uint64) error {
	arg := [4]uint64{r.Start, r.Size(), mode}
	_, err := ioctl(fd, uffdioRegister, unsafe.Pointer(&arg))
	return err
}

// uffdAlive returns ESRCH when the address space of the userfaultfd is gone, by an exec or the program's end. It lifts
// the protection of the first page that a program can map, which is hardly ever mapped and would only be sent again.
func uffdAlive(fd int) error {
	arg := [3]uint64{1 << 20, PageSize, 0}
	_, err := ioctl(fd, uffdioWriteProtect, unsafe.Pointer(&arg))
	if err == unix.ENOENT || err == unix.EAGAIN {
		return nil
	}
	return err
}

// uffdFill puts pages where there are none yet, without clearing them first. It returns the number of bytes that were
// put before the error. EEXIST: there is a page. ENOENT: nothing is registered there.
func uffdFill(fd int, addr uint64, data []byte) (int, error) {
	const doNotWake = 1 // UFFDIO_COPY_MODE_DONTWAKE
	arg := struct {
		dst  uint64
		src  unsafe.Pointer
		n    uint64
		mode uint64
		done int64
	}{addr, unsafe.Pointer(unsafe.SliceData(data)), uint64(len(data)), doNotWake, 0}
	_, err := ioctl(fd, uffdioCopy, unsafe.Pointer(&arg))
	return int(max(arg.done, 0)), err
}
