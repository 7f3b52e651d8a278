//go:build linux

package mem

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"migrate/engine/kernel"
	"migrate/engine/procfs"
)

// The five ways in which writes get lost, each with a real program.

// A scan that meets a mapping which is not registered has protected what it walked before it fails.
func TestLossByFailedScan(t *testing.T) {
	p := startTarget(t)
	p.anon(arena, 1<<20)
	p.fill(arena, 1<<20, 1)
	r := newReplica(p, p.userfault)
	r.round()
	r.round()
	p.stamp(arena, 64*PageSize, 2)
	p.anon(arena+512<<10, 64<<10) // between the layout and the scan
	p.stamp(arena+512<<10, PageSize, 3)
	// The mappings that the source believes in are those of the round before.
	if stats := r.send(r.source.Round); stats.Pages+stats.ZeroPages < 64 {
		t.Errorf("%+v", stats)
	}
	p.stamp(arena+100*PageSize, PageSize, 4)
	if err := r.sameAs(arena, 64*PageSize); err != nil {
		t.Error(err)
	}
	r.final()
}

// Memory that is new, moved or grown is not registered.
func TestLossInNewMappings(t *testing.T) {
	p := startTarget(t)
	p.anon(arena, 1<<20)
	p.fill(arena, 1<<20, 1)
	r := newReplica(p, p.userfault)
	brk := p.do(order{Op: "call", NR: unix.SYS_BRK})
	p.do(order{Op: "call", NR: unix.SYS_BRK, Args: [6]uintptr{uintptr(brk) + 1<<20}})
	p.do(order{Op: "mmap", Addr: arena + 64<<20, Size: 64 << 10, Prot: rw, Flags: anon | unix.MAP_GROWSDOWN})
	p.stamp(arena+64<<20, 64<<10, 2)
	r.round()
	r.round()
	p.anon(arena, 64<<10) // in the place of what was there
	p.stamp(arena+PageSize, PageSize, 3)
	p.do(order{Op: "mremap", Addr: arena + 128<<10, Size: 128 << 10, NewSize: 256 << 10, To: arena + 16<<20})
	p.stamp(arena+16<<20+200<<10, PageSize, 4)
	p.do(order{Op: "call", NR: unix.SYS_BRK, Args: [6]uintptr{uintptr(brk) + 3<<20}})
	p.stamp((brk+PageSize)&^(PageSize-1), 2<<20, 5)
	p.stamp(arena+64<<20-8*PageSize, 8*PageSize, 6) // grows downwards
	p.do(order{Op: "mremap", Addr: arena + 512<<10, Size: 512 << 10, NewSize: 1 << 20})
	p.stamp(arena+1<<20, 512<<10, 7)
	r.send(r.source.Round) // with the layout of before: what is gone must do no harm
	r.round()
	child := p.do(order{Op: "fork"})
	defer unix.Kill(int(child), unix.SIGKILL)
	p.stamp(arena, 32*PageSize, 8)
	r.round()
	p.stamp(arena+PageSize, PageSize, 9)
	r.final()
	copied := &target{TB: t, process: int(child)}
	forked := newReplica(copied, copied.userfault)
	forked.round()
	forked.final()
}

// Writes to shared memory by way of another mapping or a descriptor are not seen by any tracker.
func TestLossInSharedMemory(t *testing.T) {
	p := startTarget(t)
	const shared = unix.MAP_SHARED | unix.MAP_ANONYMOUS | unix.MAP_FIXED
	p.do(order{Op: "mmap", Addr: arena, Size: 4 << 20, Prot: rw, Flags: shared})
	p.fill(arena, 1<<20, 1)
	r := newReplica(p, p.userfault)
	first := r.round()
	if second := r.round(); second.Pages > first.Pages/2 {
		t.Errorf("%d of %d pages were sent again though nothing changed", second.Pages, first.Pages)
	}
	f, err := reopen(r.objects.list[0].file, unix.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	page := bytes.Repeat([]byte{7}, PageSize)
	if _, err := f.WriteAt(page, 8*PageSize); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(page, 2<<20); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4*PageSize); err != nil {
		t.Fatal(err)
	}
	r.final()
	if err := r.sameAs(arena, 4<<20); err != nil {
		t.Error(err)
	}
	child := int(p.do(order{Op: "fork"}))
	defer unix.Kill(child, unix.SIGKILL)
	copied := r.trap.PID()
	for _, in := range [][]int{{p.pid()}, {p.pid(), child}} {
		out, err := r.objects.Outside(testContext(t), func(pid int) bool { return slices.Contains(in, pid) || pid == copied })
		if want := 2 - len(in); err != nil || len(out) != want || want == 1 && out[0].PID != child {
			t.Errorf("outside of %v: %v, %v", in, out, err)
		}
	}
	if a, b := r.objects.Sum(), r.shared[1].Sum(); a != b {
		t.Errorf("the hash of the object is %v, of its copy %v", a, b)
	}
}

// Memory that the program gave back is written without being present.
func TestLossOfDiscardedPages(t *testing.T) {
	p := startTarget(t)
	p.anon(arena, 4<<20)
	p.fill(arena, 4<<20, 1)
	r := newReplica(p, p.userfault)
	r.round()
	r.round()
	p.do(order{Op: "madvise", Addr: arena + 1<<20, Size: 1 << 20, Advice: unix.MADV_DONTNEED})
	stats := r.round()
	if stats.ZeroPages != 256 {
		t.Errorf("256 pages were given back, %d sent as zero", stats.ZeroPages)
	}
	p.do(order{Op: "madvise", Addr: arena, Size: 64 << 10, Advice: unix.MADV_DONTNEED})
	p.stamp(arena+PageSize, PageSize, 2)
	p.do(order{Op: "madvise", Addr: arena + 3<<20, Size: 64 << 10, Advice: unix.MADV_FREE})
	r.final()
	if again := r.final(); again.ZeroPages != 0 {
		t.Errorf("%d pages were sent as zero again", again.ZeroPages)
	}
}

// In a private mapping of a file the protection outlives the page.
func TestLossOfDiscardedFilePages(t *testing.T) {
	p := startTarget(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, bytes.Repeat([]byte("file"), 1<<18), 0o600); err != nil {
		t.Fatal(err)
	}
	p.do(order{Op: "mmap", Addr: arena, Size: 1 << 20, Prot: rw, Flags: unix.MAP_PRIVATE | unix.MAP_FIXED, File: file})
	p.stamp(arena, 64*PageSize, 1)
	r := newReplica(p, p.userfault)
	first := r.round()
	r.round()
	p.do(order{Op: "madvise", Addr: arena, Size: 16 * PageSize, Advice: unix.MADV_DONTNEED})
	p.do(order{Op: "madvise", Addr: arena + 32*PageSize, Size: 16 * PageSize, Advice: unix.MADV_DONTNEED})
	p.stamp(arena+47*PageSize, 2*PageSize, 2) // and a fault maps what is around
	if second := r.round(); second.Pages < 32 || second.Pages > first.Pages {
		t.Errorf("first %+v, then %+v", first, second)
	}
	if third := r.final(); third.Pages > 32 {
		t.Errorf("at last %+v", third)
	}
}

// Asking for written pages where none ever was would fill page tables with markers.
func TestReservationCostsNothing(t *testing.T) {
	p := startTarget(t)
	const size = 64 << 30
	p.do(order{Op: "mmap", Addr: arena, Size: size, Prot: unix.PROT_NONE, Flags: anon | unix.MAP_NORESERVE})
	p.do(order{Op: "mprotect", Addr: arena + 5<<30, Size: 4 << 20, Prot: rw})
	p.stamp(arena+5<<30, 64<<10, 1)
	r := newReplica(p, p.userfault)
	tables := func(pid int) uint64 {
		st, err := procfs.Host.Status(pid)
		if err != nil {
			t.Fatal(err)
		}
		return st.VMPTE
	}
	before := tables(p.pid())
	least := time.Hour
	for i := range uint64(3) {
		p.stamp(arena+5<<30+i*PageSize, PageSize, i)
		least = min(least, r.round().ScanDuration)
	}
	p.do(order{Op: "mprotect", Addr: arena, Size: size, Prot: unix.PROT_NONE})
	least = min(least, r.final().ScanDuration)
	if least > 50*time.Millisecond { // one question for written pages in all of it takes eight times as long, a busy machine makes some longer
		t.Errorf("the shortest scan of four took %v", least)
	}
	if grown := tables(p.pid()) - before; grown > 1<<20 {
		t.Errorf("page tables grew by %d bytes", grown)
	}
	if got := tables(r.trap.PID()); got > 2<<20 {
		t.Errorf("the copy's page tables take %d bytes", got)
	}
}

// A tracker that compares hashes sees what is written behind the back of the page tables.
func TestHashesSeeEverything(t *testing.T) {
	p := startTarget(t)
	p.anon(arena, 4<<20)
	p.fill(arena, 2<<20, 1)
	r := newReplica(p, p.comparing)
	r.round()
	p.stamp(arena+PageSize, PageSize, 2)
	p.do(order{Op: "madvise", Addr: arena + 1<<20, Size: 64 << 10, Advice: unix.MADV_DONTNEED})
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, bytes.Repeat([]byte("file"), 1<<18), 0o600); err != nil {
		t.Fatal(err)
	}
	p.do(order{Op: "mmap", Addr: arena + 2<<20, Size: 1 << 20, Prot: rw, Flags: unix.MAP_PRIVATE | unix.MAP_FIXED, File: file})
	p.stamp(arena+2<<20+64<<10, 4*PageSize, 3)
	if stats := r.round(); stats.ZeroPages != 16 {
		t.Errorf("%+v", stats)
	}
	r.final()
}

// An exec replaces all that was tracked.
func TestExecStartsAnew(t *testing.T) {
	p := startTarget(t)
	p.anon(arena, 1<<20)
	p.fill(arena, 1<<20, 1)
	r := newReplica(p, p.userfault)
	r.round()
	u := r.source.tracker.(*userfault)
	if err := uffdAlive(int(u.fd.Fd())); err != nil {
		t.Fatal(err)
	}
	// A first thread that is a zombie says nothing of the others, which keep the memory: a pidfd tells when the last has ended.
	pidfd, err := unix.PidfdOpen(p.pid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(pidfd) }()
	if err := unix.Kill(p.pid(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 10_000); n != 1 {
		t.Fatalf("the killed program has not ended: %v", err)
	}
	if _, err := u.Collect(testContext(t), r.source.areas(), r.source.sent); !errors.Is(err, ErrReplaced) {
		t.Errorf("after the end of the program: %v", err)
	}
}

// TestSoftDirty does what the userfaultfd's tests do, by soft-dirty bits.
func TestSoftDirty(t *testing.T) {
	if !kernel.SoftDirty.Have() {
		t.Skip("this kernel has no soft-dirty bits; TestSoftDirtyOnDebianKernel runs this test on one that has")
	}
	p := startTarget(t)
	p.anon(arena, 4<<20)
	p.fill(arena, 4<<20, 1)
	r := newReplica(p, p.softDirtyBits)
	first := r.round()
	p.stamp(arena+PageSize, 4*PageSize, 2)
	p.do(order{Op: "madvise", Addr: arena + 1<<20, Size: 64 << 10, Advice: unix.MADV_DONTNEED})
	if stats := r.round(); stats.Pages < 4 || stats.Pages > first.Pages/2 || stats.ZeroPages < 16 {
		t.Errorf("first %+v, then %+v", first, stats)
	}
	p.anon(arena+2<<20, 64<<10)
	p.stamp(arena+2<<20, PageSize, 3)
	p.do(order{Op: "mremap", Addr: arena + 3<<20, Size: 64 << 10, NewSize: 128 << 10, To: arena + 16<<20})
	r.final()
}
