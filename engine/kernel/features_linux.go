package kernel

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// The features that this program uses. Those that every supported kernel has (5.10 and later) are not among them,
// unless a configuration may leave them out.
var (
	// UserfaultWP is what tracks writes without stopping the program.
	UserfaultWP = &Feature{
		Name: "write tracking by userfaultfd in asynchronous mode", Since: "6.7 (CONFIG_USERFAULTFD, CONFIG_HAVE_ARCH_USERFAULTFD_WP)",
		Need: "copying memory in rounds while the program runs", probe: probeUserfaultWP,
	}
	// PagemapScan reads and resets what UserfaultWP tracked.
	PagemapScan = &Feature{
		Name: "the PAGEMAP_SCAN ioctl", Since: "6.7",
		Need: "copying memory in rounds while the program runs", probe: probePagemapScan,
	}
	// SoftDirty is the older way to track writes; it needs the program stopped for a moment in every round.
	SoftDirty = &Feature{
		Name: "soft-dirty bits", Since: "3.11 (CONFIG_MEM_SOFT_DIRTY)",
		Need: "copying memory in rounds on kernels before 6.7", probe: probeSoftDirty,
	}
	// MapFiles reaches mapped objects that have no name.
	MapFiles = &Feature{
		Name: "/proc/PID/map_files for this user", Since: "4.3 (CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE)",
		Need: "shared anonymous memory", probe: probeMapFiles,
	}
	// TimeNamespace lets clocks continue on another host.
	TimeNamespace = &Feature{
		Name: "time namespaces", Since: "5.6 (CONFIG_TIME_NS)",
		Need: "clocks that continue", probe: exists("/proc/self/ns/time"),
	}
	// SetTID lets processes keep their ids.
	SetTID = &Feature{
		Name: "checkpoint and restore support", Since: "5.5 (CONFIG_CHECKPOINT_RESTORE)",
		Need: "ids of processes that continue", probe: exists("/proc/self/timers"),
	}
	// PidfdGetfd takes descriptors out of a program.
	PidfdGetfd = &Feature{
		Name: "pidfd_getfd(2)", Since: "5.6",
		Need: "reading what a program's descriptors hold", probe: probePidfdGetfd,
	}
	// Kcmp tells whether two processes share something.
	Kcmp = &Feature{
		Name: "kcmp(2)", Since: "3.5 (CONFIG_KCMP)",
		Need: "descriptors that processes share", probe: probeKcmp,
	}
)

// All lists the features in the order in which they are explained to an operator.
func All() []*Feature {
	return []*Feature{UserfaultWP, PagemapScan, SoftDirty, MapFiles, TimeNamespace, SetTID, PidfdGetfd, Kcmp}
}

func exists(path string) func() error {
	return func() error {
		_, err := os.Stat(path)
		return err
	}
}

// pageProbe maps and fills one private page, and hands it to fn with its address.
func pageProbe(fn func(page []byte, addr uint64) error) (err error) {
	page, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Munmap(page)) }()
	page[0] = 1
	return fn(page, addressOf(page))
}

func probeUserfaultWP() error {
	// UFFD_USER_MODE_ONLY is what an unprivileged program may always have.
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|userModeOnly, 0, 0)
	if errno != 0 {
		return fmt.Errorf("userfaultfd(2): %w", errno)
	}
	err := uffdAPI(int(fd), featureWPAsync|featureWPUnpopulated)
	return errors.Join(err, unix.Close(int(fd)))
}

func probePagemapScan() (err error) {
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return pageProbe(func(page []byte, addr uint64) error {
		n, err := scanPresent(int(f.Fd()), addr, addr+uint64(len(page)))
		if err == nil && n != 1 {
			err = fmt.Errorf("PAGEMAP_SCAN found %d populated ranges in one page", n)
		}
		return err
	})
}

// probeSoftDirty looks for the bit in a page that was just written; where soft-dirty is not built in, it is never set.
func probeSoftDirty() (err error) {
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return pageProbe(func(page []byte, addr uint64) error {
		var entry [8]byte
		if _, err := f.ReadAt(entry[:], int64(addr/uint64(len(page))*8)); err != nil {
			return err
		}
		if entry[6]&(1<<(55-48)) == 0 { // PM_SOFT_DIRTY (fs/proc/task_mmu.c)
			return errors.New("a page that was written has no soft-dirty bit")
		}
		return nil
	})
}

func probeMapFiles() (err error) {
	shared, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Munmap(shared)) }()
	at := addressOf(shared)
	f, err := os.OpenFile(fmt.Sprintf("/proc/self/map_files/%x-%x", at, at+uint64(len(shared))), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

func probePidfdGetfd() error {
	self, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return fmt.Errorf("pidfd_open(2): %w", err)
	}
	fd, err := unix.PidfdGetfd(self, self, 0)
	if err == nil {
		err = unix.Close(fd)
	}
	return errors.Join(err, unix.Close(self))
}

func probeKcmp() error {
	pid := uintptr(os.Getpid())
	const kcmpVM = 1 // enum kcmp_type (include/uapi/linux/kcmp.h)
	if _, _, errno := unix.Syscall6(unix.SYS_KCMP, pid, pid, kcmpVM, 0, 0, 0); errno != 0 {
		return fmt.Errorf("kcmp(2): %w", errno)
	}
	return nil
}
