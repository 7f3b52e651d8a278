package volume

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"migrate/engine/kernel/kerneltest"
)

func newStore(t *testing.T) (*Store, string) {
	kerneltest.Root(t)
	dir := t.TempDir()
	s, err := OpenStore(filepath.Join(dir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	return s, dir
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func put(t *testing.T, name, text string) {
	t.Helper()
	ok(t, os.MkdirAll(filepath.Dir(name), 0o755))
	ok(t, os.WriteFile(name, []byte(text), 0o600))
}

func text(name string) string {
	b, err := os.ReadFile(name)
	if err != nil {
		return "(" + errors.Unwrap(err).Error() + ")"
	}
	return string(b)
}

const gone = "(no such file or directory)"

func TestAbortLeavesNothing(t *testing.T) {
	s, dir := newStore(t)
	u, f := Unit{Dir: filepath.Join(dir, "a/b/db")}, UnitOf(filepath.Join(dir, "x/y/log"), false)
	like := func(dir string) (Entry, bool) {
		return Entry{Mode: 0o1750, UID: 7, GID: 8}, filepath.Base(dir) == "b"
	}
	ok(t, s.Claim(u, 1, "m1", false, like))
	var st unix.Stat_t
	ok(t, unix.Stat(filepath.Dir(u.Dir), &st))
	if st.Mode&0o7777 != 0o1750 || st.Uid != 7 || st.Gid != 8 {
		t.Errorf("the directory around it has mode %o and belongs to %d:%d", st.Mode, st.Uid, st.Gid)
	}
	ok(t, s.Claim(f, 1, "m1", false, nil))
	ok(t, s.Claim(u, 1, "m1", false, nil)) // again
	put(t, filepath.Join(u.Dir, "sub/file"), "arrived")
	put(t, f.Path(), "arrived")
	ok(t, s.Abort(2)) // another copy's
	if text(f.Path()) != "arrived" {
		t.Error("another copy's end has removed a file")
	}
	ok(t, s.Abort(1))
	ok(t, s.Abort(1))
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 1 {
		t.Errorf("left behind: %v, %v", names, err)
	}
}

func TestOccupied(t *testing.T) {
	s, dir := newStore(t)
	u, f := Unit{Dir: filepath.Join(dir, "db")}, UnitOf(filepath.Join(dir, "log"), false)
	put(t, filepath.Join(u.Dir, "file"), "precious")
	put(t, f.Path(), "precious")
	for _, x := range []Unit{u, f} {
		for _, err := range []error{s.Check(x, false), s.Claim(x, 1, "m1", false, nil)} {
			if !errors.Is(err, ErrOccupied) {
				t.Errorf("%s: %v", x.Path(), err)
			}
		}
		ok(t, s.Check(x, true))
		ok(t, s.Claim(x, 1, "m1", true, nil))
	}
	put(t, filepath.Join(u.Dir, "file"), "new")
	put(t, f.Path(), "new")
	ok(t, s.Abort(1))
	if text(filepath.Join(u.Dir, "file")) != "precious" || text(f.Path()) != "precious" {
		t.Error("what had to make room did not return")
	}
	for _, x := range []Unit{u, f} {
		ok(t, s.Claim(x, 2, "m2", true, nil))
	}
	put(t, filepath.Join(u.Dir, "other"), "new")
	put(t, f.Path(), "new")
	ok(t, s.Keep(2))
	ok(t, s.Abort(2)) // too late: it runs
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 3 || text(filepath.Join(u.Dir, "file")) != gone || text(filepath.Join(u.Dir, "other")) != "new" {
		t.Errorf("after the move: %v, %v", names, err)
	}
}

// TestMountPoint puts aside what is at the root of a file system, which cannot be renamed.
func TestMountPoint(t *testing.T) {
	s, dir := newStore(t)
	u := Unit{Dir: filepath.Join(dir, "db")}
	ok(t, os.Mkdir(u.Dir, 0o755))
	ok(t, unix.Mount("none", u.Dir, "tmpfs", 0, ""))
	t.Cleanup(func() { ok(t, unix.Unmount(u.Dir, 0)) })
	ok(t, s.Claim(u, 1, "m1", false, nil)) // it is empty
	put(t, filepath.Join(u.Dir, "file"), "new")
	ok(t, s.Abort(1))
	if text(filepath.Join(u.Dir, "file")) != gone {
		t.Error("it stays behind")
	}
	put(t, filepath.Join(u.Dir, "file"), "precious")
	ok(t, s.Claim(u, 2, "m2", true, nil))
	put(t, filepath.Join(u.Dir, "file"), "new")
	ok(t, s.Abort(2))
	names, err := os.ReadDir(u.Dir)
	if err != nil || len(names) != 1 || text(filepath.Join(u.Dir, "file")) != "precious" {
		t.Errorf("%v %v", names, err)
	}
}

// TestStale: what a program has left may be replaced, as long as nobody has changed it.
func TestStale(t *testing.T) {
	s, dir := newStore(t)
	u, f := Unit{Dir: filepath.Join(dir, "db")}, UnitOf(filepath.Join(dir, "log"), false)
	put(t, filepath.Join(u.Dir, "sub/file"), "left")
	put(t, f.Path(), "left")
	both := []Unit{u, f}
	ok(t, s.Leave(append(both, Unit{Dir: filepath.Join(dir, "gone")}), 1, "m1"))
	var mark [16]byte
	if n, err := unix.Lgetxattr(u.Dir, markName, mark[:]); err != nil || string(mark[:n]) != "m1" {
		t.Errorf("mark %q, %v", mark[:max(n, 0)], err)
	}
	for _, x := range both {
		ok(t, s.Claim(x, 2, "m2", false, nil))
	}
	if text(filepath.Join(u.Dir, "sub/file")) != "left" {
		t.Error("what was left is not used")
	}
	if _, err := unix.Lgetxattr(u.Dir, markName, mark[:]); !errors.Is(err, unix.ENODATA) {
		t.Errorf("the mark stays: %v", err)
	}
	ok(t, s.Keep(2))
	ok(t, s.Leave(both, 2, "m3"))
	time.Sleep(racyTime) // kernels before 6.13 give changes of one tick one time
	put(t, filepath.Join(u.Dir, "sub/file"), "somebody's")
	put(t, f.Path(), "somebody's")
	for _, x := range both {
		if err := s.Claim(x, 3, "m4", false, nil); !errors.Is(err, ErrOccupied) {
			t.Errorf("%s was changed and is taken: %v", x.Path(), err)
		}
	}
}
