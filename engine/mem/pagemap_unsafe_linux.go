package mem

import (
	"runtime"
	"unsafe"
)

// Of include/uapi/linux/fs.h.
const (
	pageWritten = 1 << 1 // PAGE_IS_WRITTEN: since it was last protected
	pageFile    = 1 << 2 // PAGE_IS_FILE: of a file, or of shared memory
	pagePresent = 1 << 3 // PAGE_IS_PRESENT
	pageSwapped = 1 << 4 // PAGE_IS_SWAPPED; also for guard pages and for markers of protection
	pagePFNZero = 1 << 5 // PAGE_IS_PFNZERO: the zero page of the kernel
	pageGuard   = 1 << 8 // PAGE_IS_GUARD: of MADV_GUARD_INSTALL; since 6.16

	scanProtect      = 1 << 0 // PM_SCAN_WP_MATCHING
	scanCheckWPAsync = 1 << 1 // PM_SCAN_CHECK_WPASYNC

	pagemapScan = 0xc0606610 // _IOWR('f', 16, struct pm_scan_arg)
)

// region is struct page_region: adjacent pages of the same categories.
type region struct {
	Range
	categories uint64
}

// scan is a query to PAGEMAP_SCAN (Documentation/admin-guide/mm/pagemap.rst): pages of Range for which every
// category of mask holds (or, if in inverted, does not hold) and, unless anyOf is 0, one of anyOf does.
type scan struct {
	Range
	flags                        uint64
	inverted, mask, anyOf, wants uint64
}

// pmScanArg is struct pm_scan_arg.
type pmScanArg struct {
	size, flags, start, end, walkEnd      uint64
	vec                                   unsafe.Pointer
	vecLen, maxPages                      uint64
	inverted, mask, anyOf, wantedCategory uint64
}

// run asks for the next regions, into out. It returns how many there were, and where the walk ended: at the end of the
// range unless out was too short. EPERM: a mapping in the range is not registered; what was walked before it has been
// protected all the same, and its pages are not told.
func (s scan) run(pagemap int, out []region) (n int, next uint64, err error) {
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(unsafe.SliceData(out))
	arg := pmScanArg{
		flags: s.flags, start: s.Start, end: s.End, vec: unsafe.Pointer(unsafe.SliceData(out)), vecLen: uint64(len(out)),
		inverted: s.inverted, mask: s.mask, anyOf: s.anyOf, wantedCategory: s.wants,
	}
	arg.size = uint64(unsafe.Sizeof(arg))
	n, err = ioctl(pagemap, pagemapScan, unsafe.Pointer(&arg))
	return n, arg.walkEnd, err
}
