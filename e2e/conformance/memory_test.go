//go:build linux

package conformance

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"migrate/engine/procfs"
)

// passingFlags are VmFlags (proc_pid_smaps(5)) that tell of the past, not of what a program can do with its memory: ac, memory
// that is or was writable and so is accounted for; sd, memory that was written to since somebody asked; sh, shared memory of a file
// that was open for writing, even if it was sealed: mw tells whether it can be written.
var passingFlags = []string{"ac", "sd", "sh", "??"}

// numberedMemory are mappings that are called by a number of their object.
var numberedMemory = regexp.MustCompile(`^((?:socket|pipe):)\[\d+\]$`)

// region is memory of one kind. How the kernel has split it into mappings depends on its history.
type region struct {
	start, end uint64
	what       string
	next       uint64 // offset into the file of what would go on with it
}

// memory describes all mappings of the program's first process: addresses, protection, what is mapped, flags and protection key.
func (w *workload) memory(t *testing.T) []region {
	t.Helper()
	maps, err := procfs.Host.Smaps(w.pid)
	if err != nil {
		t.Fatal(err)
	}
	var out []region
	for _, m := range maps {
		flags := slices.DeleteFunc(slices.Clone(m.Smaps.VMFlags), func(f string) bool { return slices.Contains(passingFlags, f) })
		what := fmt.Sprintf("prot %d shared %v %q deleted %v flags %v key %d page %d", m.Prot, m.Shared,
			numberedMemory.ReplaceAllString(m.Path, "$1"), m.Deleted, flags, m.Smaps.ProtectionKey, m.Smaps.KernelPageSize)
		if m.Path == "/anon_hugepage" && !m.Shared {
			m.Offset, m.Inode = 0, 0 // into a file that only this mapping has
		}
		after := m.Offset + m.Size()
		if m.Inode == 0 {
			after = 0
		}
		if n := len(out); n > 0 && out[n-1].end == m.Start && out[n-1].what == what && (out[n-1].next == m.Offset || m.Inode == 0) {
			out[n-1].end, out[n-1].next = m.End, after
			continue
		}
		out = append(out, region{m.Start, m.End, what, after})
	}
	return out
}

// mustHaveMemory compares the mappings with those of before.
func (w *workload) mustHaveMemory(t *testing.T, before []region) {
	t.Helper()
	if err := sameMemory(before, w.memory(t)); err != nil {
		t.Error(err)
	}
}

func sameMemory(before, after []region) error {
	var lines []string
	for i, list := range [][]region{before, after} {
		for _, r := range list {
			if !slices.Contains([][]region{after, before}[i], r) {
				lines = append(lines, fmt.Sprintf("%s 0x%x-0x%x up to offset 0x%x: %s", []string{"was", "is "}[i], r.start, r.end, r.next, r.what))
			}
		}
	}
	if lines == nil {
		return nil
	}
	slices.SortStableFunc(lines, func(a, b string) int { return strings.Compare(a[4:], b[4:]) })
	return errors.New("the memory is not mapped as before:\n\t" + strings.Join(lines, "\n\t"))
}
