package mem

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"migrate/engine/procfs"
)

// A read of a file opened with O_DIRECT lets the device write into the program's memory. The page counts as written when the
// read begins; if a round reads the page before the device is done, the rest goes unseen by any tracker. So, for a
// program with such a descriptor, every page that was reported is read once more in the rounds after it, until an earlier
// read is certainly over, and in the last round: a thread that was stopped is not in the middle of one. What did not
// change is found by its hash and not sent.

// secondLook is the time after which a device is done with a read.
const secondLook = 2 * time.Second

// look is what a round reported.
type look struct {
	began  time.Time
	ranges []Range
}

// lookAgain adds what earlier rounds reported to what is to be read, and notes it for the rounds to come.
func (s *Source) lookAgain(began time.Time, areas []Area, read []Range) []Range {
	var have rangeSet
	for _, a := range areas {
		have.append(a.Range)
	}
	var again []Range
	kept := s.looks[:0]
	for _, l := range s.looks {
		for _, r := range l.ranges {
			again = append(again, have.cut(r)...)
		}
		if began.Sub(l.began) < secondLook {
			kept = append(kept, l)
		}
	}
	s.looks = append(kept, look{began, read})
	return merge(read, again)
}

// opensDirectly tells whether a process has a descriptor opened with O_DIRECT.
func opensDirectly(pid int) (bool, error) {
	fds, err := procfs.Host.FDs(pid)
	if err != nil {
		return false, err
	}
	for _, fd := range fds {
		info, err := procfs.Host.Bytes(pid, "fdinfo", fd)
		if errors.Is(err, procfs.ErrGone) {
			continue
		}
		if err != nil {
			return false, err
		}
		_, line, _ := strings.Cut("\n"+string(info), "\nflags:")
		line, _, _ = strings.Cut(line, "\n")
		flags, err := strconv.ParseUint(strings.TrimSpace(line), 8, 32)
		if err != nil {
			return false, fmt.Errorf("fdinfo of descriptor %d: flags: %w", fd, err)
		}
		if flags&unix.O_DIRECT != 0 {
			return true, nil
		}
	}
	return false, nil
}
