//go:build linux

package files

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"migrate/engine"
	"migrate/engine/images"
	"migrate/engine/kernel/kerneltest"
	"migrate/engine/ptrace"
	"migrate/engine/remote"
)

func init() {
	scenarios["refused"] = scenario{setupRefused, func(*half) {}}
	scenarios["service"] = scenario{setupService, verifyService}
	scenarios["inherit"] = scenario{setupInherit, verifyInherit}
	scenarios["threads"] = scenario{setupThreads, func(*half) {}}
}

// refused tells what the descriptors of setupRefused are refused as.
var refused = map[int]string{
	101: "memfd", 102: "pidfd", 105: "socket", 106: "unix socket",
	109: "regular file", 110: "pipe", 111: "epoll", 112: "deleted file",
	114: "terminal", 116: "io_uring", 117: "userfaultfd", 119: "directory", 120: "device",
	121: "perf event",
}

func setupRefused(h *half) {
	path := func(name string) string { return filepath.Join(h.dir, name) }
	fd, err := unix.MemfdCreate("x", 0)
	h.at(fd, 101, err)
	fd, err = unix.PidfdOpen(os.Getppid(), 0)
	h.at(fd, 102, err)
	fd, err = unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	h.at(fd, 105, err)
	h.at(3, 106, nil) // one end of a pair of the test's
	h.must(os.WriteFile(path("owned"), []byte("x"), 0o600))
	fd, err = unix.Open(path("owned"), unix.O_RDONLY, 0)
	h.at(fd, 109, err)
	_, err = unix.FcntlInt(109, unix.F_SETOWN, os.Getppid())
	h.must(err)
	h.at(4, 110, nil)              // one end of a pipe of the test's
	fd, err = unix.EpollCreate1(0) // its target is open in the test only
	h.at(fd, 111, err)
	h.must(unix.EpollCtl(111, unix.EPOLL_CTL_ADD, 5, &unix.EpollEvent{Events: unix.EPOLLIN}))
	h.must(unix.Close(5))
	h.must(os.WriteFile(path("linked"), nil, 0o600))
	h.must(os.Link(path("linked"), path("other")))
	fd, err = unix.Open(path("linked"), unix.O_RDONLY, 0)
	h.at(fd, 112, err)
	h.must(os.Remove(path("linked")))
	fd, err = unix.Open("/proc/self/ns/uts", unix.O_RDONLY, 0)
	h.at(fd, 113, err)
	setupRefusedMore(h, path)
}

func setupRefusedMore(h *half, path func(string) string) {
	h.at(6, 114, nil) // a slave whose master is the test's
	raw := func(number int, nr uintptr, args ...uintptr) {
		args = append(args, make([]uintptr, 5)...)
		r, _, e := unix.Syscall6(nr, args[0], args[1], args[2], args[3], args[4], 0)
		if e != 0 { // not in this kernel: nothing to refuse
			fmt.Println("SKIP", number)
			return
		}
		h.at(int(r), number, nil)
	}
	var params [120]byte
	raw(116, unix.SYS_IO_URING_SETUP, 4, uintptr(unsafe.Pointer(&params)))
	raw(117, unix.SYS_USERFAULTFD, 1)
	h.must(os.Mkdir(path("dir"), 0o700))
	fd, err := unix.Open(path("dir"), unix.O_RDONLY, 0)
	h.at(fd, 119, err)
	h.must(os.Remove(path("dir")))
	fd, err = unix.Open("/dev/kmsg", unix.O_RDONLY, 0)
	h.at(fd, 120, err)
	attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_DUMMY, Size: uint32(unsafe.Sizeof(unix.PerfEventAttr{}))}
	raw(121, unix.SYS_PERF_EVENT_OPEN, uintptr(unsafe.Pointer(&attr)), 0, ^uintptr(0), ^uintptr(0), 0)
	bpf := []uint32{1 /* hash */, 4, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	raw(122, unix.SYS_BPF, 0, uintptr(unsafe.Pointer(&bpf[0])), 64)
	runtime.KeepAlive(bpf)
}

// TestCheckRefuses finds every kind that is not carried, by its name, and nothing else.
func TestCheckRefuses(t *testing.T) {
	kerneltest.Root(t)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	theirs := os.NewFile(uintptr(pair[1]), "pair")
	e, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	shared := os.NewFile(uintptr(e), "eventfd")
	defer shared.Close()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	peer, err := openPeer(master, unix.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	slave := os.NewFile(uintptr(peer), "slave")
	p := start(t, "setup", "refused", t.TempDir(), nil, theirs, w, shared, slave)
	_, _, _ = theirs.Close(), w.Close(), slave.Close()
	d := NewDumper(Options{External: runtimeFiles(t, p)})
	defer d.Close()
	obstacles, err := d.Check(ctx, []*engine.Process{p.process()})
	if err != nil {
		t.Fatal(err)
	}
	found := map[int]string{}
	for _, o := range obstacles {
		var fd int
		if _, err := fmt.Sscanf(o.Where, "fd %d", &fd); err != nil || o.Reason == "" || o.PID != p.cmd.Process.Pid {
			t.Errorf("obstacle %+v", o)
		}
		t.Log(o)
		found[fd] = o.Kind
	}
	for fd, kind := range refused {
		if _, err := os.Lstat(fmt.Sprintf("/proc/%d/fd/%d", p.cmd.Process.Pid, fd)); err != nil {
			t.Logf("descriptor %d (%s) could not be made here", fd, kind)
			continue
		}
		if found[fd] != kind {
			t.Errorf("descriptor %d: refused as %q, want %q", fd, found[fd], kind)
		}
	}
	for fd, kind := range found {
		if refused[fd] == "" && fd >= firstFD {
			t.Errorf("descriptor %d is refused as %q", fd, kind)
		}
	}
	p.stop(t)
	if err := d.Dump(ctx, []*engine.Process{p.process()}, &images.Checkpoint{}); !errors.Is(err, ErrNotCarried) {
		t.Errorf("dump: %v", err)
	}
}

func setupService(h *half) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	h.at(fd, 100, err)
	h.must(unix.Connect(100, &unix.SockaddrUnix{Name: filepath.Join(h.dir, "log")}))
}

func verifyService(h *half) {
	_, err := unix.Write(100, []byte("moved"))
	h.expectErr("send to the service", err, nil)
}

// TestMoveDatagramsToService moves a socket that sends to a path outside of the tree, as syslog(3) does.
func TestMoveDatagramsToService(t *testing.T) {
	kerneltest.Root(t)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	dir := t.TempDir()
	service := func() int {
		_ = os.Remove(filepath.Join(dir, "log"))
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		if err := unix.Bind(fd, &unix.SockaddrUnix{Name: filepath.Join(dir, "log")}); err != nil {
			t.Fatal(err)
		}
		return fd
	}
	service()
	src := start(t, "setup", "service", dir, nil)
	d, cp := dumped(t, ctx, src)
	if n := d.Needed(); len(n) != 1 || n[0].Path != filepath.Join(dir, "log") {
		t.Errorf("needed: %+v", n)
	}
	there := service() // that of the destination
	dst := start(t, "verify", "service", dir, nil)
	r := install(t, ctx, dst, cp, Env{})
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	dst.finish(t)
	buf := make([]byte, 16)
	if n, err := unix.Read(there, buf); err != nil || string(buf[:n]) != "moved" {
		t.Errorf("the service got %q (%v)", buf, err)
	}
}

func setupThreads(h *half) {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- unix.Unshare(unix.CLONE_FILES)
		select {}
	}()
	h.must(<-done)
}

func TestCheckRefusesThreadsWithOwnTables(t *testing.T) {
	kerneltest.Root(t)
	p := start(t, "setup", "threads", t.TempDir(), nil)
	d := NewDumper(Options{External: runtimeFiles(t, p)})
	defer d.Close()
	proc := p.process()
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", proc.PID))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range tasks {
		var tid int
		if fmt.Sscan(e.Name(), &tid); tid != proc.PID {
			proc.Threads = append(proc.Threads, engine.Thread{TID: tid, VTID: tid})
		}
	}
	o, err := d.Check(context.Background(), []*engine.Process{proc})
	if err != nil || len(o) == 0 || o[0].Kind != "descriptor table" {
		t.Errorf("obstacles %v (%v)", o, err)
	}
}

func setupInherit(h *half) {
	for i := range 4 {
		h.at(3+i, 100+i, nil)
	}
	if filepath.Base(h.dir) == "second" {
		h.must(unix.Dup3(100, 200, unix.O_CLOEXEC))
		h.must(unix.Close(100))
	}
}

func verifyInherit(h *half) {
	if filepath.Base(h.dir) == "second" {
		h.expectRead(200, "345")
		h.expectCloexec(200, true)
		h.expectRead(102, "through the pipe")
		return
	}
	_, err := unix.Seek(100, 3, unix.SEEK_SET)
	h.must(err)
	h.must(unix.SetNonblock(102, true))
	_, err = unix.Write(103, []byte("through the pipe"))
	h.must(err)
}

// TestMoveShared moves two processes that share descriptions, under different numbers.
func TestMoveShared(t *testing.T) {
	kerneltest.Root(t)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	dir := t.TempDir()
	name := filepath.Join(dir, "file")
	if err := os.WriteFile(name, []byte("012345"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	e, err := unix.Eventfd(1, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	given := []*os.File{f, os.NewFile(uintptr(e), "eventfd"), r, w}
	dirs := []string{filepath.Join(dir, "first"), filepath.Join(dir, "second")}
	src := []*program{start(t, "setup", "inherit", dirs[0], nil, given...), start(t, "setup", "inherit", dirs[1], nil, given...)}
	src[1].vpid = 4712
	for _, f := range given {
		_ = f.Close()
	}
	external := runtimeFiles(t, src[0])
	for id, n := range runtimeFiles(t, src[1]) {
		external[id] = n
	}
	d := NewDumper(Options{External: external})
	defer d.Close()
	procs := []*engine.Process{src[0].process(), src[1].process()}
	if o, err := d.Check(ctx, procs); err != nil || len(o) > 0 {
		t.Fatal(o, err)
	}
	cp := &images.Checkpoint{}
	for _, p := range src {
		p.stop(t)
		cp.Processes = append(cp.Processes, &images.Process{PID: uint32(p.vpid), IDs: tableOf(p.vpid)})
	}
	if err := d.Dump(ctx, procs, cp); err != nil {
		t.Fatal(err)
	}
	prune(cp)
	ids := map[uint32]bool{}
	for _, p := range cp.Processes {
		for _, f := range p.FDs {
			ids[f.GetId()] = true
		}
	}
	if len(ids) != 4 {
		t.Errorf("%d descriptions, want 4", len(ids))
	}
	dst := []*program{start(t, "verify", "inherit", dirs[0], nil), start(t, "verify", "inherit", dirs[1], nil)}
	dst[1].vpid = 4712
	rest := installAll(t, ctx, dst, cp, Env{})
	if err := rest.Close(); err != nil {
		t.Fatal(err)
	}
	dst[0].finish(t)
	dst[1].finish(t)
}

// installAll is install for several processes.
func installAll(t *testing.T, ctx context.Context, ps []*program, cp *images.Checkpoint, env Env) *Restorer {
	t.Helper()
	r, err := NewRestorer(cp, env)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Open(ctx); err != nil {
		t.Fatal(err)
	}
	tracer := ptrace.New()
	defer tracer.Close()
	for _, p := range ps {
		trap, err := remote.InstallStub(ctx, tracer, p.cmd.Process.Pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		proc := p.process()
		proc.Caller = trap
		err = errors.Join(r.Install(ctx, proc), trap.Release(ctx), trap.Close(), tracer.Detach(ctx, proc.PID, 0))
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Finish(ctx); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestPrecheck(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "here"), []byte("four"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		n    Needed
		want string
	}{
		{Needed{Path: "/here", Mode: unix.S_IFREG, Size: 4, Fixed: true}, ""},
		{Needed{Path: "/here", Mode: unix.S_IFREG, Size: 9}, ""},
		{Needed{Path: "/here", Mode: unix.S_IFREG, Size: 9, Fixed: true}, "has 4 bytes here and had 9"},
		{Needed{Path: "/here", Mode: unix.S_IFDIR}, "is a regular file here and was a directory"},
		{Needed{Path: "/missing", Mode: unix.S_IFREG}, "does not exist here"},
		{Needed{Path: "/link/passwd", Mode: unix.S_IFREG}, "does not exist here"}, // no way out of the root
	} {
		against := Precheck(dir, []Needed{c.n})
		if c.want == "" && len(against) > 0 ||
			c.want != "" && (len(against) != 1 || against[0].Where != c.n.Path || !strings.Contains(against[0].Reason, c.want)) {
			t.Errorf("%+v: %v, want %q", c.n, against, c.want)
		}
	}
}

func TestKindsAreNamed(t *testing.T) {
	names := map[string]bool{}
	for _, k := range Kinds() {
		if k.Name == "" || k.Note == "" || k.match == nil || names[k.Name] || k.Carried != (k.dump != nil) {
			t.Errorf("row %+v", k)
		}
		names[k.Name] = true
	}
}

func TestExternal(t *testing.T) {
	kerneltest.Root(t)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	p := start(t, "setup", "anon", t.TempDir(), nil)
	_, cp := dumped(t, ctx, p)
	var names []string
	for _, e := range cp.Files {
		if e.Reg.GetExt() {
			names = append(names, e.Reg.GetName())
		}
	}
	if strings.Join(names, ",") != "fd 0,fd 1,fd 2" && strings.Join(names, ",") != "fd 0,fd 1" {
		t.Errorf("files of the agent: %v", names)
	}
	// Each in a descriptor table of its own.
	for i, e := range cp.Files {
		if e.Reg.GetExt() {
			cp.Processes[0].FDs = append(cp.Processes[0].FDs, fdEntry(e, uint32(500+i)))
		}
	}
	var log bytes.Buffer
	asked := map[string]bool{}
	r, err := NewRestorer(cp, Env{PID: func(int) int { return p.cmd.Process.Pid }, External: func(name string, flags int) (*os.File, error) {
		asked[name] = true
		fmt.Fprintln(&log, name, flags)
		return os.OpenFile(os.DevNull, flags&unix.O_ACCMODE, 0)
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.Open(ctx), r.Close()); err != nil {
		t.Fatal(err)
	}
	if len(asked) != len(names) {
		t.Errorf("asked for %s", log.String())
	}
}

// TestCheckPassing: a file that is removed or replaced while it is examined is worth another look.
func TestCheckPassing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	for name, change := range map[string]func() error{
		"removed":  func() error { return os.Remove(path) },
		"renamed":  func() error { return os.Rename(path, path+".old") },
		"replaced": func() error { return errors.Join(os.WriteFile(path+".new", nil, 0o600), os.Rename(path+".new", path)) },
	} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		self := &engine.Process{PID: os.Getpid()}
		d := NewDumper(Options{})
		d.current = newCollector(1).snapshot
		desc := &description{fd: fd, holders: []holder{{proc: self, fd: fd}}, root: "/", kind: kindRegular}
		if err := unix.Fstat(fd, &desc.stat); err != nil {
			t.Fatal(err)
		}
		if ps := checkPath(t.Context(), d, desc); len(ps) > 0 {
			t.Errorf("%s: before, %v", name, ps)
		}
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if ps := checkPath(t.Context(), d, desc); len(ps) != 1 || !ps[0].passing {
			t.Errorf("%s: %+v, which is not passing", name, ps)
		}
		if err := errors.Join(d.current.close(), desc.close()); err != nil {
			t.Error(err)
		}
	}
}
