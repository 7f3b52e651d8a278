package peek

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"migrate/engine/bpf"
)

// A Kernel reads the memory of the running kernel.
type Kernel struct {
	prog int
	base uint64 // the descriptor table of this program: struct files_struct
}

// chunk is how much one run of the program reads at most: what fits on its stack, in words.
const chunk = 448

// The context of the program: an address (0 for that of the current task), a length and then the result, and the data.
const (
	ctxAddr = 0
	ctxLen  = 8
	ctxData = 16
)

// wanted are the structs that this program's users know.
var wanted = []string{
	"task_struct", "files_struct", "fdtable", "file", "dentry", "super_block",
	"socket", "sock", "sk_buff", "skb_shared_info", "unix_skb_parms", "scm_fp_list", "pid",
	"tty_file_private", "tty_struct", "tty_driver", "tty_port", "tty_bufhead", "tty_buffer", "n_tty_data",
	"sem_undo_list", "sem_undo", "mqueue_inode_info",
	"fsnotify_group", "fsnotify_event", "inotify_event_info", "packet_sock", "udp_sock",
	"inode", "fsnotify_mark_connector", "fsnotify_mark", "dnotify_mark", "dnotify_struct",
	"timerfd_ctx", "hrtimer", "hrtimer_clock_base", "alarm",
}

// types never change while the kernel runs.
var types = sync.OnceValues(func() (*bpf.Types, error) { return bpf.Kernel(wanted...) })

// Learn reads what Open needs to know of this kernel. The first time takes some 20 to 50 ms, so call it before there is no time.
func Learn() error {
	_, err := types()
	return err
}

// Open loads the program. An error means that this kernel cannot be read, and why.
func Open() (_ *Kernel, err error) {
	if _, err := types(); err != nil {
		return nil, err
	}
	k := &Kernel{}
	if k.prog, err = bpf.LoadCallable(program()); err != nil {
		return nil, fmt.Errorf("loading a BPF program that reads the kernel (Linux 5.19, CAP_BPF, CAP_PERFMON): %w", err)
	}
	if err := k.findTable(); err != nil {
		return nil, errors.Join(err, k.Close())
	}
	return k, nil
}

// Close unloads the program.
func (k *Kernel) Close() error { return unix.Close(k.prog) }

// program is
//
//	int f(struct { u64 addr, len; u8 data[chunk]; } *ctx) {
//		u8 buf[chunk] = {};
//		if (ctx->addr == 0) { *(u64 *)ctx->data = bpf_get_current_task(); return 0; }
//		if (ctx->len > chunk) return 1;
//		ctx->len = bpf_probe_read_kernel(buf, ctx->len, ctx->addr);
//		memcpy(ctx->data, buf, chunk);
//		return 0;
//	}
func program() []byte {
	const (
		load8, store8, storeImm, mov, movImm, addImm, jneImm, jgtImm, call, exit = 0x79, 0x7b, 0x7a, 0xbf, 0xb7, 0x07, 0x55, 0x25, 0x85, 0x95
		currentTask, probeRead                                                   = 35, 113 // BPF_FUNC_*
		fp                                                                       = 10
	)
	var p []byte
	emit := func(list ...[]byte) {
		for _, i := range list {
			p = append(p, i...)
		}
	}
	emit(bpf.Insn(mov, 6, 1, 0, 0), bpf.Insn(load8, 3, 6, ctxAddr, 0), bpf.Insn(jneImm, 3, 0, 4, 0),
		bpf.Insn(call, 0, 0, 0, currentTask), bpf.Insn(store8, 6, 0, ctxData, 0), bpf.Insn(movImm, 0, 0, 0, 0), bpf.Insn(exit, 0, 0, 0, 0))
	emit(bpf.Insn(load8, 2, 6, ctxLen, 0), bpf.Insn(movImm, 0, 0, 0, 1), bpf.Insn(jgtImm, 2, 0, 1, chunk), bpf.Insn(jneImm, 2, 0, 1, 0), bpf.Insn(exit, 0, 0, 0, 0))
	for at := int16(0); at < chunk; at += 8 {
		emit(bpf.Insn(storeImm, fp, 0, at-chunk, 0))
	}
	emit(bpf.Insn(mov, 1, fp, 0, 0), bpf.Insn(addImm, 1, 0, 0, -chunk), bpf.Insn(call, 0, 0, 0, probeRead), bpf.Insn(store8, 6, 0, ctxLen, 0))
	for at := int16(0); at < chunk; at += 8 {
		emit(bpf.Insn(load8, 1, fp, at-chunk, 0), bpf.Insn(store8, 6, 1, ctxData+at, 0))
	}
	emit(bpf.Insn(movImm, 0, 0, 0, 0), bpf.Insn(exit, 0, 0, 0, 0))
	return p
}

// findTable finds this program's descriptor table, which all its threads share.
func (k *Kernel) findTable() error {
	ctx := make([]byte, ctxData+chunk)
	if err := bpf.RunCallable(k.prog, ctx); err != nil {
		return fmt.Errorf("running a BPF program: %w", err)
	}
	task, err := k.Load("task_struct", binary.LittleEndian.Uint64(ctx[ctxData:]))
	if err != nil {
		return err
	}
	k.base, err = task.Uint64("files")
	return err
}

// Read copies kernel memory.
func (k *Kernel) Read(addr uint64, buf []byte) error {
	ctx := make([]byte, ctxData+chunk)
	for len(buf) > 0 {
		n := min(len(buf), chunk)
		binary.LittleEndian.PutUint64(ctx[ctxAddr:], addr)
		binary.LittleEndian.PutUint64(ctx[ctxLen:], uint64(n))
		if addr == 0 {
			return errors.New("reading the kernel at address 0")
		}
		if err := bpf.RunCallable(k.prog, ctx); err != nil {
			return fmt.Errorf("running a BPF program: %w", err)
		}
		if e := int64(binary.LittleEndian.Uint64(ctx[ctxLen:])); e != 0 {
			return fmt.Errorf("reading %d bytes of the kernel at 0x%x: %w", n, addr, unix.Errno(-e))
		}
		copy(buf, ctx[ctxData:ctxData+n])
		buf, addr = buf[n:], addr+uint64(n)
	}
	return nil
}

// A View is a copy of a struct of the kernel.
type View struct {
	Addr uint64 // where it stands
	s    *bpf.Struct
	data []byte
}

// Load copies a struct.
func (k *Kernel) Load(structure string, addr uint64) (*View, error) {
	all, err := types()
	if err != nil {
		return nil, err
	}
	s, err := all.Struct(structure)
	if err != nil {
		return nil, err
	}
	v := &View{Addr: addr, s: s, data: make([]byte, s.Size)}
	if err := k.Read(addr, v.data); err != nil {
		return nil, fmt.Errorf("struct %s: %w", structure, err)
	}
	return v, nil
}

// Offset is where a member stands, in bytes from the start of the struct.
func (v *View) Offset(name string) (uint64, error) {
	f, err := v.s.Field(name)
	return uint64(f.Bit / 8), err
}

// OffsetIn is where a member stands in a struct that need not be at hand.
func (*Kernel) OffsetIn(structure, member string) (uint64, error) {
	all, err := types()
	if err != nil {
		return 0, err
	}
	off, err := all.Member(structure, member)
	return uint64(off), err
}

// Bytes is n bytes of a member.
func (v *View) Bytes(name string, n int) ([]byte, error) {
	off, err := v.Offset(name)
	if err != nil {
		return nil, err
	}
	if off+uint64(n) > uint64(len(v.data)) {
		return nil, fmt.Errorf("struct %s: member %s has fewer than %d bytes", v.s.Name, name, n)
	}
	return v.data[off : off+uint64(n)], nil
}

// Uint64 is a member of 64 bits, such as a pointer.
func (v *View) Uint64(name string) (uint64, error) {
	b, err := v.Bytes(name, 8)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b), nil
}

// Uint32 is a member of 32 bits.
func (v *View) Uint32(name string) (uint32, error) {
	b, err := v.Bytes(name, 4)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(b), nil
}

// Bool is whether a member of one byte, or a bit field in one, is not zero.
func (v *View) Bool(name string) (bool, error) {
	b, err := v.Bytes(name, 1)
	if err != nil {
		return false, err
	}
	if f, err := v.s.Field(name); err == nil && f.Bits > 0 {
		return b[0]>>(f.Bit%8)&(1<<f.Bits-1) != 0, nil
	}
	return b[0] != 0, nil
}

// Follow copies the struct to which a member of another one points.
func (k *Kernel) Follow(v *View, member, structure string) (*View, error) {
	p, err := v.Uint64(member)
	if err != nil {
		return nil, err
	}
	return k.Load(structure, p)
}

// File is the struct file behind a descriptor of this program.
func (k *Kernel) File(fd int) (*View, error) {
	files, err := k.Load("files_struct", k.base)
	if err != nil {
		return nil, err
	}
	table, err := k.Follow(files, "fdt", "fdtable")
	if err != nil {
		return nil, err
	}
	array, err := table.Uint64("fd")
	if err != nil {
		return nil, err
	}
	if limit, err := table.Uint32("max_fds"); err != nil || fd < 0 || uint32(fd) >= limit {
		return nil, fmt.Errorf("descriptor %d is not in the table (%w)", fd, errors.Join(err, unix.EBADF))
	}
	var p [8]byte
	if err := k.Read(array+8*uint64(fd), p[:]); err != nil {
		return nil, err
	}
	return k.Load("file", binary.LittleEndian.Uint64(p[:]))
}
