//go:build linux

package files

import (
	"context"
	"os"
	"os/signal"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine/kernel/kerneltest"
)

func init() { scenarios["owner"] = scenario{setupOwner, verifyOwner} }

func setupOwner(h *half) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	h.at(fds[0], 100, err)
	h.at(fds[1], 101, nil)
	_, err = unix.FcntlInt(100, unix.F_SETOWN, os.Getpid())
	h.must(err)
	_, err = unix.FcntlInt(100, unix.F_SETSIG, int(unix.SIGUSR1))
	h.must(err)
	_, err = unix.FcntlInt(100, unix.F_SETFL, unix.O_ASYNC|unix.O_NONBLOCK)
	h.must(err)
}

func verifyOwner(h *half) {
	got := make(chan os.Signal, 1)
	signal.Notify(got, unix.SIGUSR1)
	h.expectFlags(100, unix.O_ASYNC|unix.O_NONBLOCK, unix.O_ASYNC|unix.O_NONBLOCK)
	_, err := unix.Write(101, []byte("x"))
	h.expectErr("write", err, nil)
	select {
	case <-got:
	case <-time.After(5 * time.Second):
		h.errorf("no signal came")
	}
}

// TestMoveOwner moves a socket that signals its process (F_SETOWN, F_SETSIG, O_ASYNC). The process has another id afterwards, because
// this test has no pid namespace; so the record is told the new one.
func TestMoveOwner(t *testing.T) {
	kerneltest.Root(t)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	src := start(t, "setup", "owner", t.TempDir(), nil)
	_, cp := dumped(t, ctx, src)
	dst := start(t, "verify", "owner", t.TempDir(), nil)
	owned := 0
	for _, e := range cp.Files {
		if f := e.Usk.GetFown(); f.GetPid() != 0 {
			if f.GetPid() != uint32(src.vpid) || f.GetPidType() != 1 || f.GetSignum() != uint32(unix.SIGUSR1) {
				t.Errorf("owner %v", f)
			}
			f.Pid = proto.Uint32(uint32(dst.cmd.Process.Pid))
			owned++
		}
	}
	if owned != 1 {
		t.Errorf("%d descriptions have an owner, want 1", owned)
	}
	r := install(t, ctx, dst, cp, Env{})
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	dst.finish(t)
}
