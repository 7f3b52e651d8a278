//go:build linux

package conformance

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"migrate/e2e/testns"
	"migrate/engine/dump"
	"migrate/engine/images"
	"migrate/engine/kernel/kerneltest"
	"migrate/engine/mem"
	"migrate/engine/ns"
	"migrate/engine/restore"
	"migrate/engine/thread"
)

// stays names the programs that are not moved here, and why.
var stays = map[string]string{
	"deleted_name":  "a name that a deleted file has in another directory is found in a stopped tree only",
	"deleted_rofs":  "it takes down a mount that it would leave",
	"detached_bind": "its mount stays at the source",
	"fanotify":      "it compares the numbers of mounts, which are others in another mount namespace",
	"fifos":         "the source still has the same FIFOs open: both hosts are one here",
	"ipc_objects":   "its objects are those of the host, which stay behind",
	"leases":        "the source still has its leases on the same files",
	"locks":         "the source still has its locks on the same files",
	"mem_cow":       "it looks for memory that a fork shares, which a move copies",
	"mqueue":        "its queue is that of the host, which stays behind",
	"ns_overlay":    "mount namespaces that are not the host's are carried by a dump to disk",
	"ns_deleted":    "mount namespaces that are not the host's are carried by a dump to disk",
	"ns_mounts":     "namespaces of single processes are carried by a dump to disk",
	"ns_net":        "namespaces of single processes are carried by a dump to disk",
	"ns_time":       "namespaces of single processes are carried by a dump to disk",
	"ns_uts_ipc":    "namespaces of single processes are carried by a dump to disk",
	"pidfds":        "it has a handle of a process that does not move",
	"proc_files":    "it compares namespaces by their numbers",
	"sem_undo":      "its semaphores are those of the host, which stay behind",
	"tcp_states":    "one of its connections leads to a socket that nobody holds any more, which stays behind",
	"unix_mounts":   "namespaces that a program has made for itself are carried by a dump to disk",
}

// TestMove moves every program as an agent does, on one host: into a skeleton in namespaces of its own, which follows the
// program while that runs, and with the pages in rounds.
func TestMove(t *testing.T) {
	kerneltest.Root(t)
	sources, err := filepath.Glob("../workloads/c/*.c")
	if err != nil || len(sources) == 0 {
		t.Fatalf("no workloads: %v", err)
	}
	for _, src := range sources {
		name := strings.TrimSuffix(filepath.Base(src), ".c")
		if _, err := os.Stat(strings.TrimSuffix(src, ".c") + ".peer.c"); err == nil || strings.HasSuffix(name, ".peer") || stays[name] != "" {
			continue // a connection leads to a namespace that the program leaves
		}
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), timeout)
			defer cancel()
			w := start(ctx, t, "", t.TempDir(), compile(ctx, t, src))
			w.moveAway(ctx, t)
			w.check(ctx, t)
		})
	}
}

// moved is what a mover reports: the program's new process id, and that of its pid 1.
type moved struct{ PID, Init int }

const (
	moverPID    = "MIGRATE_MOVER_PID"    // whom to move
	moverReport = "MIGRATE_MOVER_REPORT" // the file for the report
)

// moveAway has another process move the program, as an agent is not the parent of what it moves: a parent that waits for
// its child's end in another thread would take the child's stops from the tracer.
func (w *workload) moveAway(ctx context.Context, t *testing.T) {
	t.Helper()
	report := filepath.Join(t.TempDir(), "moved")
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.run", "^TestMover$", "-test.v")
	cmd.Env = append(os.Environ(), moverPID+"="+strconv.Itoa(w.pid), moverReport+"="+report)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	text, err := os.ReadFile(report)
	if err != nil {
		t.Fatal(err)
	}
	var m moved
	if err := json.Unmarshal(text, &m); err != nil {
		t.Fatal(err)
	}
	w.pid = m.PID
	t.Cleanup(func() {
		init, err := ns.Adopt(m.Init)
		if err == nil {
			err = errors.Join(init.Kill(context.Background()), init.Close())
		}
		if err != nil {
			t.Error(err)
		}
	})
}

// TestMover is the process that moves; run by itself it does nothing.
func TestMover(t *testing.T) {
	pid, err := strconv.Atoi(os.Getenv(moverPID))
	if err != nil {
		return
	}
	m := move(t.Context(), t, pid)
	text, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(os.Getenv(moverReport), text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// move moves a program.
func move(ctx context.Context, t *testing.T, pid int) (m moved) {
	t.Helper()
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	src, err := dump.Open(ctx, dump.Options{Target: dump.Target{PID: pid}})
	must("open", err)
	defer func() { must("closing the source", src.Close(context.WithoutCancel(ctx))) }()
	obstacles, err := src.Obstacles(ctx)
	must("obstacles", err)
	if len(obstacles) > 0 {
		t.Fatalf("obstacles: %v", obstacles)
	}
	must("track", src.Track(ctx))
	layout := func() *images.Layout {
		t.Helper()
		l, err := src.Layout(ctx)
		must("layout", err)
		b, err := l.Marshal()
		must("layout", err)
		l, err = images.UnmarshalLayout(b)
		must("layout", err)
		return l
	}
	first := layout()
	init, err := ns.StartInit(ctx, ns.Spec{Net: true, Mount: true, IPC: true})
	must("pid 1", err)
	done := false
	defer func() {
		if !done {
			_ = init.Kill(context.WithoutCancel(ctx)) // what failed before says more
		}
		must("closing pid 1", init.Close())
	}()
	net, err := ns.NetNS(init.PID)
	must("network namespace", err)
	defer func() { _ = net.Close() }()
	must("lo", loopbackUp(net))
	sk, err := restore.Prepare(ctx, restore.Env{Parent: init.PID, SetUp: restore.SetUpMounts, NetNS: net}, first)
	must("prepare", err)
	defer func() {
		if !done {
			_ = sk.Destroy(context.WithoutCancel(ctx))
		}
	}()
	to := &direct{sk: sk}
	round := func() {
		t.Helper()
		_, err := src.Round(ctx, to)
		must("round", err)
	}
	round()
	for range 2 {
		must("follow", sk.Follow(ctx, layout()))
		round()
	}
	must("freeze", src.Freeze(ctx))
	must("follow", sk.Follow(ctx, layout()))
	round()
	cp, err := src.State(ctx)
	must("state", err)
	b, err := cp.Marshal()
	must("state", err)
	cp, err = images.Unmarshal(b)
	must("state", err)
	must("finish", sk.Finish(ctx, cp))
	if here, there := src.Digest(), sk.Digest(); here != there {
		t.Fatalf("the memory of the copy differs: %v, %v", here, there)
	}
	must("destroy", src.Destroy(ctx))
	must("release", sk.Release(ctx))
	must("resume", sk.Resume(ctx))
	done = true
	must("close", sk.Close())
	return moved{sk.Processes()[0].PID, init.PID}
}

// direct writes the pages of a round straight into a skeleton.
type direct struct {
	sk *restore.Skeleton
	mu sync.Mutex
}

func (*direct) Buffer() []byte { return make([]byte, 0, mem.BatchBytes) }

func (d *direct) Send(_ context.Context, space uint32, runs []mem.Run, data []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range runs {
		if r.Zero {
			if err := d.sk.ZeroPages(space, r.Addr, r.Pages); err != nil {
				return err
			}
			continue
		}
		n := int(r.Pages) * mem.PageSize
		if err := d.sk.WritePages(space, r.Addr, data[:n]); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

// loopbackUp switches lo on in a network namespace.
func loopbackUp(net *os.File) error {
	return thread.ThrowAway(func() error {
		if err := unix.Setns(int(net.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return testns.LoopbackUp()
	})
}
