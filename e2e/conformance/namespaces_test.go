//go:build linux

package conformance

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"migrate/engine/kernel/kerneltest"
)

// inNamespaces are the general workloads that also run as the pid 1 of namespaces.
var inNamespaces = []string{"anon_private", "credentials", "epoll", "mappings", "ns_mounts", "ns_overlay", "ns_deleted", "ns_net", "ns_time", "ns_uts_ipc", "owners", "pidfds", "pipes", "registers", "signals", "sleepers", "tcp_inside", "threads", "timers", "tree", "sessions_dead", "zombie", "zombies"}

func TestNamespaces(t *testing.T) {
	eachInNamespaces(t, func(ctx context.Context, t *testing.T, w *workload) {
		dir := w.dump(ctx, t)
		w.mustBeGone(t)
		w.restore(ctx, t, dir)
		w.check(ctx, t)
	})
}

func TestNamespacesLeftRunning(t *testing.T) {
	eachInNamespaces(t, func(ctx context.Context, t *testing.T, w *workload) {
		w.dump(ctx, t, "--leave-running")
		w.check(ctx, t)
	})
}

// eachInNamespaces runs fn on every program as the pid 1 of namespaces of its own, with and without a user namespace.
func eachInNamespaces(t *testing.T, fn func(context.Context, *testing.T, *workload)) {
	kerneltest.Root(t)
	bin := build(t)
	launch := filepath.Join(t.TempDir(), "launch")
	compileTo(t.Context(), t, launch, "../workloads/ns/launch/launch.c")
	own, err := filepath.Glob("../workloads/ns/*.c")
	if err != nil || len(own) == 0 {
		t.Fatalf("no workloads: %v", err)
	}
	for _, name := range inNamespaces {
		own = append(own, "../workloads/c/"+name+".c")
	}
	for _, src := range own {
		name := strings.TrimSuffix(filepath.Base(src), ".c")
		for _, flavour := range flavours(t, src) {
			t.Run(flavour+"/"+name, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), timeout)
				defer cancel()
				fn(ctx, t, startInside(ctx, t, bin, launch, flavour, src))
			})
		}
	}
}

// flavours are those in which a program runs: a line "flavours: ..." in its first comment may say so.
func flavours(t *testing.T, src string) []string {
	text, err := os.ReadFile(src)
	if err != nil {
		t.Fatal(err)
	}
	head, _, _ := strings.Cut(string(text), "*/")
	if _, list, ok := strings.Cut(head, "flavours:"); ok {
		return strings.Fields(list)
	}
	return []string{"ns", "uns"}
}

func compileTo(ctx context.Context, t *testing.T, out, src string) {
	t.Helper()
	cmd := exec.CommandContext(ctx, "gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread", "-static", "-o", out, src)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("gcc %s: %v\n%s", src, err, text)
	}
}

// startInside starts a program as the pid 1 of new namespaces. Its root directory is the workload's directory.
func startInside(ctx context.Context, t *testing.T, bin, launch, flavour, src string) *workload {
	t.Helper()
	w := &workload{bin: bin, dir: t.TempDir()}
	openUp(t, w.dir)
	compileTo(ctx, t, filepath.Join(w.dir, "program"), src)
	log, err := os.OpenFile(filepath.Join(w.dir, "output"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o666)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	if err := log.Chmod(0o666); err != nil { // root in a user namespace is nobody here
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, launch, flavour, w.dir, "/program")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Stderr = log
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.exited = make(chan struct{})
	t.Cleanup(func() {
		if w.pid != 0 {
			_ = unix.Kill(w.pid, unix.SIGKILL)
		}
		<-w.exited
	})
	defer func() {
		go func() {
			defer close(w.exited)
			_ = cmd.Wait()
		}()
	}()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the program does not start: %v\n%s", err, w.output())
	}
	if w.pid, err = strconv.Atoi(strings.TrimSpace(line)); err != nil {
		t.Fatal(err)
	}
	w.await(ctx, t, "ready")
	return w
}
