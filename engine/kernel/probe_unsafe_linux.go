package kernel

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Of include/uapi/linux/userfaultfd.h.
const (
	uffdAPIVersion       = 0xaa
	uffdioAPI            = 0xc018aa3f // _IOWR(0xaa, 0x3f, struct uffdio_api)
	userModeOnly         = 1          // UFFD_USER_MODE_ONLY
	featureWPUnpopulated = 1 << 13    // UFFD_FEATURE_WP_UNPOPULATED
	featureWPAsync       = 1 << 15    // UFFD_FEATURE_WP_ASYNC
)

// uffdAPI asks a new userfaultfd for features. EINVAL: the kernel lacks one.
func uffdAPI(fd int, features uint64) error {
	arg := struct{ api, features, ioctls uint64 }{uffdAPIVersion, features, 0}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uffdioAPI, uintptr(unsafe.Pointer(&arg))); errno != 0 {
		return fmt.Errorf("UFFDIO_API with features 0x%x: %w", features, errno)
	}
	return nil
}

// scanPresent counts the populated ranges of [start, end) with PAGEMAP_SCAN (struct pm_scan_arg of
// include/uapi/linux/fs.h). At most one is looked for.
func scanPresent(pagemap int, start, end uint64) (int, error) {
	const (
		pagemapScan = 0xc0606610 // _IOWR('f', 16, struct pm_scan_arg)
		present     = 1 << 3     // PAGE_IS_PRESENT
	)
	var pin runtime.Pinner
	defer pin.Unpin()
	region := new([3]uint64)
	pin.Pin(region) // the kernel is given its address as a number
	arg := [12]uint64{96, 0, start, end, 0, uint64(uintptr(unsafe.Pointer(region))), 1, 0, 0, present, 0, present}
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(pagemap), pagemapScan, uintptr(unsafe.Pointer(&arg)))
	if errno != 0 {
		return 0, fmt.Errorf("PAGEMAP_SCAN: %w", errno)
	}
	return int(n), nil
}

// addressOf is the address of mapped memory, as a number.
func addressOf(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }
