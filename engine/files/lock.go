//go:build linux

package files

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"migrate/engine/procfs"
)

// lockedInodes lists the inode numbers that /proc/locks names (proc_locks(5)). Numbers of different file systems may coincide:
// it only saves reading fdinfo of files without locks.
func lockedInodes() (map[uint64]bool, error) {
	b, err := procfs.Host.Bytes("locks")
	if err != nil {
		return nil, err
	}
	out := map[uint64]bool{}
	for line := range bytes.Lines(b) {
		for _, f := range bytes.Fields(line) {
			if p := bytes.LastIndexByte(f, ':'); p >= 0 && bytes.Count(f, []byte(":")) == 2 {
				if ino, err := strconv.ParseUint(string(f[p+1:]), 10, 64); err == nil {
					out[ino] = true
				}
			}
		}
	}
	return out, nil
}

// lockProblems names the locks that the holders of a file have.
func (d *Dumper) lockProblems(desc *description) []problem {
	if desc.flags&unix.O_PATH != 0 || desc.format() != unix.S_IFREG {
		return nil
	}
	if d.locked == nil {
		var err error
		if d.locked, err = lockedInodes(); err != nil {
			return []problem{{reason: err.Error()}}
		}
	}
	if !d.locked[desc.stat.Ino] {
		return nil
	}
	var out []problem
	for _, h := range desc.holders {
		i, err := procfs.Host.FDInfo(h.proc.PID, h.fd)
		if err != nil {
			return []problem{{reason: err.Error()}}
		}
		for _, l := range i.Locks {
			out = append(out, problem{reason: fmt.Sprintf("it holds a lock on %s (%s)", desc.path(), strings.Join(strings.Fields(l), " "))})
		}
	}
	return out
}
