//go:build linux

package main

import (
	"fmt"
	"os"
	"regexp"
	"strconv"

	"golang.org/x/sys/unix"
)

var inheritForm = regexp.MustCompile(`^fd\[(\d+)\]:(.+)$`)

// inherited are the descriptors of this command that stand for pipes and files that a dump has called external: --inherit-fd fd[N]:NAME.
type inherited map[string]int

func parseInherited(list []string) (inherited, error) {
	out := inherited{}
	for _, s := range list {
		m := inheritForm.FindStringSubmatch(s)
		if m == nil {
			return nil, fmt.Errorf("--inherit-fd %q has not the form fd[N]:NAME, with a name that was given to --external at the dump", s)
		}
		fd, err := strconv.Atoi(m[1])
		if err == nil {
			_, err = unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		}
		if err != nil {
			return nil, fmt.Errorf("--inherit-fd %q: descriptor %s: %w", s, m[1], err)
		}
		if _, twice := out[m[2]]; twice {
			return nil, fmt.Errorf("--inherit-fd names %s twice", m[2])
		}
		out[m[2]] = fd
	}
	return out, nil
}

// open returns a duplicate of the descriptor that stands for a name.
func (i inherited) open(name string, flags int) (*os.File, error) {
	fd, ok := i[name]
	if !ok {
		return nil, fmt.Errorf("it was called external at the dump: give it with --inherit-fd 'fd[N]:%s'", name)
	}
	have, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d: %w", fd, err)
	}
	if mode := have & unix.O_ACCMODE; mode != flags&unix.O_ACCMODE && mode != unix.O_RDWR {
		return nil, fmt.Errorf("descriptor %d is open for %s, the program's was for %s", fd, accessText[mode], accessText[flags&unix.O_ACCMODE])
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d: %w", fd, err)
	}
	return os.NewFile(uintptr(dup), name), nil
}

var accessText = map[int]string{unix.O_RDONLY: "reading", unix.O_WRONLY: "writing", unix.O_RDWR: "both"}
