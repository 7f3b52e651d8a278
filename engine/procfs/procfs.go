// Package procfs reads what the kernel tells about processes under /proc. Every format has a parser over an
// io.Reader, which runs on any system and is tested with files taken from several kernels; FS opens the files of
// a live /proc and hands them to the parsers.
//
// A parser returns an error that names the file, the line and the field; it never guesses. Fields that a kernel
// does not have are left at their zero value, and fields that this package does not know are skipped. A process
// that ended is reported as ErrGone. The package holds no state and takes no locks.
package procfs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// ErrGone means that the process, the thread or the descriptor does not exist (any more).
var ErrGone = errors.New("it does not exist")

// FS is the path at which a proc filesystem is mounted, such as "/proc". Process ids given to its methods are
// those of the pid namespace to which that mount belongs.
type FS string

// Host is the proc filesystem of this program.
const Host FS = "/proc"

// maxLine bounds a line: a path of a mapping is at most 4 * PATH_MAX when escaped, and the group list of
// a status file has at most 65,536 numbers (limits.h, NGROUPS_MAX).
const maxLine = 1 << 20

// Path joins elements, numbers or strings, to a path below the mount.
func (p FS) Path(elem ...any) string {
	parts := make([]string, 0, len(elem)+1)
	parts = append(parts, string(p))
	for _, e := range elem {
		parts = append(parts, fmt.Sprint(e))
	}
	return filepath.Join(parts...)
}

// Open opens a file below the mount. A process that does not exist gives an error that matches ErrGone.
func (p FS) Open(elem ...any) (*os.File, error) {
	f, err := os.Open(p.Path(elem...))
	return f, gone(err)
}

// Bytes reads a whole file below the mount.
func (p FS) Bytes(elem ...any) ([]byte, error) {
	r, err := p.read(elem...)
	if err != nil {
		return nil, err
	}
	defer r.close()
	b, err := io.ReadAll(r)
	return b, gone(err)
}

// Link reads a symbolic link below the mount, such as PID/exe or PID/fd/3.
func (p FS) Link(elem ...any) (string, error) {
	s, err := os.Readlink(p.Path(elem...))
	if errors.Is(err, fs.ErrPermission) {
		// A link of ns answers EACCES when the task ends between the look-up and the reading (fs/proc/namespaces.c).
		if _, serr := os.Stat(p.Path(elem[0])); errors.Is(serr, fs.ErrNotExist) {
			err = serr
		}
	}
	return s, gone(err)
}

// gone makes the errors of a task that ended match ErrGone: ENOENT before an open, ESRCH after it (fs/proc/base.c).
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("%w: %w", err, ErrGone)
	}
	return err
}

// parse opens a file below the mount and parses it.
func parse[T any](p FS, parser func(io.Reader) (T, error), elem ...any) (T, error) {
	var zero T
	f, err := p.read(elem...)
	if err != nil {
		return zero, err
	}
	defer f.close()
	v, err := parser(f)
	if err != nil {
		return zero, gone(fmt.Errorf("%s: %w", f.path, err))
	}
	return v, nil
}

// eachLine calls fn with every line, numbered from 1, and names the line in fn's error.
func eachLine(r io.Reader, fn func(line string) error) error {
	return eachRawLine(r, func(line []byte) error { return fn(string(line)) })
}

// eachRawLine is eachLine without a copy: the line is valid until fn returns.
func eachRawLine(r io.Reader, fn func(line []byte) error) error {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 0, 64<<10), maxLine)
	n := 0
	for s.Scan() {
		n++
		if err := fn(s.Bytes()); err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
	}
	if err := s.Err(); err != nil {
		return fmt.Errorf("line %d: %w", n+1, err)
	}
	return nil
}

// number parses an unsigned number; field names it in the error.
func number(field, s string, base int) (uint64, error) {
	v, err := strconv.ParseUint(strings.TrimSpace(s), base, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %q is not a number of base %d that fits into 64 bits", field, s, base)
	}
	return v, nil
}

// integer parses a decimal signed number of the given size in bits.
func integer(field, s string, bits int) (int64, error) {
	v, err := strconv.ParseInt(strings.TrimSpace(s), 10, bits)
	if err != nil {
		return 0, fmt.Errorf("%s: %q is not a number that fits into %d bits", field, s, bits)
	}
	return v, nil
}

// id parses a process, thread or descriptor number.
func id(field, s string) (int, error) {
	v, err := integer(field, s, 32)
	return int(v), err
}

// ids parses a list of numbers separated by blanks.
func ids(field, s string) ([]int, error) {
	var out []int
	for f := range strings.FieldsSeq(s) {
		v, err := id(field, f)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// unescape undoes the octal escapes (\012 and the like) of the characters given, as seq_path writes them. Other
// backslashes stand for themselves.
func unescape(s, escaped string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	for _, c := range []byte(escaped) {
		s = strings.ReplaceAll(s, fmt.Sprintf(`\%03o`, c), string(rune(c)))
	}
	return s
}

// numbersIn lists the numeric names in a directory below the mount, in ascending order.
func (p FS) numbersIn(elem ...any) ([]int, error) {
	d, err := p.Open(elem...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = d.Close() }() // opened for reading: nothing is lost
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, gone(fmt.Errorf("listing %s: %w", d.Name(), err))
	}
	out := make([]int, 0, len(names))
	for _, n := range names {
		if v, err := strconv.Atoi(n); err == nil {
			out = append(out, v)
		}
	}
	slices.Sort(out)
	return out, nil
}

// PIDs lists the processes, in ascending order.
func (p FS) PIDs() ([]int, error) { return p.numbersIn() }

// Tasks lists the threads of a process, in ascending order.
func (p FS) Tasks(pid int) ([]int, error) { return p.numbersIn(pid, "task") }

// FDs lists the open descriptors of a process, in ascending order.
func (p FS) FDs(pid int) ([]int, error) { return p.numbersIn(pid, "fd") }

// Children lists the children of one thread in the order of their birth (CONFIG_PROC_CHILDREN). The kernel
// promises a complete list only while the children do not end, so use it on a stopped tree.
func (p FS) Children(pid, tid int) ([]int, error) {
	b, err := p.Bytes(pid, "task", tid, "children")
	if err != nil {
		return nil, err
	}
	return ids("children", string(b))
}

// Comm reads the name of a thread, of at most 15 bytes.
func (p FS) Comm(pid, tid int) (string, error) {
	b, err := p.Bytes(pid, "task", tid, "comm")
	return string(bytes.TrimSuffix(b, []byte("\n"))), err
}

// Cmdline reads the argument list. It is empty for a kernel thread and for a zombie.
func (p FS) Cmdline(pid int) ([]string, error) {
	b, err := p.Bytes(pid, "cmdline")
	if err != nil || len(b) == 0 {
		return nil, err
	}
	return strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00"), nil
}

// OuterRoot is a path of this program that leads to the root of the mount namespace of a process: "/" if that is this
// program's own, whatever root the process has (chroot(2)), else the root of the process.
func (p FS) OuterRoot(pid int) string {
	own, err := os.Readlink(p.Path("self", "ns", "mnt"))
	if its, err2 := os.Readlink(p.Path(pid, "ns", "mnt")); err == nil && err2 == nil && its == own {
		return "/"
	}
	return p.Path(pid, "root")
}
