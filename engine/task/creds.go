//go:build linux

package task

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/creds"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/rseq"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/userns"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine/ns"
	"migrate/engine/procfs"
	"migrate/engine/remote"
)

// Securebits (include/uapi/linux/securebits.h).
const secureNoSetuidFixup = 1 << 2

func rseqMessage(addr uint64, size, sig uint32, cs uint64) *rseq.RseqEntry {
	return &rseq.RseqEntry{RseqAbiPointer: proto.Uint64(addr), RseqAbiSize: proto.Uint32(size), Signature: proto.Uint32(sig), RseqCsPointer: proto.Uint64(cs)}
}

func words(s procfs.Set) []uint32 { return []uint32{uint32(s), uint32(s >> 32)} }

func capSet(w []uint32) uint64 {
	var v uint64
	for i, x := range w {
		if i < 2 {
			v |= uint64(x) << (32 * i)
		}
	}
	return v
}

// dumpCreds reads ids and capabilities from /proc; only securebits and the parent-death signal need the thread, or the
// kernel. Most threads share their credentials with the leader.
func dumpCreds(d *dumper) error {
	if lead := d.common.leader; d.kernel != nil && !d.leader && lead.kernel != nil && d.kernel.Cred == lead.kernel.Cred {
		c := proto.CloneOf(lead.thread.Core.ThreadCore.Creds)
		c.NoNewPrivs = nil
		if d.kernel.NoNewPrivs {
			c.NoNewPrivs = proto.Uint32(1)
		}
		d.thread.Core.ThreadCore.Creds, d.thread.Core.ThreadCore.PdeathSig = c, proto.Uint32(d.kernel.DeathSignal)
		return nil
	}
	s, err := d.FS.ThreadStatus(d.Proc.PID, d.tid())
	if err != nil {
		return err
	}
	if err := d.idsInside(s); err != nil {
		return err
	}
	u := proto.Uint32
	c := &creds.CredsEntry{
		Uid: u(s.UID[0]), Euid: u(s.UID[1]), Suid: u(s.UID[2]), Fsuid: u(s.UID[3]),
		Gid: u(s.GID[0]), Egid: u(s.GID[1]), Sgid: u(s.GID[2]), Fsgid: u(s.GID[3]), Groups: s.Groups,
		CapInh: words(s.CapInh), CapPrm: words(s.CapPrm), CapEff: words(s.CapEff), CapBnd: words(s.CapBnd), CapAmb: words(s.CapAmb),
	}
	if s.NoNewPrivs {
		c.NoNewPrivs = u(1)
	}
	tc := d.thread.Core.ThreadCore
	tc.Creds = c
	set := func(bits, death uint32, keyrings bool) error {
		c.Secbits, tc.PdeathSig = u(bits), u(death)
		if keyrings {
			return fmt.Errorf("it has a keyring of its own: %w", ErrNotCarried)
		}
		return nil
	}
	if k := d.kernel; k != nil {
		if err := d.dumpSessionKeyring(); err != nil {
			return err
		}
		return set(k.SecureBits, k.DeathSignal, k.Keyrings)
	}
	bits := d.batch.Call(unix.SYS_PRCTL, unix.PR_GET_SECUREBITS, 0, 0, 0, 0)
	death := d.batch.Buffer(4)
	d.batch.Call(unix.SYS_PRCTL, unix.PR_GET_PDEATHSIG, death, 0, 0, 0)
	// Special keys are those of KEYCTL_GET_KEYRING_ID (keyctl(2)): -1 the thread's, -2 the process's keyring.
	threadKeys := d.batch.Try(unix.SYS_KEYCTL, unix.KEYCTL_GET_KEYRING_ID, -1, 0)
	processKeys := d.batch.Try(unix.SYS_KEYCTL, unix.KEYCTL_GET_KEYRING_ID, -2, 0)
	d.then(func() error {
		v, err := bits.Value()
		if err != nil {
			return err
		}
		return set(uint32(v), binary.LittleEndian.Uint32(death.Bytes()), threadKeys.Err() == nil || processKeys.Err() == nil)
	})
	return nil
}

// idsInside makes the ids those that the tree's user namespace has for them. What a thread has that is not mapped there
// it could never get again.
func (d *dumper) idsInside(s *procfs.Status) error {
	if d.User == nil {
		return nil
	}
	translate := func(what string, m []*userns.UidGidExtent, ids []uint32) error {
		for i, id := range ids {
			inside, ok := ns.IDInside(m, id)
			if !ok {
				return fmt.Errorf("its %s id %d is not mapped in its user namespace: %w", what, id, ErrNotCarried)
			}
			ids[i] = inside
		}
		return nil
	}
	return errors.Join(translate("user", d.User.GetUidMap(), s.UID[:]), translate("group", d.User.GetGidMap(), s.GID[:]),
		translate("supplementary group", d.User.GetGidMap(), s.Groups))
}

// restoreCreds sets everything in one run of calls. With SECBIT_NO_SETUID_FIXUP the ids change without taking
// capabilities along; inheritable ones are set while the bounding set still holds them; ambient ones need them
// inheritable and permitted; securebits need CAP_SETPCAP, so the permitted set is cut down last. All of it is for
// this thread alone, as the calls of the kernel are.
func restoreCreds(r *restorer) error {
	c := r.core().GetCreds()
	b := r.batch
	step := func(what string, nr int, args ...any) { r.require(b.Try(nr, args...), "%s", what) }
	have := r.known
	inh, prm, eff, bnd := capSet(c.GetCapInh()), capSet(c.GetCapPrm()), capSet(c.GetCapEff()), capSet(c.GetCapBnd())
	if lost := prm &^ have.permitted; lost != 0 {
		return fmt.Errorf("capabilities 0x%x are permitted to it and missing from this host's root", lost)
	}
	step("SECBIT_NO_SETUID_FIXUP", unix.SYS_PRCTL, unix.PR_SET_SECUREBITS, secureNoSetuidFixup, 0, 0, 0)
	groups := make([]byte, 0, 4*len(c.GetGroups()))
	for _, g := range c.GetGroups() {
		groups = binary.LittleEndian.AppendUint32(groups, g)
	}
	if r.Header.GetNamespaces().GetSetgroupsDenied() {
		if len(groups) > 0 {
			return errors.New("it has supplementary groups, which its user namespace denies it (setgroups)")
		}
	} else {
		step("supplementary groups", unix.SYS_SETGROUPS, len(c.GetGroups()), b.Bytes(groups))
	}
	step("group ids", unix.SYS_SETRESGID, c.GetGid(), c.GetEgid(), c.GetSgid())
	step("user ids", unix.SYS_SETRESUID, c.GetUid(), c.GetEuid(), c.GetSuid())
	// These two report no error; checkCreds asks for the result.
	b.Try(unix.SYS_SETFSGID, c.GetFsgid())
	b.Try(unix.SYS_SETFSUID, c.GetFsuid())
	step("inheritable capabilities", unix.SYS_CAPSET, b.Bytes(capHeader()), b.Bytes(capData(have.permitted, have.permitted, inh)))
	b.Try(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	for n, amb := 0, capSet(c.GetCapAmb()); n < 64; n++ {
		if amb>>n&1 != 0 {
			step(fmt.Sprintf("ambient capability %d", n), unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, n, 0, 0)
		}
		if have.bounding>>n&1 != 0 && bnd>>n&1 == 0 {
			step(fmt.Sprintf("bounding set less capability %d", n), unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, n, 0, 0, 0)
		}
	}
	step("securebits", unix.SYS_PRCTL, unix.PR_SET_SECUREBITS, c.GetSecbits(), 0, 0, 0)
	step("capabilities", unix.SYS_CAPSET, b.Bytes(capHeader()), b.Bytes(capData(eff, prm, inh)))
	if c.GetNoNewPrivs() != 0 {
		step("no_new_privs", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	}
	// Changing credentials has cleared these (kernel/cred.c, commit_creds).
	if sig := r.core().GetPdeathSig(); sig != 0 {
		step("parent-death signal", unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, sig, 0, 0, 0)
	}
	if r.leader {
		// 2 cannot be asked for; it is what the kernel chose when the ids changed, if fs.suid_dumpable says so.
		dumpable := r.Image.MM.GetDumpable()
		if dumpable == 2 {
			dumpable = 0
		}
		step("dumpable flag", unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, dumpable, 0, 0, 0)
	}
	r.checkCreds(c)
	return nil
}

// checkCreds lets the thread say what came out and compares it with what was asked for: a wrong credential must never
// run. The calls that set ambient and bounding capabilities say by themselves whether they did.
func (r *restorer) checkCreds(c *creds.CredsEntry) {
	type check struct {
		name string
		word *remote.Data
		at   int
		want uint32
	}
	var checks []check
	b := r.batch
	ask := func(nr int, names []string, want []uint32) {
		var args []any
		for i, name := range names {
			d := b.Buffer(4)
			args = append(args, d)
			checks = append(checks, check{name, d, 0, want[i]})
		}
		b.Call(nr, args...)
	}
	ask(unix.SYS_GETRESUID, []string{"user id", "effective user id", "saved user id"}, []uint32{c.GetUid(), c.GetEuid(), c.GetSuid()})
	ask(unix.SYS_GETRESGID, []string{"group id", "effective group id", "saved group id"}, []uint32{c.GetGid(), c.GetEgid(), c.GetSgid()})
	caps := b.Buffer(24)
	b.Call(unix.SYS_CAPGET, b.Bytes(capHeader()), caps)
	for i := range 2 {
		checks = append(checks,
			check{"effective capabilities", caps, 12 * i, c.GetCapEff()[i]}, check{"permitted capabilities", caps, 12*i + 4, c.GetCapPrm()[i]},
			check{"inheritable capabilities", caps, 12*i + 8, c.GetCapInh()[i]})
	}
	const keep = 1<<32 - 1 // no id: the call only answers
	fsuid, fsgid := b.Call(unix.SYS_SETFSUID, keep), b.Call(unix.SYS_SETFSGID, keep)
	r.then(func() error {
		for _, x := range checks {
			if got := binary.LittleEndian.Uint32(x.word.Bytes()[x.at:]); got != x.want {
				return fmt.Errorf("credentials: %s: 0x%x instead of 0x%x", x.name, got, x.want)
			}
		}
		if v, err := fsuid.Value(); err != nil || uint32(v) != c.GetFsuid() {
			return fmt.Errorf("credentials: filesystem user id: %d instead of %d, %v", v, c.GetFsuid(), err)
		}
		if v, err := fsgid.Value(); err != nil || uint32(v) != c.GetFsgid() {
			return fmt.Errorf("credentials: filesystem group id: %d instead of %d, %v", v, c.GetFsgid(), err)
		}
		return nil
	})
}

// capHeader is struct __user_cap_header_struct for the calling thread.
func capHeader() []byte {
	b := make([]byte, 8)
	binary.LittleEndian.PutUint32(b, unix.LINUX_CAPABILITY_VERSION_3)
	return b
}

// capData is struct __user_cap_data_struct[2].
func capData(eff, prm, inh uint64) []byte {
	b := make([]byte, 24)
	for i := range 2 {
		for k, v := range []uint64{eff, prm, inh} {
			binary.LittleEndian.PutUint32(b[12*i+4*k:], uint32(v>>(32*i)))
		}
	}
	return b
}
