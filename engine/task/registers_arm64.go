//go:build linux

package task

import (
	core_aarch64 "github.com/checkpoint-restore/go-criu/v8/crit/images/core-aarch64"
	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"google.golang.org/protobuf/proto"

	"migrate/arch"
	"migrate/engine/images/imagespb"
)

const goarch = "arm64"

func machine() criu_core.CoreEntryMarch { return criu_core.CoreEntry_AARCH64 }

// restartCall is the number of restart_syscall(2).
const restartCall = 128

// Numbers of the calls that leave a restart block behind. There is no poll(2).
const (
	sysNanosleep      = 101
	sysClockNanosleep = 115
	sysPoll           = -2
	sysFutex          = 98
)

// describeRegisters fills CRIU's own record of the registers, which serves its tools; the restore uses the raw
// register sets of the thread's extra message.
func describeRegisters(core *criu_core.CoreEntry, _ *imagespb.ThreadExtra, r arch.Regs, _ []byte) {
	core.TiAarch64 = &core_aarch64.ThreadInfoAarch64{
		ClearTidAddr: proto.Uint64(0), Tls: proto.Uint64(0),
		Gpregs: &core_aarch64.UserAarch64RegsEntry{
			Regs: r.X[:], Sp: proto.Uint64(r.Sp), Pc: proto.Uint64(r.Pc), Pstate: proto.Uint64(r.Pstate),
		},
		Fpsimd: &core_aarch64.UserAarch64FpsimdContextEntry{Fpsr: proto.Uint32(0), Fpcr: proto.Uint32(0)},
	}
}

// setClearTID puts the address into CRIU's record.
func setClearTID(core *criu_core.CoreEntry, addr uint64) {
	core.TiAarch64.ClearTidAddr = proto.Uint64(addr)
}

// setCall puts back what the regset does not hold.
func setCall(r *arch.Regs, e *imagespb.ThreadExtra) {
	if e.GetSawSyscall() {
		r.Nr = e.GetSyscallNr()
	}
}

// callNumber is the number of the call that registers made by WithCall are about to make.
func callNumber(r arch.Regs) int { return int(r.X[8]) }

// vforkCalls are those in which a parent may wait for its child: clone, clone3.
var vforkCalls = []int{220, 435}
