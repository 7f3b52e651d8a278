package arch

import (
	"bytes"
	"testing"
	"time"
)

func TestServerGivesBack(t *testing.T) {
	const at = 0x7fff0000
	r := AMD64Regs{R15: 15, R14: 14, R13: 13, R12: 12, Rbp: 1, Rbx: 2, R11: 11, R10: 10, R9: 9, R8: 8, Rcx: 3, Rdx: 4,
		Rsi: 5, Rdi: 6, Eflags: 0x246, Rsp: 0x1000, Rip: 0x5000, Cs: amd64Cs64}
	r.OrigRax = 0
	r.SetReturn(erestartsys) // read
	b, entry, err := NewServer(at, ServerParams{Regs: r, Mask: 0x55, TID: 77, Lease: 1500 * time.Millisecond, Memory: 8192})
	if err != nil {
		t.Fatal(err)
	}
	if entry.Rip != at || entry.SyscallNr() != -1 || entry.Rsp != r.Rsp {
		t.Errorf("entered with %+v", entry)
	}
	inside := entry
	inside.R12, inside.R13, inside.Rcx, inside.Eflags = 1, 2, 3, 4
	for name, tt := range map[string]struct {
		r12  uint64
		want AMD64Regs
	}{
		"again": {at + uint64(len(serverCode())) + serverEndings, r.Restarted()},
		"ended": {at + uint64(len(serverCode())) + serverEndings + endingSize, r.Interrupted()},
	} {
		inside.R12 = tt.r12
		if got, mask := ServerProgram(b, at, inside); got != tt.want || mask != 0x55 {
			t.Errorf("%s: %+v, mask %#x", name, got, mask)
		}
	}
	memory := append(append(make([]byte, 100), b...), make([]byte, 50)...)
	if f := FindServers(memory); len(f) != 1 || f[0].Offset != 100 || f[0].TID != 77 {
		t.Errorf("found %+v", f)
	}
	if f := FindServers(memory[:len(memory)-60]); len(f) != 0 {
		t.Errorf("found %+v in part of it", f)
	}
}

func TestServerPhases(t *testing.T) {
	if n := bytes.Count(serverCode(), []byte{popf}); n != 1 {
		t.Fatalf("%d bytes of the server look like its POPFQ", n)
	}
	const at = 0x1000
	calls := 0
	for off := FindSyscall(serverCode()); off >= 0; calls++ {
		behind := uint64(at + off + SyscallSize) // where a thread is while it makes this call
		want := PhaseServing
		if calls < 2 {
			want = PhaseEntering // rt_sigprocmask, mmap
		}
		next := FindSyscall(serverCode()[off+2:])
		if next < 0 || FindSyscall(serverCode()[off+2+next+2:]) < 0 {
			want = PhaseLeft // munmap, rt_sigprocmask
		}
		if got := ServerPhase(at, Regs{Rip: behind}); got != want {
			t.Errorf("in call %d, at %#x, the phase is %d, want %d", calls, off, got, want)
		}
		if next < 0 {
			break
		}
		off += 2 + next
	}
	if calls != 13 {
		t.Errorf("the server makes %d calls", calls)
	}
	if ServerPhase(at, Regs{Rip: at - 1}) != PhaseOutside || ServerPhase(at, Regs{Rip: at + uint64(ServerSize())}) != PhaseOutside {
		t.Error("the server reaches beyond itself")
	}
}

func FuzzServerProgram(f *testing.F) {
	f.Add([]byte{1}, uint64(0x1000), uint64(0x1100))
	f.Fuzz(func(t *testing.T, data []byte, at, ip uint64) {
		b := make([]byte, ServerSize())
		copy(b, serverCode())
		copy(b[len(serverCode()):], data)
		ServerProgram(b, at, Regs{Rip: ip})
		FindServers(b)
	})
}
