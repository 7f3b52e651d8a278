package images

import (
	"encoding/binary"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fs"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/tty"
	"github.com/checkpoint-restore/go-criu/v8/magic"
	"google.golang.org/protobuf/proto"

	"migrate/engine/images/imagespb"
)

// An image file is one or two magic numbers of four bytes, then entries: a length of four bytes and that many
// bytes of a message; all little-endian (CRIU, criu/include/magic.h; crit/decode.go of go-criu).

// magicExtra marks migrate.img; no kind of CRIU's has it.
const magicExtra = 0x4d494752

var magics = sync.OnceValue(func() map[string]uint64 { return magic.LoadMagic().ByName })

// A file is an image file by name, complete with its magic numbers.
type file struct {
	name string
	data []byte
}

// build makes an image file. Kind is CRIU's name for it, such as "CORE".
func build[M proto.Message](name, kind string, entries ...M) (file, error) {
	var out []byte
	switch kind {
	case "INVENTORY": // the one without the common magic, as it is the oldest
	default:
		out = binary.LittleEndian.AppendUint32(out, uint32(magics()["IMG_COMMON"]))
	}
	if kind == "EXTRA" {
		out = binary.LittleEndian.AppendUint32(out, magicExtra)
	} else {
		out = binary.LittleEndian.AppendUint32(out, uint32(magics()[kind]))
	}
	var err error
	for i, e := range entries {
		at := len(out)
		out = append(out, 0, 0, 0, 0)
		if out, err = (proto.MarshalOptions{Deterministic: true}).MarshalAppend(out, e); err != nil {
			return file{}, fmt.Errorf("%s: entry %d: %w", name, i, err)
		}
		binary.LittleEndian.PutUint32(out[at:], uint32(len(out)-at-4))
	}
	return file{name, out}, nil
}

// maxEntries bounds the entries of one image file.
const maxEntries = 1 << 20

// takeMagic checks the magic numbers and returns what follows them.
func takeMagic(name, kind string, data []byte) ([]byte, error) {
	want := []uint32{uint32(magics()["IMG_COMMON"]), uint32(magics()[kind])}
	if kind == "INVENTORY" {
		want = want[1:]
	} else if kind == "EXTRA" {
		want[1] = magicExtra
	}
	for _, w := range want {
		if len(data) < 4 {
			return nil, fmt.Errorf("%s: magic number: the file ends before it", name)
		}
		if got := binary.LittleEndian.Uint32(data); got != w {
			return nil, fmt.Errorf("%s: magic number: 0x%x, want 0x%x (%s)", name, got, w, kind)
		}
		data = data[4:]
	}
	return data, nil
}

// open takes an image file apart. M is the message type of its entries; limit bounds their number.
func open[T any, M interface {
	*T
	proto.Message
}](files map[string][]byte, name, kind string, limit int) ([]M, error) {
	raw, ok := files[name]
	if !ok {
		return nil, fmt.Errorf("%s: is missing", name)
	}
	data, err := takeMagic(name, kind, raw)
	if err != nil {
		return nil, err
	}
	var out []M
	for len(data) > 0 {
		if len(out) >= limit {
			return nil, fmt.Errorf("%s: more than %d entries", name, limit)
		}
		m := M(new(T))
		if data, err = takeEntry(name, len(out), data, m); err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, nil
}

// takeEntry reads entry number i into m and returns what follows it.
func takeEntry(name string, i int, data []byte, m proto.Message) ([]byte, error) {
	if len(data) < 4 || uint64(binary.LittleEndian.Uint32(data)) > uint64(len(data)-4) {
		return nil, fmt.Errorf("%s: entry %d: its length goes beyond the end of the file", name, i)
	}
	n := 4 + int(binary.LittleEndian.Uint32(data))
	if err := proto.Unmarshal(data[4:n], m); err != nil {
		return nil, fmt.Errorf("%s: entry %d: %w", name, i, err)
	}
	return data[n:], nil
}

// one opens a file that has exactly one entry.
func one[T any, M interface {
	*T
	proto.Message
}](files map[string][]byte, name, kind string) (M, error) {
	l, err := open[T, M](files, name, kind, 1)
	if err == nil && len(l) != 1 {
		err = fmt.Errorf("%s: has no entry", name)
	}
	if err != nil {
		return nil, err
	}
	return l[0], nil
}

const (
	blobPrefix = "blob-"
	blobSuffix = ".raw"
)

func blobFile(name string) string { return blobPrefix + url.PathEscape(name) + blobSuffix }

// blobName is the inverse of blobFile; ok tells whether the file is a blob.
func blobName(f string) (name string, ok bool, err error) {
	mid, ok1 := strings.CutPrefix(f, blobPrefix)
	mid, ok2 := strings.CutSuffix(mid, blobSuffix)
	if !ok1 || !ok2 {
		return "", false, nil
	}
	name, err = url.PathUnescape(mid)
	return name, true, err
}

// A packer collects files and the first error.
type packer struct {
	files []file
	err   error
}

func put[M proto.Message](p *packer, name, kind string, entries ...M) {
	if p.err != nil {
		return
	}
	var f file
	f, p.err = build(name, kind, entries...)
	p.files = append(p.files, f)
}

// encode turns a checkpoint into image files, in an order that depends on the checkpoint alone.
func (c *Checkpoint) encode() ([]file, error) {
	p := &packer{}
	put(p, "inventory.img", "INVENTORY", c.Inventory)
	put(p, "pstree.img", "PSTREE", c.Tree...)
	put(p, "files.img", "FILES", c.Files...)
	put(p, "tty-info.img", "TTY_INFO", c.TTYs...)
	extra := &imagespb.File{Header: c.Header, Terminals: c.Terminals}
	tables := map[uint32]bool{}
	for _, pr := range c.Processes {
		if pr.Extra != nil {
			extra.Processes = append(extra.Processes, pr.Extra)
		}
		for _, t := range pr.Threads {
			put(p, fmt.Sprintf("core-%d.img", t.TID), "CORE", t.Core)
			if t.Extra != nil {
				extra.Threads = append(extra.Threads, t.Extra)
			}
		}
		if pr.Zombie() {
			continue
		}
		put(p, fmt.Sprintf("mm-%d.img", pr.PID), "MM", pr.MM)
		put(p, fmt.Sprintf("fs-%d.img", pr.PID), "FS", pr.FS)
		put(p, fmt.Sprintf("ids-%d.img", pr.PID), "IDS", pr.IDs)
		if id := pr.IDs.GetFilesId(); !tables[id] { // else it is the table of the first process that shares it
			tables[id] = true
			put(p, fmt.Sprintf("fdinfo-%d.img", pr.IDs.GetFilesId()), "FDINFO", pr.FDs...)
		}
	}
	put(p, "migrate.img", "EXTRA", extra)
	c.Namespaces.encode(p)
	names := make([]string, 0, len(c.Blobs))
	for n := range c.Blobs {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		p.files = append(p.files, file{blobFile(n), c.Blobs[n]})
	}
	return p.files, p.err
}

// decode is the inverse of encode. Files that it does not know are left alone.
func decode(files map[string][]byte) (*Checkpoint, error) {
	c := &Checkpoint{Blobs: map[string][]byte{}}
	var err error
	if c.Inventory, err = one[inventory.InventoryEntry](files, "inventory.img", "INVENTORY"); err != nil {
		return nil, err
	}
	if c.Tree, err = open[pstree.PstreeEntry](files, "pstree.img", "PSTREE", maxTasks); err != nil {
		return nil, err
	}
	if c.Files, err = open[fdinfo.FileEntry](files, "files.img", "FILES", maxEntries); err != nil {
		return nil, err
	}
	extra, err := one[imagespb.File](files, "migrate.img", "EXTRA")
	if err != nil {
		return nil, err
	}
	c.Header, c.Terminals = extra.GetHeader(), extra.GetTerminals()
	if c.Namespaces, err = decodeNamespaces(files, c.Header); err != nil {
		return nil, err
	}
	if c.TTYs, err = open[tty.TtyInfoEntry](files, "tty-info.img", "TTY_INFO", maxTTYs); err != nil {
		return nil, err
	}
	for _, e := range c.Tree {
		p, err := decodeProcess(files, e)
		if err != nil {
			return nil, err
		}
		c.Processes = append(c.Processes, p)
	}
	if err := c.placeExtras(extra); err != nil {
		return nil, err
	}
	for f, data := range files {
		name, ok, err := blobName(f)
		if err != nil {
			return nil, fmt.Errorf("%s: name: %w", f, err)
		}
		if ok && !isTree(name) {
			c.Blobs[name] = data
		}
	}
	return c, c.Validate()
}

func decodeProcess(files map[string][]byte, e *pstree.PstreeEntry) (*Process, error) {
	p := &Process{PID: e.GetPid()}
	var err error
	for _, tid := range e.GetThreads() {
		t := &Thread{TID: tid}
		if t.Core, err = one[criu_core.CoreEntry](files, fmt.Sprintf("core-%d.img", tid), "CORE"); err != nil {
			return nil, err
		}
		p.Threads = append(p.Threads, t)
	}
	if len(p.Threads) == 0 || p.Threads[0].TID != p.PID {
		return nil, fmt.Errorf("pstree.img: pid %d: threads: the first is not the process itself", p.PID)
	}
	if p.Zombie() {
		return p, nil
	}
	if p.MM, err = one[mm.MmEntry](files, fmt.Sprintf("mm-%d.img", p.PID), "MM"); err != nil {
		return nil, err
	}
	if p.FS, err = one[fs.FsEntry](files, fmt.Sprintf("fs-%d.img", p.PID), "FS"); err != nil {
		return nil, err
	}
	if p.IDs, err = one[criu_core.TaskKobjIdsEntry](files, fmt.Sprintf("ids-%d.img", p.PID), "IDS"); err != nil {
		return nil, err
	}
	p.FDs, err = open[fdinfo.FdinfoEntry](files, fmt.Sprintf("fdinfo-%d.img", p.IDs.GetFilesId()), "FDINFO", maxEntries)
	return p, err
}

// placeExtras hands the entries of migrate.img to their processes and threads.
func (c *Checkpoint) placeExtras(f *imagespb.File) error {
	processes, threads := map[uint32]*Process{}, map[uint32]*Thread{}
	for _, p := range c.Processes {
		processes[p.PID] = p
		for _, t := range p.Threads {
			threads[t.TID] = t
		}
	}
	for i, e := range f.GetProcesses() {
		p := processes[e.GetPid()]
		if p == nil || p.Extra != nil {
			return fmt.Errorf("migrate.img: processes[%d].pid: %d is not in pstree.img or stands twice", i, e.GetPid())
		}
		p.Extra = e
	}
	for i, e := range f.GetThreads() {
		t := threads[e.GetTid()]
		if t == nil || t.Extra != nil {
			return fmt.Errorf("migrate.img: threads[%d].tid: %d is not in pstree.img or stands twice", i, e.GetTid())
		}
		t.Extra = e
	}
	return nil
}
