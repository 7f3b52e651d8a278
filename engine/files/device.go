//go:build linux

package files

import (
	"context"
	"fmt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"
	"golang.org/x/sys/unix"
)

// standard are the devices without state (Documentation/admin-guide/devices.txt), by number.
var standard = map[uint64]string{
	unix.Mkdev(1, 3): "/dev/null", unix.Mkdev(1, 5): "/dev/zero", unix.Mkdev(1, 7): "/dev/full",
	unix.Mkdev(1, 8): "/dev/random", unix.Mkdev(1, 9): "/dev/urandom",
}

var kindDevice = &Kind{
	Name: "/dev/null and the like", Type: fdinfo.FdTypes_REG, Carried: true, Note: "null, zero, full, random, urandom, by device number",
	match: func(d *description) bool { return d.format() == unix.S_IFCHR && standard[d.stat.Rdev] != "" },
	dump: func(_ context.Context, r *dump, d *description) (*fdinfo.FileEntry, error) {
		// The name is the standard one, whatever path was used, so that the number can be told from it.
		return r.regEntry(d, standard[d.stat.Rdev])
	},
}

// isStandardDevice tells whether a record is one of kindDevice.
func isStandardDevice(e *regfile.RegFileEntry) bool {
	return e.GetMode()&unix.S_IFMT == unix.S_IFCHR && deviceNumber(e) != 0
}

func deviceNumber(e *regfile.RegFileEntry) uint64 {
	for rdev, name := range standard {
		if name == e.GetName() {
			return rdev
		}
	}
	return 0
}

// openDevice opens this program's own node of a standard device.
func (r *Restorer) openDevice(e *fdinfo.FileEntry) error {
	fd, err := unix.Open(e.Reg.GetName(), int(e.Reg.GetFlags()&(unix.O_ACCMODE|unix.O_APPEND|unix.O_LARGEFILE))|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", e.Reg.GetName(), err)
	}
	r.put(e.GetId(), fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Rdev != deviceNumber(e.Reg) {
		return fmt.Errorf("%s is not the device that it should be (%w)", e.Reg.GetName(), err)
	}
	return nil
}

func isDevice(d *description, format uint32, majors ...uint32) bool {
	if d.format() != format {
		return false
	}
	for _, m := range majors {
		if unix.Major(d.stat.Rdev) == m {
			return true
		}
	}
	return len(majors) == 0
}

var (
	kindOtherDevice = &Kind{Name: "device", Note: "it is a character device, whose state only its driver knows", match: func(d *description) bool { return isDevice(d, unix.S_IFCHR) }}
	kindBlockDevice = &Kind{Name: "block device", Note: "it is a block device of this host", match: func(d *description) bool { return isDevice(d, unix.S_IFBLK) }}
)
