//go:build linux

package conformance

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"migrate/engine/procfs"
)

// passing is what fdinfo tells of an object of the kernel and not of what the program has: numbers of inodes and mounts, handles
// of files that may have been made anew, times that go on. A relative timer becomes one that ends at an instant.
var passing = regexp.MustCompile(`(?m)^(?:mnt_id|ino|eventfd-id|map_id|memlock|it_value|ticks|settime flags: 0[01]):?.*\n| ino:\S+ sdev:\S+| f_handle:\S+|^(lock:\s+)\d+:`)

// numbered are links to objects that have a number instead of a name.
var numbered = regexp.MustCompile(`^(pipe|socket|net|mnt|uts|ipc|user|pid|time|cgroup):\[\d+\]$`)

// descriptors describes every descriptor of the program's first process, by its number.
func (w *workload) descriptors(t *testing.T) map[int]string {
	t.Helper()
	fds, err := procfs.Host.FDs(w.pid)
	if err != nil {
		t.Fatal(err)
	}
	out := map[int]string{}
	for _, fd := range fds {
		link, err := os.Readlink(procfs.Host.Path(w.pid, "fd", fd))
		if err != nil {
			continue // a program that goes on has closed it
		}
		if strings.HasSuffix(link, " (deleted)") {
			link = "a deleted file"
		}
		link = numbered.ReplaceAllString(link, "$1")
		info, err := os.ReadFile(procfs.Host.Path(w.pid, "fdinfo", fd))
		if err != nil {
			continue
		}
		lines := strings.Split(strings.TrimSpace(passing.ReplaceAllString(string(info), "$1")), "\n")
		slices.Sort(lines)
		out[fd] = link + "\n" + strings.Join(lines, "\n")
	}
	return out
}

// mustHave compares the descriptors with those of before.
func (w *workload) mustHave(t *testing.T, before map[int]string) {
	t.Helper()
	after := w.descriptors(t)
	for _, fd := range slices.Sorted(maps.Keys(before)) {
		if after[fd] != before[fd] && !lostMount(before[fd], after[fd]) {
			t.Errorf("descriptor %d was\n%s\nand is\n%s", fd, indent(before[fd]), indent(after[fd]))
		}
		delete(after, fd)
	}
	for _, fd := range slices.Sorted(maps.Keys(after)) {
		t.Errorf("descriptor %d was not there; it is\n%s", fd, indent(after[fd]))
	}
}

// lostMount tells whether only the name differs, and was one on a mount that was gone: it led nowhere.
func lostMount(before, after string) bool {
	name, rest, _ := strings.Cut(before, "\n")
	_, also, _ := strings.Cut(after, "\n")
	_, err := os.Lstat(name)
	nowhere := name == "/" || strings.HasPrefix(name, "/") && !strings.HasSuffix(name, " (deleted)") && errors.Is(err, os.ErrNotExist)
	return nowhere && rest == also
}

func indent(s string) string {
	return fmt.Sprintf("\t%s", strings.ReplaceAll(s, "\n", "\n\t"))
}
