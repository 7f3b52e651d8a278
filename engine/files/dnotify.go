//go:build linux

package files

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"golang.org/x/sys/unix"

	"migrate/engine"
	"migrate/engine/peek"
)

// What F_NOTIFY asks for of a directory (fcntl(2)) is of a description and of the descriptor table in which it was asked. No system
// call tells it, so it is read from the kernel's memory. It says something to nobody unless the description has an owner of
// signals, which F_NOTIFY itself sets: of others the kernel is not asked.

// dnotifyBlob holds the notifications of a description, each as three words of 4 bytes, little-endian: the process, its descriptor and
// the events (DN_*).
func dnotifyBlob(id uint32) string { return fmt.Sprintf("dnotify-%d", id) }

const dnotifySize = 12

// Events of F_NOTIFY (include/uapi/linux/fcntl.h).
const (
	dnAccess    = 0x1
	dnModify    = 0x2
	dnCreate    = 0x4
	dnDelete    = 0x8
	dnRename    = 0x10
	dnAttrib    = 0x20
	dnMultishot = 0x80000000
)

// maxDnotify bounds the notifications and the marks of one directory that are looked at: a program that runs changes them meanwhile.
const maxDnotify = 1 << 12

// A dnotification is what one descriptor table has asked for.
type dnotification struct {
	table  uint64 // struct files_struct, which means nothing but itself
	fd     int    // that its signal tells
	events uint32 // DN_* of fcntl(2)
}

// Events as the kernel keeps them (include/linux/fsnotify_backend.h) and as fcntl(2) takes them. Where two bits are one event, the first tells.
var dnotifyEvents = []struct{ kernel, asked uint32 }{
	{0x1, dnAccess}, {0x2, dnModify}, {0x4, dnAttrib}, {0x100, dnCreate}, {0x200, dnDelete},
	{0x10000000, dnRename}, {0x20000000, dnMultishot},
}

// dnotifications reads what was asked for of a directory through a description.
func (d *Dumper) dnotifications(desc *description) ([]dnotification, error) {
	if desc.flags&unix.O_PATH != 0 || desc.format() != unix.S_IFDIR {
		return nil, nil
	}
	if o, err := getOwner(desc.fd); err != nil || o.PID == 0 {
		return nil, err
	}
	k, err := d.kernelMemory()
	if err != nil {
		return nil, fmt.Errorf("whether it has asked for F_NOTIFY cannot be seen (%w): %w", err, ErrNotCarried)
	}
	file, err := k.File(desc.fd)
	if err != nil {
		return nil, err
	}
	inode, err := k.Follow(file, "f_inode", "inode")
	if err != nil {
		return nil, err
	}
	if at, err := inode.Uint64("i_fsnotify_marks"); err != nil || at == 0 {
		return nil, err
	}
	group, err := d.dnotifyGroup(k)
	if err != nil {
		return nil, fmt.Errorf("whether it has asked for F_NOTIFY cannot be seen (%w): %w", err, ErrNotCarried)
	}
	mark, err := findMark(k, inode, group)
	if err != nil || mark == nil {
		return nil, err
	}
	var out []dnotification
	at, err := mark.Uint64("dn")
	if err != nil {
		return nil, err
	}
	for n := 0; at != 0; n++ {
		if n == maxDnotify {
			return nil, fmt.Errorf("more than %d descriptors have asked for F_NOTIFY of one directory: %w", maxDnotify, ErrNotCarried)
		}
		dn, err := k.Load("dnotify_struct", at)
		if err != nil {
			return nil, err
		}
		filp, err1 := dn.Uint64("dn_filp")
		table, err2 := dn.Uint64("dn_owner")
		fd, err3 := dn.Uint32("dn_fd")
		mask, err4 := dn.Uint32("dn_mask")
		next, err5 := dn.Uint64("dn_next")
		if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
			return nil, err
		}
		if filp == file.Addr {
			n := dnotification{table: table, fd: int(fd)}
			for _, e := range dnotifyEvents {
				if mask&e.kernel != 0 {
					n.events |= e.asked
				}
			}
			out = append(out, n)
		}
		at = next
	}
	return out, nil
}

// dnotifyGroup is the one group of marks that all F_NOTIFY of the kernel belong to: that of a mark which this program itself makes for a
// moment, on a directory where nothing happens.
func (d *Dumper) dnotifyGroup(k *peek.Kernel) (_ uint64, err error) {
	if d.dnotify != 0 {
		return d.dnotify, nil
	}
	fd, err := unix.Open("/proc/self/net", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }() // and with it the mark
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_NOTIFY, dnRename); err != nil {
		return 0, fmt.Errorf("F_NOTIFY: %w", err)
	}
	file, err := k.File(fd)
	if err != nil {
		return 0, err
	}
	inode, err := k.Follow(file, "f_inode", "inode")
	if err != nil {
		return 0, err
	}
	mark, err := findMark(k, inode, 0)
	if err != nil {
		return 0, err
	}
	if mark == nil {
		return 0, errors.New("a directory with F_NOTIFY has no mark")
	}
	general, err := k.Load("fsnotify_mark", mark.Addr)
	if err != nil {
		return 0, err
	}
	d.dnotify, err = general.Uint64("group")
	return d.dnotify, err
}

// findMark finds the mark of a group on an inode, or the first one of any: struct dnotify_mark (fs/notify/dnotify/dnotify.c).
func findMark(k *peek.Kernel, inode *peek.View, group uint64) (*peek.View, error) {
	connector, err := k.Follow(inode, "i_fsnotify_marks", "fsnotify_mark_connector")
	if err != nil {
		return nil, err
	}
	list, err := k.OffsetIn("fsnotify_mark", "obj_list")
	if err != nil {
		return nil, err
	}
	at, err := connector.Uint64("list")
	if err != nil {
		return nil, err
	}
	for range maxDnotify {
		if at == 0 {
			return nil, nil
		}
		mark, err := k.Load("fsnotify_mark", at-list)
		if err != nil {
			return nil, err
		}
		if g, err := mark.Uint64("group"); err != nil {
			return nil, err
		} else if group == 0 || g == group {
			return k.Load("dnotify_mark", at-list) // which begins with it
		}
		if at, err = mark.Uint64("obj_list"); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("a directory has more than %d marks: %w", maxDnotify, ErrNotCarried)
}

// askers finds the process that stands for each notification. The kernel names descriptor tables, which are nowhere else to be seen, so
// it goes by the number of the descriptor and by the owner of the signals, which is whoever has asked last.
func askers(desc *description, list []dnotification) ([]*engine.Process, error) {
	if len(list) == 0 {
		return nil, nil
	}
	o, err := getOwner(desc.fd)
	if err != nil {
		return nil, err
	}
	var out []*engine.Process
	for _, n := range list {
		var can []*engine.Process
		for _, h := range desc.holders {
			if h.fd == n.fd {
				can = append(can, h.proc)
			}
		}
		i := slices.IndexFunc(can, func(p *engine.Process) bool { return p.Group() == int(o.PID) })
		switch {
		case len(can) == 1:
			out = append(out, can[0])
		case len(list) == 1 && i >= 0 && o.Type == ownerPID:
			out = append(out, can[i])
		default:
			return nil, fmt.Errorf("of %d processes that have it open some have asked for F_NOTIFY, and which cannot be seen: %w", len(desc.holders), ErrNotCarried)
		}
	}
	return out, nil
}

// dnotifyProblems names notifications that are not carried.
func (d *Dumper) dnotifyProblems(desc *description) []problem {
	list, err := d.dnotifications(desc)
	if err == nil {
		_, err = askers(desc, list)
	}
	if err != nil {
		return []problem{{reason: err.Error()}}
	}
	return nil
}

// notifications records what F_NOTIFY was asked for.
func (r *dump) notifications(desc *description) error {
	list, err := r.dnotifications(desc)
	if err != nil || len(list) == 0 {
		return err
	}
	by, err := askers(desc, list)
	if err != nil {
		return err
	}
	var blob []byte
	for i, n := range list {
		blob = binary.LittleEndian.AppendUint32(blob, uint32(by[i].VPID))
		blob = binary.LittleEndian.AppendUint32(blob, uint32(n.fd))
		blob = binary.LittleEndian.AppendUint32(blob, n.events)
	}
	r.blob(dnotifyBlob(desc.id), blob)
	return nil
}

// dnotify asks again, in the process: the kernel keeps its descriptor table and the number. It also makes the process the owner of the
// signals, so it comes before the owner that the description had.
func (in *inside) dnotify(e *fdinfo.FileEntry) error {
	name := dnotifyBlob(e.GetId())
	blob := in.r.cp.Blobs[name]
	if len(blob)%dnotifySize != 0 || len(blob) > maxDnotify*dnotifySize {
		return fmt.Errorf("blob %s: %d bytes", name, len(blob))
	}
	for ; len(blob) > 0; blob = blob[dnotifySize:] {
		if int(binary.LittleEndian.Uint32(blob)) != in.p.VPID {
			continue
		}
		fd, events := int(binary.LittleEndian.Uint32(blob[4:])), binary.LittleEndian.Uint32(blob[8:])
		if in.table[fd] != e.GetId() {
			return fmt.Errorf("blob %s: descriptor %d is another file", name, fd)
		}
		in.early(fmt.Sprintf("F_NOTIFY of descriptor %d", fd), unix.SYS_FCNTL, fd, unix.F_NOTIFY, events)
	}
	return nil
}
