//go:build linux

package mem

import (
	"encoding/binary"
	"errors"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"migrate/engine/images"
	"migrate/engine/kernel/kerneltest"
)

func (l *Layout) at(addr uint64) *Mapping {
	for i := range l.Mappings {
		if l.Mappings[i].Start <= addr && addr < l.Mappings[i].End {
			return &l.Mappings[i]
		}
	}
	return nil
}

func TestLayout(t *testing.T) {
	p := startTarget(t)
	file := filepath.Join(t.TempDir(), "a (deleted)") // a name to be confused by
	if err := os.WriteFile(file, make([]byte, 8*PageSize), 0o600); err != nil {
		t.Fatal(err)
	}
	const size = 8 * PageSize
	at := func(i int) uint64 { return arena + uint64(i)<<20 }
	advised := map[int]int{0: unix.MADV_DONTFORK, 1: unix.MADV_WIPEONFORK, 2: unix.MADV_DONTDUMP, 3: unix.MADV_HUGEPAGE, 4: unix.MADV_NOHUGEPAGE,
		5: unix.MADV_SEQUENTIAL, 6: unix.MADV_RANDOM, 7: unix.MADV_MERGEABLE}
	for i, advice := range advised {
		p.anon(at(i), size)
		p.do(order{Op: "madvise", Addr: at(i), Size: size, Advice: advice})
	}
	p.do(order{Op: "mmap", Addr: at(10), Size: size, Prot: rw, Flags: unix.MAP_PRIVATE | unix.MAP_FIXED, File: file})
	p.do(order{Op: "mmap", Addr: at(11), Size: PageSize, Prot: unix.PROT_READ, Flags: unix.MAP_SHARED | unix.MAP_FIXED, File: file, Off: PageSize})
	p.do(order{Op: "mmap", Addr: at(12), Size: size, Prot: rw, Flags: unix.MAP_SHARED | unix.MAP_ANONYMOUS | unix.MAP_FIXED})
	p.do(order{Op: "mmap", Addr: at(13), Size: size, Prot: rw, Flags: anon | unix.MAP_GROWSDOWN})
	p.do(order{Op: "mmap", Addr: at(14), Size: size, Prot: rw, Flags: anon | unix.MAP_NORESERVE})
	p.do(order{Op: "mmap", Addr: at(15), Size: size, Prot: rw, Flags: unix.MAP_PRIVATE | unix.MAP_FIXED, File: "/dev/zero"})
	_, unnamed := p.try(order{Op: "call", NR: unix.SYS_PRCTL, Args: [6]uintptr{0x53564d41, 0, uintptr(at(14)), size, uintptr(p.text("a name"))}})
	objects := NewObjects()
	defer objects.Close()
	reader := NewLayoutReader(p.pid(), objects)
	for _, marks := range []bool{true, false} { // the second time from maps alone
		l, err := reader.Read(marks)
		if err != nil {
			t.Fatal(err)
		}
		if len(l.Obstacles) > 0 {
			t.Fatal(l.Obstacles)
		}
		for i, advice := range advised {
			if m := l.at(at(i)); m == nil || m.Kind != PrivateAnon || m.Marks.Advice != 1<<advice {
				t.Errorf("advice %d: %+v", advice, m)
			}
		}
		if m := l.at(at(10)); m.Kind != PrivateFile || m.File.Path != file || m.File.Size != size || m.Prot != rw {
			t.Errorf("%+v", m)
		}
		if m := l.at(at(11)); m.Kind != SharedFile || m.Offset != PageSize || !m.Marks.MayWrite {
			t.Errorf("%+v", m)
		}
		if m := l.at(at(12)); m.Kind != SharedAnon || m.Object != 1 {
			t.Errorf("%+v", m)
		}
		if m := l.at(at(13)); !m.Marks.GrowsDown || l.at(at(14)).Marks.GrowsDown || !l.at(at(14)).Marks.NoReserve {
			t.Errorf("%+v %+v", m, l.at(at(14)))
		}
		if unnamed == nil && !slices.Contains(l.Names(), NamedRange{Range{at(14), at(14) + size}, "a name"}) {
			t.Errorf("names: %v", l.Names())
		}
		kinds := map[uint32]int{}
		entries, err := l.Entries(func(f *File) (uint32, error) { return 3, nil })
		if err != nil || len(entries) != len(l.Mappings) {
			t.Fatalf("%d of %d: %v", len(entries), len(l.Mappings), err)
		}
		for _, e := range entries {
			kinds[e.GetStatus()&^images.VMARegular]++
		}
		for _, k := range []uint32{images.VMAVDSO | images.VMAAnonPrivate, images.VMAVvar | images.VMAAnonPrivate, images.VMAStack | images.VMAAnonPrivate,
			images.VMAAnonShared, images.VMAFilePrivate, images.VMAFileShared} {
			if kinds[k] == 0 {
				t.Errorf("no mapping of status 0x%x", k)
			}
		}
	}
}

// TestLateMarks changes what a mapping is like between the last look at a running program and the freeze.
func TestLateMarks(t *testing.T) {
	if k, err := kernelFlags(); err != nil || bits.OnesCount64(k.tracked) != 1 {
		t.Fatal(k, err)
	}
	p := startTarget(t)
	p.anon(arena, 8*PageSize)
	objects := NewObjects()
	defer objects.Close()
	reader := NewLayoutReader(p.pid(), objects)
	for _, c := range []struct {
		advice uintptr
		want   uint64
	}{{0, 0}, {unix.MADV_DONTFORK, 1 << adviceDontFork}, {unix.MADV_DOFORK, 0}, {unix.MADV_DONTFORK, 1 << adviceDontFork}} {
		if c.advice != 0 {
			p.do(order{Op: "call", NR: unix.SYS_MADVISE, Args: [6]uintptr{arena, PageSize, c.advice}})
		}
		l, err := reader.Read(false)
		if err != nil {
			t.Fatal(err)
		}
		if got := l.at(arena).Marks.Advice; got != c.want || l.at(arena+PageSize).Marks.Advice != 0 {
			t.Errorf("after advice %d: 0x%x", c.advice, got)
		}
	}
}

// TestLateLocks locks memory between the last look at all marks and the freeze, on a kernel that cannot be asked for flags.
func TestLateLocks(t *testing.T) {
	ask := kernelFlags
	kernelFlags = func() (*flagReader, error) { return nil, errors.ErrUnsupported }
	t.Cleanup(func() { kernelFlags = ask })
	p := startTarget(t)
	p.anon(arena, 8*PageSize)
	objects := NewObjects()
	defer objects.Close()
	reader := NewLayoutReader(p.pid(), objects)
	for _, c := range []struct {
		nr     uintptr
		locked bool
	}{{0, false}, {unix.SYS_MLOCK, true}, {unix.SYS_MUNLOCK, false}} {
		if c.nr != 0 {
			p.do(order{Op: "call", NR: c.nr, Args: [6]uintptr{arena, PageSize}})
		}
		l, err := reader.Read(false)
		if err != nil {
			t.Fatal(err)
		}
		if m := l.at(arena); m.Marks.Locked != c.locked || l.at(arena+PageSize).Marks.Locked {
			t.Errorf("after call %d: %+v", c.nr, m)
		}
	}
}

// TestLayoutRefuses maps what is not carried, each in a program of its own.
func TestLayoutRefuses(t *testing.T) {
	for _, c := range []struct {
		kind string
		make func(t *testing.T, p *target)
	}{
		{"io_uring", func(t *testing.T, p *target) {
			p.anon(arena, PageSize)
			fd, err := p.try(order{Op: "call", NR: unix.SYS_IO_URING_SETUP, Args: [6]uintptr{4, arena}})
			if err != nil {
				kerneltest.Lack(t, "io_uring: "+err.Error())
			}
			for _, offset := range []uintptr{0 /* IORING_OFF_SQ_RING */, 0x10000000 /* IORING_OFF_SQES */} {
				p.do(order{Op: "call", NR: unix.SYS_MMAP, Args: [6]uintptr{0, PageSize / 16, unix.PROT_READ, unix.MAP_SHARED, uintptr(fd), offset}})
			}
		}},
		{"pinned-memory", func(t *testing.T, p *target) {
			p.anon(arena, 64*PageSize)
			fd, err := p.try(order{Op: "call", NR: unix.SYS_IO_URING_SETUP, Args: [6]uintptr{4, arena}})
			if err != nil {
				kerneltest.Lack(t, "io_uring: "+err.Error())
			}
			p.poke(arena+PageSize, arena+2*PageSize, 16*PageSize) // struct iovec
			p.do(order{Op: "call", NR: unix.SYS_IO_URING_REGISTER, Args: [6]uintptr{uintptr(fd), 0 /* IORING_REGISTER_BUFFERS */, arena + PageSize, 1}})
		}},
	} {
		t.Run(c.kind, func(t *testing.T) {
			p := startTarget(t)
			c.make(t, p)
			objects := NewObjects()
			defer objects.Close()
			l, err := NewLayoutReader(p.pid(), objects).Read(true)
			if err != nil {
				t.Fatal(err)
			}
			var kinds []string
			for _, o := range l.Obstacles {
				kinds = append(kinds, o.Kind)
				if o.PID != p.pid() || o.Where == "" || o.Reason == "" {
					t.Errorf("%+v", o)
				}
			}
			if c.kind == "io_uring" && (len(kinds) != 1 || !strings.Contains(l.Obstacles[0].Where, "and 1 more")) {
				t.Errorf("two mappings of one kind: %v", l.Obstacles)
			}
			if !slices.Contains(kinds, c.kind) {
				t.Errorf("refused: %v; want %s", kinds, c.kind)
			}
		})
	}
}

// text places a string in the target.
func (p *target) text(s string) uint64 {
	const at = arena + 1<<40
	p.anon(at, PageSize)
	p.write(at, append([]byte(s), 0))
	return at
}

// poke places words in the target.
func (p *target) poke(at uint64, words ...uint64) {
	var b []byte
	for _, w := range words {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	p.write(at, b)
}

func (p *target) write(at uint64, b []byte) {
	v, err := openView(p.pid())
	if err != nil {
		p.Fatal(err)
	}
	defer v.mem.Close()
	if err := v.write(at, b); err != nil {
		p.Fatal(err)
	}
}
