package images

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"github.com/zeebo/xxh3"

	"migrate/engine/images/imagespb"
)

// The wire form is the image files one after another, all numbers little-endian:
//
//	 0                8       12      +2        +8
//	+----------------+-------+-------+------+--------+------+--   --+---------+
//	| "MIGIMG" 0 ver | count | nlen  | name | length | data |  ...  |  xxh3   |
//	+----------------+-------+-------+------+--------+------+--   --+---------+
//	                  uint32  uint16         uint64                  of all before it
const wireMagic = "MIGIMG\x00"

const (
	wireHeader = len(wireMagic) + 1 + 4
	maxFiles   = 4 * maxTasks
	maxName    = 255
)

// ErrDamaged means that bytes were changed or lost on the way.
var ErrDamaged = errors.New("damaged: something was changed or lost since it was written")

func pack(files []file) []byte {
	size := wireHeader + 8
	for _, f := range files {
		size += 10 + len(f.name) + len(f.data)
	}
	out := make([]byte, 0, size)
	out = append(out, wireMagic...)
	out = append(out, Version)
	out = binary.LittleEndian.AppendUint32(out, uint32(len(files)))
	for _, f := range files {
		out = binary.LittleEndian.AppendUint16(out, uint16(len(f.name)))
		out = append(out, f.name...)
		out = binary.LittleEndian.AppendUint64(out, uint64(len(f.data)))
		out = append(out, f.data...)
	}
	return binary.LittleEndian.AppendUint64(out, xxh3.Hash(out))
}

func unpack(b []byte) (map[string][]byte, error) {
	if len(b) < wireHeader+8 || string(b[:len(wireMagic)]) != wireMagic {
		return nil, errors.New("images: not a checkpoint or layout in wire form")
	}
	if v := b[len(wireMagic)]; v != Version {
		return nil, fmt.Errorf("images: wire form of version %d, this program reads %d", v, Version)
	}
	body, sum := b[:len(b)-8], binary.LittleEndian.Uint64(b[len(b)-8:])
	if xxh3.Hash(body) != sum {
		return nil, fmt.Errorf("images: %w", ErrDamaged)
	}
	count := binary.LittleEndian.Uint32(b[wireHeader-4:])
	if count > maxFiles {
		return nil, fmt.Errorf("images: count: %d files, at most %d are taken", count, maxFiles)
	}
	files := make(map[string][]byte)
	rest := body[wireHeader:]
	for i := range count {
		if len(rest) < 2 {
			return nil, fmt.Errorf("images: file %d of %d is missing", i, count)
		}
		n := int(binary.LittleEndian.Uint16(rest))
		if n == 0 || n > maxName || len(rest) < 2+n+8 {
			return nil, fmt.Errorf("images: file %d: name of %d bytes", i, n)
		}
		name := string(rest[2 : 2+n])
		size := binary.LittleEndian.Uint64(rest[2+n:])
		rest = rest[2+n+8:]
		if size > uint64(len(rest)) {
			return nil, fmt.Errorf("images: %.255q: length: %d bytes, %d are left", name, size, len(rest))
		}
		if _, dup := files[name]; dup {
			return nil, fmt.Errorf("images: %.255q stands twice", name)
		}
		files[name] = rest[:size:size]
		rest = rest[size:]
	}
	if len(rest) != 0 {
		return nil, fmt.Errorf("images: %d bytes follow the last file", len(rest))
	}
	return files, nil
}

// Marshal returns the wire form. It fails on a checkpoint that Validate refuses.
func (c *Checkpoint) Marshal() ([]byte, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	files, err := c.encode()
	if err != nil {
		return nil, err
	}
	return pack(files), nil
}

// Unmarshal reads the wire form and validates it. The checkpoint's blobs are parts of b.
func Unmarshal(b []byte) (*Checkpoint, error) {
	files, err := unpack(b)
	if err != nil {
		return nil, err
	}
	return decode(files)
}

// Marshal returns the wire form. It fails on a layout that Validate refuses.
func (l *Layout) Marshal() ([]byte, error) {
	if err := l.Validate(); err != nil {
		return nil, err
	}
	p := &packer{}
	put(p, "pstree.img", "PSTREE", l.Tree...)
	put(p, "files.img", "FILES", l.Files...)
	put(p, "migrate.img", "EXTRA", &imagespb.File{Header: l.Header})
	l.Namespaces.encode(p)
	for _, s := range l.Spaces {
		if s.MM != nil {
			put(p, fmt.Sprintf("mm-%d.img", s.PID), "MM", s.MM)
		}
	}
	if p.err != nil {
		return nil, p.err
	}
	return pack(p.files), nil
}

// UnmarshalLayout reads the wire form of a layout and validates it.
func UnmarshalLayout(b []byte) (*Layout, error) {
	files, err := unpack(b)
	if err != nil {
		return nil, err
	}
	l := &Layout{}
	if l.Tree, err = open[pstree.PstreeEntry](files, "pstree.img", "PSTREE", maxTasks); err != nil {
		return nil, err
	}
	if l.Files, err = open[fdinfo.FileEntry](files, "files.img", "FILES", maxEntries); err != nil {
		return nil, err
	}
	extra, err := one[imagespb.File](files, "migrate.img", "EXTRA")
	if err != nil {
		return nil, err
	}
	l.Header = extra.GetHeader()
	if l.Namespaces, err = decodeNamespaces(files, l.Header); err != nil {
		return nil, err
	}
	for _, e := range l.Tree {
		s := &Space{PID: e.GetPid()}
		name := fmt.Sprintf("mm-%d.img", s.PID)
		if _, ok := files[name]; ok {
			if s.MM, err = one[mm.MmEntry](files, name, "MM"); err != nil {
				return nil, err
			}
		}
		l.Spaces = append(l.Spaces, s)
	}
	return l, l.Validate()
}
