//go:build linux

package task

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"migrate/engine/remote"
)

// Of modify_ldt(2).
const (
	ldtRead    = 0
	ldtWrite   = 0x11
	ldtEntries = 8192
	ldtEntry   = 8 // bytes of a descriptor
)

// dumpLDT asks whether there is a local descriptor table at all, and only then for all of it.
func dumpLDT(d *dumper) error {
	some := d.batch.Try(unix.SYS_MODIFY_LDT, ldtRead, d.batch.Buffer(16), 16)
	d.then(func() error {
		if n, err := some.Value(); err != nil || n == 0 { // ENOSYS: this kernel has none
			return nil
		}
		b := &remote.Batch{}
		buf := b.Buffer(ldtEntries * ldtEntry)
		b.Call(unix.SYS_MODIFY_LDT, ldtRead, buf, ldtEntries*ldtEntry)
		if err := d.Caller.Run(d.ctx, b); err != nil {
			return err
		}
		table := bytes.TrimRight(buf.Bytes(), "\x00")
		if n := (len(table) + ldtEntry - 1) / ldtEntry * ldtEntry; n > 0 {
			d.proc.Extra.Ldt = bytes.Clone(buf.Bytes()[:n])
		}
		return nil
	})
	return nil
}

// userDesc turns a descriptor into the struct user_desc that modify_ldt(2) takes (arch/x86/include/asm/desc.h, fill_ldt).
func userDesc(n int, descriptor uint64) []byte {
	lo, hi := uint32(descriptor), uint32(descriptor>>32)
	bit := func(from int, to int) uint32 { return hi >> from & 1 << to }
	flags := bit(22, 0) | hi>>10&3<<1 | (bit(9, 3) ^ 1<<3) | bit(23, 4) | (bit(15, 5) ^ 1<<5) | bit(20, 6) | bit(21, 7)
	var b []byte
	for _, v := range []uint32{uint32(n), lo>>16 | hi&0xff<<16 | hi&0xff000000, lo&0xffff | hi&0xf0000, flags} {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return b
}

// restoreLDT writes the entries. Segment registers come with the others, later.
func restoreLDT(r *restorer) error {
	table := r.Image.Extra.GetLdt()
	if len(table)%ldtEntry != 0 || len(table) > ldtEntries*ldtEntry {
		return fmt.Errorf("a table of %d bytes", len(table))
	}
	for n := 0; n < len(table)/ldtEntry; n++ {
		v := binary.LittleEndian.Uint64(table[n*ldtEntry:])
		if v == 0 {
			continue
		}
		d := userDesc(n, v)
		r.require(r.batch.Try(unix.SYS_MODIFY_LDT, ldtWrite, r.batch.Bytes(d), len(d)), "entry %d (0x%x)", n, v)
		if r.batch.Size() > maxBatch {
			if err := r.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}
