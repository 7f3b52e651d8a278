//go:build linux

package task

import (
	"encoding/binary"

	core_x86 "github.com/checkpoint-restore/go-criu/v8/crit/images/core-x86"
	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"google.golang.org/protobuf/proto"

	"migrate/arch"
	"migrate/engine/images/imagespb"
)

const goarch = "amd64"

func machine() criu_core.CoreEntryMarch { return criu_core.CoreEntry_X86_64 }

// restartCall is the number of restart_syscall(2).
const restartCall = 219

// Numbers of the calls that leave a restart block behind.
const (
	sysNanosleep      = 35
	sysClockNanosleep = 230
	sysPoll           = 7
	sysFutex          = 202
)

// vforkCalls are those in which a parent may wait for its child: vfork, clone, clone3.
var vforkCalls = []int{58, 56, 435}

// minXSave is the legacy part of the xsave area and its header (Intel SDM volume 1, 13.4).
const minXSave = 512 + 64

// describeRegisters fills CRIU's own record of the registers, which serves its tools; the restore uses the raw
// register sets of the thread's extra message.
func describeRegisters(core *criu_core.CoreEntry, extra *imagespb.ThreadExtra, r arch.Regs, xstate []byte) {
	u := func(v uint64) *uint64 { return proto.Uint64(v) }
	info := &core_x86.ThreadInfoX86{
		ClearTidAddr: u(0),
		Gpregs: &core_x86.UserX86RegsEntry{
			R15: u(r.R15), R14: u(r.R14), R13: u(r.R13), R12: u(r.R12), Bp: u(r.Rbp), Bx: u(r.Rbx), R11: u(r.R11), R10: u(r.R10),
			R9: u(r.R9), R8: u(r.R8), Ax: u(r.Rax), Cx: u(r.Rcx), Dx: u(r.Rdx), Si: u(r.Rsi), Di: u(r.Rdi), OrigAx: u(r.OrigRax),
			Ip: u(r.Rip), Cs: u(r.Cs), Flags: u(r.Eflags), Sp: u(r.Rsp), Ss: u(r.Ss), FsBase: u(r.FsBase), GsBase: u(r.GsBase),
			Ds: u(r.Ds), Es: u(r.Es), Fs: u(r.Fs), Gs: u(r.Gs), Mode: core_x86.UserX86RegsMode_NATIVE.Enum(),
		},
		Fpregs: &core_x86.UserX86FpregsEntry{},
	}
	x := xstate
	if len(x) < minXSave {
		x = make([]byte, minXSave)
	}
	le := binary.LittleEndian
	f := info.Fpregs
	f.Cwd, f.Swd, f.Twd = proto.Uint32(uint32(le.Uint16(x))), proto.Uint32(uint32(le.Uint16(x[2:]))), proto.Uint32(uint32(le.Uint16(x[4:])))
	f.Fop, f.Rip, f.Rdp = proto.Uint32(uint32(le.Uint16(x[6:]))), u(le.Uint64(x[8:])), u(le.Uint64(x[16:]))
	f.Mxcsr, f.MxcsrMask = proto.Uint32(le.Uint32(x[24:])), proto.Uint32(le.Uint32(x[28:]))
	for i := 32; i < 160; i += 4 {
		f.StSpace = append(f.StSpace, le.Uint32(x[i:]))
	}
	for i := 160; i < 416; i += 4 {
		f.XmmSpace = append(f.XmmSpace, le.Uint32(x[i:]))
	}
	f.Xsave = &core_x86.UserX86XsaveEntry{XstateBv: u(le.Uint64(x[512:]))}
	core.ThreadInfo = info
	// The kernel leaves XCR0, the features of the processor that are in use, in the area's software-reserved part.
	extra.Xfeatures = le.Uint64(x[464:])
}

// setClearTID puts the address into CRIU's record.
func setClearTID(core *criu_core.CoreEntry, addr uint64) {
	core.ThreadInfo.ClearTidAddr = proto.Uint64(addr)
}

// setCall puts back what the regset does not hold.
func setCall(*arch.Regs, *imagespb.ThreadExtra) {}

// callNumber is the number of the call that registers made by WithCall are about to make.
func callNumber(r arch.Regs) int { return int(r.Rax) }
