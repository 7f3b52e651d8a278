package procfs

import (
	"strings"
)

// A FanotifyGroup is a descriptor of fanotify(7).
type FanotifyGroup struct {
	Flags      uint32 // of fanotify_init(2)
	EventFlags uint32 // its second argument
	Marks      []FanotifyMark
}

// FanotifyMark is one mark. It is of the mount MntID if that is not zero, else of the inode Ino if that is not zero, else of
// the file system Dev.
type FanotifyMark struct {
	MntID      int
	Ino        uint64
	Dev        uint32 // as the kernel encodes it (major<<20 | minor)
	Flags      uint32 // those of fanotify_mark(2) that stay: FAN_MARK_EVICTABLE, FAN_MARK_IGNORE, ...
	Mask       uint32
	Ignored    uint32
	HandleType int
	Handle     string // hexadecimal
}

// fanotify parses "fanotify flags:10 event-flags:0" and "fanotify ino:4f969 sdev:800013 mflags:0 mask:3b
// ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:..." (fs/notify/fdinfo.c).
func (i *FDInfo) fanotify(line string) error {
	if i.Fanotify == nil {
		i.Fanotify = &FanotifyGroup{}
	}
	var m FanotifyMark
	mark := false
	err := colonFields(strings.TrimPrefix(line, "fanotify "), func(name, v string) error {
		if name == "f_handle" {
			m.Handle = v
			return nil
		}
		n, err := number(name, v, 16)
		switch name {
		case "flags":
			i.Fanotify.Flags = uint32(n)
			return err
		case "event-flags":
			i.Fanotify.EventFlags = uint32(n)
			return err
		case "mnt_id":
			m.MntID = int(int32(n))
		case "ino":
			m.Ino = n
		case "sdev":
			m.Dev = uint32(n)
		case "mflags":
			m.Flags = uint32(n)
		case "mask":
			m.Mask = uint32(n)
		case "ignored_mask":
			m.Ignored = uint32(n)
		case "fhandle-type":
			m.HandleType = int(uint32(n))
		}
		mark = true
		return err
	})
	if mark {
		i.Fanotify.Marks = append(i.Fanotify.Marks, m)
	}
	return err
}
