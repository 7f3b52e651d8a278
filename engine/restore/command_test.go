//go:build linux

package restore

import (
	"context"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"migrate/engine/kernel/kerneltest"
	"migrate/engine/ns"
	"migrate/engine/procfs"
	"migrate/engine/remote"
)

func TestStartRunsAProgramInItsNamespaces(t *testing.T) {
	kerneltest.Root(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	init, err := ns.StartInit(ctx, ns.Spec{Net: true, Mount: true, UTS: true, IPC: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = init.Kill(context.Background()) }()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = null.Close() }()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	pid, err := Start(ctx, init.PID, func(ctx context.Context, c remote.Caller, _ *Command) error {
		if err := SetUpMounts(ctx, c); err != nil {
			return err
		}
		return SetHostname(ctx, c, "here")
	}, &Command{Path: "/bin/sh", Args: []string{"sh", "-c", `hostname; echo $$ $A; pwd; id -u; id -G; ls /proc/self/fd | tr '\n' ' '; grep SigBlk /proc/self/status; sleep 1000`},
		Env: []string{"A=b", "PATH=/usr/bin:/bin"}, Dir: "/usr", UID: 7, GID: 8, PidNamespaceID: 345, Stdin: null, Stdout: w, Stderr: w})
	_ = w.Close()
	if err != nil {
		t.Fatal(err)
	}
	st, err := procfs.Host.Status(pid)
	if err != nil || st.NSPID[len(st.NSPID)-1] != 345 || st.TracerPID != 0 {
		t.Errorf("%+v, %v", st, err)
	}
	if first, err := procfs.Host.Status(init.PID); err != nil || first.TracerPID != 0 {
		t.Errorf("the pid 1 was not given back: %+v, %v", first, err)
	}
	buf := make([]byte, 4096)
	var got string
	for !strings.Contains(got, "SigBlk") {
		n, err := r.Read(buf)
		if err != nil {
			t.Fatalf("%v after %q", err, got)
		}
		got += string(buf[:n])
	}
	if err := init.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	rest, _ := io.ReadAll(r)
	want := "here\n345 b\n/usr\n7\n8\n0 1 2 3 SigBlk:\t0000000000000000\n"
	if got += string(rest); got != want {
		t.Errorf("it printed %q, want %q", got, want)
	}
	if _, err := Start(ctx, init.PID, nil, &Command{Path: "/nope", Args: []string{"nope"}, Stdin: null, Stdout: null, Stderr: null}); err == nil {
		t.Error("a program was started under a pid 1 that has ended")
	}
}

func TestStartFailsCleanly(t *testing.T) {
	kerneltest.Root(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	init, err := ns.StartInit(ctx, ns.Spec{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = init.Kill(context.Background()) }()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = null.Close() }()
	for range 3 {
		_, err = Start(ctx, init.PID, nil, &Command{Path: "/no/such/program", Args: []string{"x"}, Dir: "/", Stdin: null, Stdout: null, Stderr: null})
		if err == nil || !strings.Contains(err.Error(), "/no/such/program") || !strings.Contains(err.Error(), "no such file") {
			t.Errorf("error %v", err)
		}
	}
}
