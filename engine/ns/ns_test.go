//go:build linux

package ns

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"migrate/engine/kernel/kerneltest"
)

func TestInitHasItsNamespacesAndClocks(t *testing.T) {
	kerneltest.Root(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	exits, err := os.OpenFile(filepath.Join(t.TempDir(), "exits"), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = exits.Close() }()
	init, err := StartInit(ctx, Spec{Net: true, Mount: true, UTS: true, IPC: true, Offsets: Offsets{Monotonic: 1500 * time.Millisecond, Boottime: -time.Millisecond}, ExitLog: exits})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = init.Close() }()
	for _, kind := range []string{"net", "mnt", "uts", "ipc", "pid", "time"} {
		mine, err1 := os.Readlink("/proc/self/ns/" + kind)
		its, err2 := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", init.PID, kind))
		if err1 != nil || err2 != nil || mine == its {
			t.Errorf("namespace %s: %s and %s (%v, %v)", kind, mine, its, err1, err2)
		}
	}
	offsets, err := os.ReadFile(fmt.Sprintf("/proc/%d/timens_offsets", init.PID))
	if err != nil {
		t.Fatal(err)
	}
	if f := strings.Fields(string(offsets)); len(f) != 6 || f[1] != "1" || f[2] != "500000000" || f[4] != "-1" || f[5] != "999000000" {
		t.Errorf("offsets %q", offsets)
	}
	if err := init.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", init.PID)); err == nil {
		t.Errorf("pid %d is still there", init.PID)
	}
	var rec [8]byte
	if n, _ := exits.ReadAt(rec[:], 0); n != 0 {
		t.Errorf("pid 1 wrote %d bytes about a child %d", n, binary.LittleEndian.Uint32(rec[:]))
	}
}

func TestCgroupFreezesKillsAndGoes(t *testing.T) {
	kerneltest.Root(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cg, err := MakeCgroup(fmt.Sprintf("migrate-test-%d/tree", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	parent := &Cgroup{filepath.Dir(cg.Path())}
	defer func() {
		if err := parent.Remove(); err != nil {
			t.Error(err)
		}
	}()
	init, err := StartInit(ctx, Spec{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = init.Close() }()
	if err := cg.Add(init.PID); err != nil {
		t.Fatal(err)
	}
	if err := cg.Freeze(ctx); err != nil {
		t.Fatal(err)
	}
	if frozen, err := cg.Frozen(); err != nil || !frozen {
		t.Fatalf("frozen %t, %v", frozen, err)
	}
	if err := cg.Thaw(); err != nil {
		t.Fatal(err)
	}
	if err := cg.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := init.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	if err := cg.Empty(ctx); err != nil {
		t.Fatal(err)
	}
}
