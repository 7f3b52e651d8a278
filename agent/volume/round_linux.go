package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// unitRound is one round of one unit.
type unitRound struct {
	s      *Sender
	u      *unitState
	n      uint64
	mapped func(path string) bool
	stats  *Stats
	ctx    context.Context

	list    []found
	firsts  map[uint64]string // files with several names: the first, by inode
	renames map[string]string // new path -> old
}

// run sends, in this order: what is gone, directories, files under new names, all else.
func (r *unitRound) run() (err error) {
	start := time.Now()
	if r.list, err = walk(r.u.root, r.u.Unit); err != nil {
		return err
	}
	r.list = slices.DeleteFunc(r.list, func(f found) bool { return f.kind() == 0 })
	r.stats.Entries += len(r.list)
	r.firsts, r.renames = map[uint64]string{}, map[string]string{}
	err = r.remove()
	r.stats.Scan += time.Since(start)
	if err != nil {
		return err
	}
	for i := range r.list {
		if f := &r.list[i]; f.kind() == TypeDir && r.changed(f) {
			if err := r.entry(f); err != nil {
				return err
			}
		}
	}
	for to, from := range r.renames {
		if err := r.s.wire.put(r.ctx, kindRename, encodeNames(r.u.index, from, to)); err != nil {
			return err
		}
		k := r.u.known[from]
		delete(r.u.known, from)
		k.ctime, k.round = 0, r.n
		r.u.known[to] = k
	}
	for i := range r.list {
		if f := &r.list[i]; f.kind() != TypeDir {
			if err := r.other(f); err != nil {
				return fmt.Errorf("%s: %w", f.path, err)
			}
		}
	}
	return nil
}

// replaced says that the destination has something else under the path, which cannot be made into it.
func replaced(k *known, f *found) bool {
	return k.kind != f.kind() || k.kind == TypeFile && (k.ino != 0 && k.ino != f.st.Ino || k.ino == 0 && k.links > 1)
}

// remove finds what is gone and what has taken its place.
func (r *unitRound) remove() error {
	seen, out := 0, map[string]bool{} // what must be removed
	for i := range r.list {
		f := &r.list[i]
		if k := r.u.known[f.path]; k != nil {
			k.round = r.n
			seen++
			if replaced(k, f) {
				out[f.path] = true
			}
		}
	}
	gone := map[uint64]string{} // files that may have another name now
	if seen < len(r.u.known) {
		for p, k := range r.u.known {
			if k.round == r.n {
				continue
			}
			out[p] = true
			if parent := r.u.known[path.Dir(p)]; k.kind == TypeFile && k.ino != 0 && k.first == "" && (path.Dir(p) == "." || parent != nil && parent.round == r.n) {
				gone[k.ino] = p
			}
		}
	}
	if len(out) == 0 {
		return nil
	}
	for i := range r.list {
		f := &r.list[i]
		if from, ok := gone[f.st.Ino]; ok && f.kind() == TypeFile && f.st.Nlink == 1 && !out[path.Dir(from)] {
			if k := r.u.known[f.path]; k == nil || k.kind == TypeFile && k.ino != f.st.Ino {
				r.renames[f.path] = from
				delete(gone, f.st.Ino)
				delete(out, from)
				delete(out, f.path)
			}
		}
	}
	for p := range out {
		delete(r.u.known, p)
		if out[path.Dir(p)] {
			continue // with its directory
		}
		if err := r.s.wire.put(r.ctx, kindRemove, encodeNames(r.u.index, p)); err != nil {
			return err
		}
	}
	return nil
}

// changed says that an entry has to be sent.
func (r *unitRound) changed(f *found) bool {
	k := r.u.known[f.path]
	if k == nil || k.ino != f.st.Ino || k.ctime != nsec(f.st.Ctim) {
		return true
	}
	if k.kind != TypeFile {
		return false
	}
	if r.mapped != nil && r.mapped(path.Join(r.u.Dir, f.path)) {
		k.mapped = true
	}
	return k.racy || k.mapped || k.size != uint64(f.st.Size)
}

// entry sends what is complete without content.
func (r *unitRound) entry(f *found) error {
	dir, base, err := openParent(r.u.root, f.path)
	if err != nil {
		return skipGone(err)
	}
	e, err := entryOf(dir, base, f)
	if err := errors.Join(err, unix.Close(dir)); err != nil {
		return skipGone(err)
	}
	r.stats.Changed++
	r.u.known[f.path] = &known{kind: f.kind(), ino: f.st.Ino, ctime: nsec(f.st.Ctim), round: r.n}
	return r.s.wire.put(r.ctx, kindEntry, encodeEntry(r.u.index, &e))
}

// skipGone takes the error of a name that has vanished since the walk for none: the next round sees that.
func skipGone(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	return err
}

// other sends what is no directory.
func (r *unitRound) other(f *found) error {
	if f.kind() == TypeFile && f.st.Nlink > 1 {
		if first, ok := r.firsts[f.st.Ino]; ok {
			return r.link(f, first)
		}
		r.firsts[f.st.Ino] = f.path
		if k := r.u.known[f.path]; k != nil && k.first != "" { // it was another's name until now
			delete(r.u.known, f.path)
			if err := r.s.wire.put(r.ctx, kindRemove, encodeNames(r.u.index, f.path)); err != nil {
				return err
			}
		}
	}
	if !r.changed(f) {
		return nil
	}
	if f.kind() == TypeFile {
		return r.file(f)
	}
	return r.entry(f)
}

// link sends that a path is another name of a file.
func (r *unitRound) link(f *found, first string) error {
	k := r.u.known[f.path]
	if k != nil && k.first == first && k.ino == f.st.Ino {
		return nil
	}
	if r.u.known[first] == nil { // it vanished while it was to be sent
		return nil
	}
	r.stats.Changed++
	r.u.known[f.path] = &known{kind: TypeFile, ino: f.st.Ino, ctime: nsec(f.st.Ctim), first: first, round: r.n}
	return r.s.wire.put(r.ctx, kindLink, encodeNames(r.u.index, first, f.path))
}

// racyTime is more than the grain of a file system's clock.
const racyTime = 100 * time.Millisecond

// file sends a regular file: what differs from what the destination has.
func (r *unitRound) file(f *found) (err error) {
	fd, err := openBeneath(int(r.u.root.Fd()), f.path, unix.O_RDONLY|unix.O_NOATIME|unix.O_NONBLOCK, 0)
	if err != nil {
		return skipGone(err)
	}
	file := os.NewFile(uintptr(fd), f.path)
	defer func() { err = errors.Join(err, file.Close()) }()
	asOf := time.Now()
	if err := unix.Fstat(fd, &f.st); err != nil { // before it is read: what is written meanwhile changes the time
		return err
	}
	if f.kind() != TypeFile {
		return nil
	}
	e, err := r.describe(file, f)
	if err != nil {
		return err
	}
	k, isNew := r.u.known[f.path], false
	if k == nil {
		k, isNew = &known{asked: true}, true
		r.u.known[f.path] = k
	}
	if err := r.haves(k, f.path); err != nil {
		return err
	}
	k.kind, k.links, k.ino, k.ctime, k.size, k.round = TypeFile, uint32(f.st.Nlink), f.st.Ino, nsec(f.st.Ctim), uint64(f.st.Size), r.n
	k.first = ""
	k.racy = asOf.UnixNano()-k.ctime < int64(racyTime)
	if r.mapped != nil && r.mapped(path.Join(r.u.Dir, f.path)) {
		k.mapped = true
	}
	r.stats.Changed++
	if err := r.s.wire.put(r.ctx, kindEntry, encodeEntry(r.u.index, &e)); err != nil {
		return err
	}
	if err := r.content(file, f, k, isNew); err != nil {
		return err
	}
	return r.s.wire.put(r.ctx, kindEnd, nil)
}

// describe is entryOf for an open file.
func (r *unitRound) describe(file *os.File, f *found) (Entry, error) {
	e := Entry{Path: f.path, Type: TypeFile, Mode: f.st.Mode & 0o7777, UID: f.st.Uid, GID: f.st.Gid, Size: uint64(f.st.Size),
		ATime: nsec(f.st.Atim), MTime: nsec(f.st.Mtim)}
	var err error
	fd := int(file.Fd())
	e.Xattrs, err = readXattrs(func(b []byte) (int, error) { return unix.Flistxattr(fd, b) },
		func(name string, b []byte) (int, error) { return unix.Fgetxattr(fd, name, b) })
	return e, err
}

// haves asks for the hashes of a file that was there before.
func (r *unitRound) haves(k *known, p string) error {
	if k.asked {
		return nil
	}
	k.asked, k.hashes = true, nil
	return r.s.wire.ask(r.ctx, kindHave, encodeNames(r.u.index, p), kindHashes, func(b []byte) (bool, error) {
		list, last, err := decodeHashes(b)
		k.hashes = append(k.hashes, list...)
		return last, err
	})
}

// content sends the blocks that differ, read by several goroutines.
func (r *unitRound) content(file *os.File, f *found, k *known, isNew bool) error {
	size := uint64(f.st.Size)
	extents, err := extentsOf(file, &f.st)
	if err != nil {
		return err
	}
	old, hashes := k.hashes, make([]block, blocksOf(size))
	p := pieces{r: r, file: file, size: size, extents: extents, old: old, hashes: hashes, isNew: isNew}
	segments := (size + segmentSize - 1) / segmentSize
	var next atomic.Uint64
	work := func() error {
		buf := bufs.Get().(*[]byte)
		defer bufs.Put(buf)
		for {
			i := next.Add(1) - 1
			if i >= segments {
				return nil
			}
			if err := p.segment(*buf, span{i * segmentSize, min(segmentSize, size-i*segmentSize)}); err != nil {
				return err
			}
		}
	}
	if segments > 1 {
		var group errgroup.Group
		for range min(uint64(workers()), segments) {
			group.Go(work)
		}
		err = group.Wait()
	} else {
		err = work()
	}
	if err != nil {
		return err // the connection is given up, and with it what is known of the destination
	}
	k.hashes = hashes
	r.stats.Read += size
	return nil
}

var bufs = sync.Pool{New: func() any { b := make([]byte, segmentSize); return &b }}

// pieces compares a file's segments. Its methods are called by several goroutines, for segments of their own.
type pieces struct {
	r           *unitRound
	file        *os.File
	size        uint64
	extents     []span
	old, hashes []block
	isNew       bool
}

func (p *pieces) segment(buf []byte, at span) error {
	if err := p.r.ctx.Err(); err != nil {
		return context.Cause(p.r.ctx)
	}
	some := len(clip(p.extents, at)) > 0
	if some {
		if err := readSegment(p.file, buf[:at.length], at.offset); err != nil {
			return err
		}
	}
	for i := int(at.offset / blockSize); i < blocksOf(at.end()); i++ {
		b := blockAt(i, p.size)
		data := buf[b.offset-at.offset:][:b.length]
		content := clip(p.extents, b)
		p.hashes[i] = hashBlock(data, b, content)
		if i < len(p.old) && p.old[i] == p.hashes[i] {
			continue
		}
		if err := p.send(data, b, content); err != nil {
			return err
		}
	}
	return nil
}

// send sends one block: content where it is, holes where it is not. A file that was just made is one hole.
func (p *pieces) send(data []byte, b span, content []span) error {
	w, at := p.r.s.wire, b.offset
	hole := func(to uint64) error {
		if p.isNew || to == at {
			return nil
		}
		return w.put(p.r.ctx, kindHole, encodeSpan(span{at, to - at}))
	}
	for _, c := range content {
		if err := hole(c.offset); err != nil {
			return err
		}
		part := data[c.offset-b.offset:][:c.length]
		var err error
		if isZero(part) {
			err = w.put(p.r.ctx, kindZero, encodeSpan(c))
		} else {
			err = w.data(p.r.ctx, c.offset, part, p.r.s.opts.Compress)
		}
		if err != nil {
			return err
		}
		at = c.end()
	}
	return hole(b.end())
}

func isZero(b []byte) bool {
	for len(b) >= 8 {
		if b[0]|b[1]|b[2]|b[3]|b[4]|b[5]|b[6]|b[7] != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
