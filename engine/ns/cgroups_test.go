//go:build linux

package ns

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"migrate/engine/images/imagespb"
	"migrate/engine/kernel/kerneltest"
)

// TestCgroupsAreMadeAgain removes described cgroups of a hierarchy of its own and makes them again.
func TestCgroupsAreMadeAgain(t *testing.T) {
	kerneltest.Root(t)
	const name = "name=migrate-test" // it outlives the test: the kernel lets a hierarchy go when it likes
	a := fmt.Sprintf("a%d", os.Getpid())
	h := &Hierarchies{}
	top, err := h.dir(name)
	if err != nil {
		t.Skipf("no cgroup v1 here: %v", err)
	}
	defer func() {
		for _, d := range []string{a + "/b", a} {
			_ = unix.Rmdir(filepath.Join(top, d))
		}
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	}()
	b := filepath.Join(top, a, "b")
	if err := os.MkdirAll(b, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b, "notify_on_release"), []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(b, 12, 34); err != nil {
		t.Fatal(err)
	}
	dirs, err := h.Describe([]*imagespb.CgroupPlace{{Hierarchy: name, Path: "/" + a}})
	if err != nil || len(dirs) != 2 || dirs[0].GetPath() != "/"+a || dirs[1].GetPath() != "/"+a+"/b" {
		t.Fatalf("%v, %v", dirs, err)
	}
	if err := unix.Rmdir(b); err != nil {
		t.Fatal(err)
	}
	undo, err := h.Make(dirs)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(b, "notify_on_release"))
	if err != nil || strings.TrimSpace(string(text)) != "1" {
		t.Errorf("%q, %v", text, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(b, &st); err != nil || st.Uid != 12 || st.Gid != 34 {
		t.Errorf("owner %d, %d, %v", st.Uid, st.Gid, err)
	}
	if err := undo(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(b); !os.IsNotExist(err) {
		t.Errorf("it is still there: %v", err)
	}
	if _, err := os.Stat(filepath.Join(top, a)); err != nil {
		t.Errorf("what was there before is gone: %v", err)
	}
}
