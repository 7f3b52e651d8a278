//go:build linux

package files

import (
	"encoding/binary"
	"encoding/hex"

	"golang.org/x/sys/unix"
)

// A mount may be gone while files on it are open: umount2(2) with MNT_DETACH, open_tree(2), fsmount(2). The link of such a file
// begins at the mount and leads to nothing. When another mount of the file system is left, the file is known by its name there; else a
// tmpfs lives by the file alone, and the file travels with its content.

// findDetached finds regular files of a tmpfs whose mount is gone, and gives them the names and kinds that they are carried by.
func (d *Dumper) findDetached(s *snapshot) {
	before := d.current
	d.current = s
	defer func() { d.current = before }()
	for _, desc := range s.list {
		if desc.format() != unix.S_IFREG || desc.stat.Nlink == 0 || desc.external != "" || desc.magic() != unix.TMPFS_MAGIC || desc.isDeleted() {
			continue
		}
		root, err := d.rootOf(desc)
		if err != nil {
			continue // checkPath says so
		}
		if name, ok := inRoot(desc.path(), desc.root); ok {
			if st, err := statIn(root, name); err == nil && st.Dev == desc.stat.Dev && st.Ino == desc.stat.Ino {
				continue
			}
		}
		if name, ok := d.otherMount(s, desc); ok {
			desc.link = name
			continue
		}
		desc.detached = d.isAlone(desc)
		desc.kind = kindOf(desc)
	}
}

// otherMount is the path of a file by way of another mount of its file system, as this program sees it.
func (d *Dumper) otherMount(s *snapshot, desc *description) (string, bool) {
	h, _, err := unix.NameToHandleAt(desc.fd, "", unix.AT_EMPTY_PATH)
	if err != nil {
		return "", false
	}
	i := inode{uint32(unix.Major(desc.stat.Dev))<<20 | uint32(unix.Minor(desc.stat.Dev)), desc.stat.Ino, int(h.Type()), hex.EncodeToString(h.Bytes())}
	p, err := d.findPath(s, i)
	if err != nil || !d.leadsTo(desc.holders[0].proc.VPID, p.path, i) || desc.via != nil {
		return "", false
	}
	if desc.root == "/" {
		return p.path, true
	}
	return desc.root + p.path, true
}

// isAlone tells whether no mount of the file system is left but the one by which the file is open (struct super_block).
func (d *Dumper) isAlone(desc *description) bool {
	k, err := d.kernelMemory()
	if err != nil {
		return false
	}
	file, err := k.File(desc.fd)
	if err != nil {
		return false
	}
	at, err := file.Bytes("f_path", 16) // struct path: the mount, then the directory entry
	if err != nil {
		return false
	}
	dentry, err := k.Load("dentry", binary.LittleEndian.Uint64(at[8:]))
	if err != nil {
		return false
	}
	super, err := k.Follow(dentry, "d_sb", "super_block")
	if err != nil {
		return false
	}
	n, err := super.Uint32("s_active")
	return err == nil && n == 1
}
