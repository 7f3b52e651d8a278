//go:build linux

package mem

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"migrate/arch"
	"migrate/engine/kernel"
	"migrate/engine/kernel/kerneltest"
	"migrate/engine/ptrace"
	"migrate/engine/remote"
)

const targetEnv = "MIGRATE_MEM_TARGET"

func TestMain(m *testing.M) {
	if os.Getenv(targetEnv) != "" {
		targetMain()
		return
	}
	if os.Getpid() == 1 && os.Getenv(machineEnv) != "" {
		machineMain(m)
	}
	os.Exit(m.Run())
}

// order is one thing that the target does.
type order struct {
	Op         string // mmap, munmap, mremap, mprotect, madvise, fill, stamp, call, echo
	Addr, Size uint64
	To         uint64 // mremap: where to, or 0
	NewSize    uint64
	Prot       int
	Flags      int
	Advice     int
	File       string
	Off        uint64
	Seed       uint64
	Stride     uint64
	NR         uintptr
	Args       [6]uintptr
}

type answer struct {
	Value uint64
	Err   string
}

// targetMain obeys orders from standard input until it ends.
func targetMain() {
	in, out := bufio.NewScanner(os.Stdin), json.NewEncoder(os.Stdout)
	for in.Scan() {
		var o order
		var a answer
		err := json.Unmarshal(in.Bytes(), &o)
		if err == nil {
			a.Value, err = obey(o)
		}
		if err != nil {
			a.Err = err.Error()
		}
		if out.Encode(a) != nil {
			return
		}
	}
}

func obey(o order) (uint64, error) {
	call := func(nr uintptr, args ...uintptr) (uint64, error) {
		var a [6]uintptr
		copy(a[:], args)
		v, _, errno := unix.Syscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
		if errno != 0 {
			return 0, fmt.Errorf("%s %x+%x: %w", o.Op, o.Addr, o.Size, errno)
		}
		return uint64(v), nil
	}
	at, size := uintptr(o.Addr), uintptr(o.Size)
	switch o.Op {
	case "mmap":
		fd := ^uintptr(0)
		if o.File != "" {
			f, err := os.OpenFile(o.File, os.O_RDWR, 0)
			if err != nil {
				return 0, err
			}
			defer f.Close()
			fd = f.Fd()
		}
		return call(unix.SYS_MMAP, at, size, uintptr(o.Prot), uintptr(o.Flags), fd, uintptr(o.Off))
	case "munmap":
		return call(unix.SYS_MUNMAP, at, size)
	case "mprotect":
		return call(unix.SYS_MPROTECT, at, size, uintptr(o.Prot))
	case "madvise":
		return call(unix.SYS_MADVISE, at, size, uintptr(o.Advice))
	case "mremap":
		flags := uintptr(0)
		if o.To != 0 {
			flags = unix.MREMAP_MAYMOVE | unix.MREMAP_FIXED
		}
		return call(unix.SYS_MREMAP, at, size, uintptr(o.NewSize), flags, uintptr(o.To))
	case "call":
		return call(o.NR, o.Args[:]...)
	case "fill": // every word of every page differs
		words := unsafe.Slice((*uint64)(unsafe.Add(unsafe.Pointer(nil), o.Addr)), o.Size/8)
		for i := range words {
			words[i] = mix(o.Seed + uint64(i))
		}
	case "stamp": // one word of each page
		for p := o.Addr; p < o.Addr+o.Size; p += o.Stride {
			*(*uint64)(unsafe.Add(unsafe.Pointer(nil), p)) = mix(o.Seed + p)
		}
	case "fork": // a child that only waits
		pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		for pid == 0 && errno == 0 {
			unix.RawSyscall(unix.SYS_PPOLL, 0, 0, 0)
		}
		if errno != 0 {
			return 0, errno
		}
		return uint64(pid), nil
	default:
		return 0, errors.ErrUnsupported
	}
	return 0, nil
}

// target is a program whose memory is copied.
type target struct {
	testing.TB
	process int
	still   bool // inside stopped
	in      io.WriteCloser
	out     *json.Decoder
}

func startTarget(t testing.TB) *target {
	t.Helper()
	kerneltest.Root(t)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), targetEnv+"=1", "GOMAXPROCS=1", "GOGC=off")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Process.Kill(); cmd.Wait() })
	return &target{TB: t, process: cmd.Process.Pid, in: in, out: json.NewDecoder(out)}
}

func (p *target) pid() int { return p.process }

// try gives an order and returns what came of it.
func (p *target) try(o order) (uint64, error) {
	p.Helper()
	line, err := json.Marshal(o)
	if err != nil {
		p.Fatal(err)
	}
	if _, err := p.in.Write(append(line, '\n')); err != nil {
		p.Fatal(err)
	}
	var a answer
	if err := p.out.Decode(&a); err != nil {
		p.Fatalf("%+v: the target answered: %v", o, err)
	}
	if a.Err != "" {
		return 0, errors.New(a.Err)
	}
	return a.Value, nil
}

func (p *target) do(o order) uint64 {
	p.Helper()
	v, err := p.try(o)
	if err != nil {
		p.Fatal(err)
	}
	return v
}

const (
	anon = unix.MAP_PRIVATE | unix.MAP_ANONYMOUS | unix.MAP_FIXED
	rw   = unix.PROT_READ | unix.PROT_WRITE
	// arena is where the tests map: no program has anything there.
	arena = 0x400000000000
)

func (p *target) anon(at, size uint64) {
	p.Helper()
	p.do(order{Op: "mmap", Addr: at, Size: size, Prot: rw, Flags: anon})
}
func (p *target) fill(at, size, seed uint64) {
	p.Helper()
	p.do(order{Op: "fill", Addr: at, Size: size, Seed: seed})
}
func (p *target) stamp(at, size, seed uint64) {
	p.Helper()
	p.do(order{Op: "stamp", Addr: at, Size: size, Seed: seed, Stride: PageSize})
}

// userfault, softDirtyBits and comparing make the trackers that there are.
func (p *target) userfault(c remote.Caller) Tracker {
	kerneltest.Feature(p, kernel.UserfaultWP)
	return NewUserfault(c)
}

func (p *target) softDirtyBits(remote.Caller) Tracker {
	kerneltest.Feature(p, kernel.SoftDirty)
	return NewSoftDirty(p.pid(), func(_ context.Context, fn func() error) (err error) {
		if p.still {
			return fn()
		}
		p.stopped(func() { err = fn() })
		return err
	})
}

func (p *target) comparing(remote.Caller) Tracker { return NewHashes(p.pid()) }

// borrow gives fn a Caller in the running target.
func (p *target) borrow(fn func(remote.Caller) error) {
	p.Helper()
	ctx := testContext(p)
	tracer := ptrace.New()
	defer tracer.Close()
	trap, err := remote.InstallStub(ctx, tracer, p.pid(), 0)
	if err != nil {
		p.Fatal(err)
	}
	defer trap.Close()
	err = fn(trap)
	if err := errors.Join(err, trap.Release(ctx), tracer.Detach(ctx, p.pid(), 0)); err != nil {
		p.Fatal(err)
	}
}

// stopped runs fn while all threads of the target are stopped.
func (p *target) stopped(fn func()) {
	p.Helper()
	ctx := testContext(p)
	tracer := ptrace.New()
	defer tracer.Close()
	stops, err := tracer.SeizeAll(ctx, p.pid(), 0)
	if err != nil {
		p.Fatal(err)
	}
	p.still = true
	fn()
	p.still = false
	for _, s := range stops {
		if err := tracer.Detach(ctx, s.TID, 0); err != nil {
			p.Error(err)
		}
	}
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// newSeed starts the process that becomes the copy.
func newSeed(t testing.TB) *remote.Trap {
	t.Helper()
	fd, err := unix.MemfdCreate("seed", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "seed")
	defer f.Close()
	if _, err := f.Write(arch.SeedELF(0x10000)); err != nil {
		t.Fatal(err)
	}
	cmd := &exec.Cmd{Path: fmt.Sprintf("/proc/self/fd/%d", fd), Args: []string{"seed"}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	tracer := ptrace.New()
	t.Cleanup(func() { cmd.Process.Kill(); tracer.Close(); cmd.Wait() })
	trap, err := remote.InstallStub(testContext(t), tracer, cmd.Process.Pid, 0x20000000)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { trap.Close() })
	return trap
}
