package volume

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// Type is what an entry of a tree is.
type Type uint8

const (
	TypeFile Type = iota + 1
	TypeDir
	TypeSymlink
	TypeFifo
	TypeChar
	TypeBlock
	types
)

var typeNames = [types]string{"nothing", "a regular file", "a directory", "a symbolic link", "a FIFO", "a character device", "a block device"}

func (t Type) String() string {
	if t < types {
		return typeNames[t]
	}
	return fmt.Sprintf("type %d", uint8(t))
}

// Xattr is one extended attribute (xattr(7)); access control lists are among them (system.posix_acl_access).
type Xattr struct {
	Name  string
	Value []byte
}

// Entry is one file, directory or other name of a unit.
type Entry struct {
	Path         string // below the unit's root, without a slash at either end; empty: the root itself
	Type         Type
	Mode         uint32 // permissions, with set-id and sticky bits: at most 07777
	UID, GID     uint32
	Size         uint64 // of a regular file, in bytes
	ATime, MTime int64  // nanoseconds since 1970
	Device       uint64 // of a device, as mknod(2) takes it
	Target       string // of a symbolic link
	Xattrs       []Xattr
}

// Bounds of what is taken from a peer.
const (
	maxPath   = 4095 // PATH_MAX without its NUL
	maxName   = 255  // NAME_MAX
	maxXattrs = 1024
	maxValue  = 64 << 10 // XATTR_SIZE_MAX
	maxText   = 4096     // of a failure
	maxSize   = 1 << 62
)

// listed is an entry as the destination has it.
type listed struct {
	path  string
	kind  Type
	size  uint64
	links uint32
}

// checkPath refuses paths that are not plainly below a root.
func checkPath(path string) error {
	if path == "" {
		return nil
	}
	if len(path) > maxPath {
		return fmt.Errorf("%w: a path of %d bytes", ErrCorrupt, len(path))
	}
	for name := range strings.SplitSeq(path, "/") {
		if name == "" || name == "." || name == ".." || len(name) > maxName || strings.IndexByte(name, 0) >= 0 {
			return fmt.Errorf("%w: path %.100q", ErrCorrupt, path)
		}
	}
	return nil
}

// enc builds a payload.
type enc []byte

func (e *enc) u8(v uint8)   { *e = append(*e, v) }
func (e *enc) u32(v uint32) { *e = binary.LittleEndian.AppendUint32(*e, v) }
func (e *enc) u64(v uint64) { *e = binary.LittleEndian.AppendUint64(*e, v) }
func (e *enc) text(s string) {
	e.u32(uint32(len(s)))
	*e = append(*e, s...)
}

// dec takes one apart; the first error stays.
type dec struct {
	b   []byte
	err error
}

func (d *dec) take(n int) []byte {
	if d.err == nil && (n < 0 || n > len(d.b)) {
		d.err = fmt.Errorf("%w: a message ends early", ErrCorrupt)
	}
	if d.err != nil {
		return make([]byte, len(block{})) // the longest that is read without a bound of its own
	}
	b := d.b[:n]
	d.b = d.b[n:]
	return b
}

func (d *dec) u8() uint8   { return d.take(1)[0] }
func (d *dec) u32() uint32 { return binary.LittleEndian.Uint32(d.take(4)) }
func (d *dec) u64() uint64 { return binary.LittleEndian.Uint64(d.take(8)) }

func (d *dec) bytes(limit int) []byte {
	n := d.u32()
	if d.err == nil && n > uint32(limit) {
		d.err = fmt.Errorf("%w: %d bytes where at most %d are taken", ErrCorrupt, n, limit)
	}
	if d.err != nil {
		return nil
	}
	return d.take(int(n))
}

func (d *dec) text(limit int) string { return string(d.bytes(limit)) }

func (d *dec) path() string {
	p := d.text(maxPath)
	if d.err == nil {
		d.err = checkPath(p)
	}
	return p
}

// end refuses what is left over.
func (d *dec) end() error {
	if d.err == nil && len(d.b) > 0 {
		d.err = fmt.Errorf("%w: %d bytes too many", ErrCorrupt, len(d.b))
	}
	return d.err
}

func encodeEntry(unit uint32, e *Entry) []byte {
	var b enc
	b.u32(unit)
	b.text(e.Path)
	b.u8(uint8(e.Type))
	b.u32(e.Mode)
	b.u32(e.UID)
	b.u32(e.GID)
	b.u64(e.Size)
	b.u64(uint64(e.ATime))
	b.u64(uint64(e.MTime))
	b.u64(e.Device)
	b.text(e.Target)
	b.u32(uint32(len(e.Xattrs)))
	for _, x := range e.Xattrs {
		b.text(x.Name)
		b.text(string(x.Value))
	}
	return b
}

func decodeEntry(p []byte) (unit uint32, e Entry, err error) {
	d := dec{b: p}
	unit = d.u32()
	e.Path, e.Type, e.Mode = d.path(), Type(d.u8()), d.u32()
	e.UID, e.GID, e.Size = d.u32(), d.u32(), d.u64()
	e.ATime, e.MTime, e.Device = int64(d.u64()), int64(d.u64()), d.u64()
	e.Target = d.text(maxPath)
	n := d.u32()
	if d.err == nil && n > maxXattrs {
		d.err = fmt.Errorf("%w: %d extended attributes", ErrCorrupt, n)
	}
	for i := uint32(0); i < n && d.err == nil; i++ {
		e.Xattrs = append(e.Xattrs, Xattr{Name: d.text(maxName), Value: append([]byte(nil), d.bytes(maxValue)...)})
	}
	if err := d.end(); err != nil {
		return 0, Entry{}, err
	}
	return unit, e, e.validate()
}

func (e *Entry) validate() error {
	switch {
	case e.Type == 0 || e.Type >= types:
		return fmt.Errorf("%w: %s is of unknown type %d", ErrCorrupt, e.Path, e.Type)
	case e.Mode > 0o7777:
		return fmt.Errorf("%w: mode %o of %s", ErrCorrupt, e.Mode, e.Path)
	case e.Size > maxSize:
		return fmt.Errorf("%w: %s has %d bytes", ErrCorrupt, e.Path, e.Size)
	case e.Path == "" && e.Type != TypeDir:
		return fmt.Errorf("%w: the root of a unit is %v", ErrCorrupt, e.Type)
	case (e.Type == TypeSymlink) != (e.Target != ""):
		return fmt.Errorf("%w: %s is %v with the target %.100q", ErrCorrupt, e.Path, e.Type, e.Target)
	case strings.IndexByte(e.Target, 0) >= 0:
		return fmt.Errorf("%w: the target of %s holds a NUL", ErrCorrupt, e.Path)
	}
	for _, x := range e.Xattrs {
		if !carriesXattr(x.Name) || strings.IndexByte(x.Name, 0) >= 0 {
			return fmt.Errorf("%w: extended attribute %.100q of %s", ErrCorrupt, x.Name, e.Path)
		}
	}
	return nil
}

// stalePrefix begins the attribute by which a unit that was left behind can be told (Store.Leave).
const stalePrefix = "trusted.migrate."

// carriesXattr tells attributes that belong to a file from those that belong to the place where it is.
func carriesXattr(name string) bool {
	return name != "" && !strings.HasPrefix(name, "trusted.overlay.") && !strings.HasPrefix(name, stalePrefix)
}

// names encodes the messages that name paths of a unit: remove, list, have (one), link and rename (two: old and new).
func encodeNames(unit uint32, paths ...string) []byte {
	var b enc
	b.u32(unit)
	for _, p := range paths {
		b.text(p)
	}
	return b
}

func decodeNames(p []byte, n int) (unit uint32, paths []string, err error) {
	d := dec{b: p}
	unit = d.u32()
	for range n {
		paths = append(paths, d.path())
	}
	return unit, paths, d.end()
}

// span is a range of a file.
type span struct{ offset, length uint64 }

func (s span) end() uint64 { return s.offset + s.length }

func encodeSpan(s span) []byte {
	var b enc
	b.u64(s.offset)
	b.u64(s.length)
	return b
}

func decodeSpan(p []byte) (span, error) {
	d := dec{b: p}
	s := span{d.u64(), d.u64()}
	if d.err == nil && (s.offset > maxSize || s.length > maxSize) {
		d.err = fmt.Errorf("%w: a range of %d bytes at %d", ErrCorrupt, s.length, s.offset)
	}
	return s, d.end()
}

// decodeData splits a frame with content.
func decodeData(p []byte) (offset uint64, data []byte, err error) {
	d := dec{b: p}
	offset = d.u64()
	if d.err == nil && offset > maxSize {
		d.err = fmt.Errorf("%w: content at %d", ErrCorrupt, offset)
	}
	return offset, d.b, d.err
}

func encodeListed(list []listed, last bool) []byte {
	var b enc
	b.u8(flag(last))
	for _, l := range list {
		b.text(l.path)
		b.u8(uint8(l.kind))
		b.u64(l.size)
		b.u32(l.links)
	}
	return b
}

func decodeListed(p []byte) (list []listed, last bool, err error) {
	d := dec{b: p}
	last = d.u8() != 0
	for len(d.b) > 0 && d.err == nil {
		list = append(list, listed{path: d.path(), kind: Type(d.u8()), size: d.u64(), links: d.u32()})
	}
	return list, last, d.end()
}

func flag(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}

// block is the xxh3-128 of a block's content. The zero value is that of a block without content.
type block [16]byte

func encodeHashes(list []block, last bool) []byte {
	var b enc
	b.u8(flag(last))
	for _, h := range list {
		b = append(b, h[:]...)
	}
	return b
}

func decodeHashes(p []byte) (list []block, last bool, err error) {
	d := dec{b: p}
	last = d.u8() != 0
	for len(d.b) > 0 && d.err == nil {
		list = append(list, block(d.take(len(block{}))))
	}
	return list, last, d.end()
}
