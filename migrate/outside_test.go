//go:build linux

package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOutsideFlags(t *testing.T) {
	for _, c := range []struct {
		flags outsideFlags
		tty   bool
		want  map[string]string // nil: refused
	}{
		{outsideFlags{}, false, map[string]string{}},
		{outsideFlags{tty: "new", unix: []string{"/run/a=b=reconnect", "@x=null", "y=null"}}, true, map[string]string{"/run/a=b": "reconnect", "@x": "null", "y": "null"}},
		{outsideFlags{tty: "old"}, false, nil},
		{outsideFlags{unix: []string{"/run/a"}}, false, nil},
		{outsideFlags{unix: []string{"=null"}}, false, nil},
		{outsideFlags{unix: []string{"/run/a=close"}}, false, nil},
		{outsideFlags{unix: []string{"y=reconnect"}}, false, nil},
		{outsideFlags{unix: []string{"/run/a=null", "/run/a=reconnect"}}, false, nil},
	} {
		tty, got, err := c.flags.parse()
		if (err != nil) != (c.want == nil) || err == nil && (tty != c.tty || !maps.Equal(got, c.want)) {
			t.Errorf("%+v: %v, %v, %v", c.flags, tty, got, err)
		}
	}
}

// TestInheritedFiles: what is called external at a dump, and what stands for it at the restore.
func TestInheritedFiles(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = r.Close(), w.Close() }()
	var st unix.Stat_t
	if err := unix.Fstat(int(w.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Symlink(dir, filepath.Join(dir, "again")); err != nil {
		t.Fatal(err)
	}
	pipe := fmt.Sprintf("pipe:[%d]", st.Ino)
	list, err := externalFiles([]string{pipe, dir})
	if err != nil {
		t.Fatal(err)
	}
	for id, name := range list {
		if name == pipe && (id.Dev != st.Dev || id.Ino != st.Ino) {
			t.Errorf("%s is %+v and should be device %d, inode %d", name, id, st.Dev, st.Ino)
		}
	}
	for _, bad := range [][]string{{"pipe:[99999999999999999999]"}, {filepath.Join(dir, "none")}, {dir, filepath.Join(dir, "again")}} {
		if _, err := externalFiles(bad); err == nil {
			t.Errorf("--external %q is accepted", bad)
		}
	}
	given, err := parseInherited([]string{fmt.Sprintf("fd[%d]:%s", w.Fd(), pipe)})
	if err != nil {
		t.Fatal(err)
	}
	f, err := given.open(pipe, unix.O_WRONLY)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if _, err := given.open(pipe, unix.O_RDONLY); err == nil {
		t.Error("the end for writing stands for one for reading")
	}
	if _, err := given.open("pipe:[1]", unix.O_WRONLY); err == nil {
		t.Error("a descriptor stands for a name that was not given")
	}
	for _, bad := range [][]string{{"3:" + pipe}, {"fd[3]:"}, {"fd[99999]:" + pipe}, {fmt.Sprintf("fd[%d]:a", w.Fd()), fmt.Sprintf("fd[%d]:a", r.Fd())}} {
		if _, err := parseInherited(bad); err == nil {
			t.Errorf("--inherit-fd %q is accepted", bad)
		}
	}
}
