package arch

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"testing"
)

func TestTrapEndsInBreakpoint(t *testing.T) {
	if b := Trap(); len(b) < 32 || len(b) > 512 {
		t.Fatalf("the interpreter has %d bytes", len(b))
	}
	if FindSyscall(Trap()) < 0 {
		t.Fatal("the interpreter makes no system call")
	}
}

func TestELFImages(t *testing.T) {
	for name, image := range map[string][]byte{"seed": SeedELF(0x10000), "init": InitELF()} {
		f, err := elf.NewFile(bytes.NewReader(image))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if len(f.Progs) != 2 || f.Progs[0].Type != elf.PT_LOAD || f.Progs[0].Filesz != uint64(len(image)) {
			t.Errorf("%s: program headers %+v", name, f.Progs[0])
		}
		if f.Entry != f.Progs[0].Vaddr+elfTextOffset {
			t.Errorf("%s: entry %#x", name, f.Entry)
		}
	}
	if FindSyscall(SeedELF(0x10000)) != SeedCode() {
		t.Error("SeedCode is not the system call instruction")
	}
}

func TestAMD64RegsMarshal(t *testing.T) {
	in := make([]byte, AMD64RegsSize)
	for i := range in {
		in[i] = byte(i)
	}
	var r AMD64Regs
	if err := r.Unmarshal(in); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(r.Marshal(), in) {
		t.Error("registers changed on their way")
	}
	if got := binary.LittleEndian.Uint64(in[16*8:]); r.IP() != got {
		t.Errorf("ip %#x, want %#x", r.IP(), got)
	}
	if err := r.Unmarshal(in[:68]); !errors.Is(err, ErrUnsupported) {
		t.Errorf("registers of a 32-bit program: %v", err)
	}
}

func TestAMD64Restart(t *testing.T) {
	neg := func(v int64) uint64 { return uint64(v) }
	tests := []struct {
		name     string
		rax, nr  uint64
		want     Restart
		rip, res uint64 // after Restarted
		intr     int64  // result after Interrupted
	}{
		{"running", 7, neg(-1), RestartNone, 1000, 7, 7},
		{"complete", 7, 1, RestartNone, 1000, 7, 7},
		{"read", neg(-512), 0, RestartSys, 998, 0, -4},
		{"futex lock", neg(-513), 202, RestartAlways, 998, 202, -4},
		{"pause", neg(-514), 34, RestartNoHandler, 998, 34, -4},
		{"nanosleep", neg(-516), 35, RestartBlock, 998, 219, -4},
		{"epoll_wait", neg(-4), 232, RestartSpurious, 998, 232, -4},
		{"close", neg(-4), 3, RestartNone, 1000, neg(-4), -4},
		{"not in a call", neg(-512), neg(-1), RestartNone, 1000, neg(-512), -512},
	}
	for _, tt := range tests {
		r := AMD64Regs{Rip: 1000, Rax: tt.rax, OrigRax: tt.nr}
		if got := r.Restart(); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
		if a := r.Restarted(); a.Rip != tt.rip || a.Rax != tt.res || a.SyscallNr() != -1 {
			t.Errorf("%s: goes on at %d with %d", tt.name, a.Rip, int64(a.Rax))
		}
		if r.Restart() == RestartSpurious && r.Restarted().Unrestarted() != r {
			t.Errorf("%s: %+v undone is %+v", tt.name, r, r.Restarted().Unrestarted())
		}
		if i := r.Interrupted(); i.Rip != 1000 || i.Return() != tt.intr {
			t.Errorf("%s: interrupted at %d with %d", tt.name, i.Rip, i.Return())
		}
	}
}

func TestARM64Restart(t *testing.T) {
	r := ARM64Regs{Pc: 1000, Nr: 101, OrigX0: 5}
	r.SetReturn(erestartRestartblock)
	if a := r.Restarted(); a.Pc != 996 || a.X[8] != arm64RestartSyscall || a.X[0] != 5 {
		t.Errorf("nanosleep goes on at %d with call %d(%d)", a.Pc, a.X[8], a.X[0])
	}
	if a := r.Again(); a.X[8] != 101 {
		t.Errorf("nanosleep is made again as call %d", a.X[8])
	}
}
