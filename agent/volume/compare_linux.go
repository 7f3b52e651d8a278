package volume

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"

	agentapi "migrate/agent/api"
	"migrate/engine/mem"
)

const (
	// hashSize is up to which size the content of a program or library with a build id is hashed, too.
	hashSize = 64 << 20
	// sampleSize is above which size only samples of a file are hashed, samples of them, each of a block, in even distances from
	// the first to the last: a plan has some seconds.
	sampleSize = 2 << 30
	samples    = 1024
	// maxRemembered bounds the hashes that a Hasher keeps.
	maxRemembered = 1 << 14
)

// Hasher describes files and compares them, and remembers the hashes of files that do not change. The zero value is ready; its
// methods may be called by several goroutines.
type Hasher struct {
	mu   sync.Mutex
	seen map[version][]byte
}

// version is a file as of its last change.
type version struct {
	dev, ino    uint64
	size, ctime int64
}

// Describe says what a destination needs in the place of a file. path is that below root, a path of this program. The
// answer is nil where there is no regular file. Without content, no hash is taken.
func (h *Hasher) Describe(ctx context.Context, root, path string, written, content bool) (*agentapi.FileNeed, error) {
	f, st, err := openRegular(filepath.Join(root, path))
	if err != nil || f == nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	n := &agentapi.FileNeed{Path: path, Size: uint64(st.Size), Mode: st.Mode, Written: written, Inode: st.Ino, CtimeNs: nsec(st.Ctim), MtimeNs: nsec(st.Mtim)}
	if !content {
		return n, nil
	}
	n.BuildId = hex.EncodeToString(mem.BuildID(f.Name()))
	if n.BuildId == "" || st.Size <= hashSize {
		n.Hash, err = h.hash(ctx, f, st)
	}
	return n, err
}

// openRegular opens a file; nil for what is missing or no regular file.
func openRegular(path string) (*os.File, *unix.Stat_t, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENXIO) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, nil, f.Close()
	}
	return f, &st, nil
}

// Difference says how this host's file differs from what is needed; empty if it does not. There says that something is in
// its place.
func (h *Hasher) Difference(ctx context.Context, n *agentapi.FileNeed, content bool) (why string, there bool, err error) {
	info, err := os.Lstat(n.GetPath())
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return "the file is missing", false, nil
	}
	if err != nil {
		return "", false, err
	}
	f, st, err := openRegular(n.GetPath())
	if err != nil {
		return "", true, err
	}
	if f == nil {
		return fmt.Sprintf("it is no regular file but %v", info.Mode().Type()), true, nil
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if !content || sameStorage(n, st) {
		return "", true, nil
	}
	if uint64(st.Size) != n.GetSize() {
		return fmt.Sprintf("the file has %d bytes, the source's has %d", st.Size, n.GetSize()), true, nil
	}
	if n.GetBuildId() != "" {
		if id := hex.EncodeToString(mem.BuildID(f.Name())); id != n.GetBuildId() {
			return fmt.Sprintf("the file is another build: %.64s, the source's is %.64s", id, n.GetBuildId()), true, nil
		}
	}
	if len(n.GetHash()) == 0 {
		return "", true, nil
	}
	sum, err := h.hash(ctx, f, st)
	if err == nil && !bytes.Equal(sum, n.GetHash()) {
		why = fmt.Sprintf("the file has the same size as the source's, %d bytes, and another content", st.Size)
	}
	return why, true, err
}

// sameStorage tells a file that both hosts see: nothing about it differs, or the program writes to it, and it has
// been written to since the source looked.
func sameStorage(n *agentapi.FileNeed, st *unix.Stat_t) bool {
	if n.GetInode() == 0 || st.Ino != n.GetInode() {
		return false
	}
	if nsec(st.Ctim) == n.GetCtimeNs() && uint64(st.Size) == n.GetSize() {
		return true
	}
	return n.GetWritten() && nsec(st.Ctim) > n.GetCtimeNs() && nsec(st.Mtim) > n.GetMtimeNs()
}

// hash is xxh3-128 of a file's content, or of its size and samples of it.
func (h *Hasher) hash(ctx context.Context, f *os.File, st *unix.Stat_t) ([]byte, error) {
	v := version{st.Dev, st.Ino, st.Size, nsec(st.Ctim)}
	h.mu.Lock()
	known := h.seen[v]
	h.mu.Unlock()
	if known != nil {
		return known, nil
	}
	x := xxh3.New()
	buf := make([]byte, segmentSize)
	step, part := int64(segmentSize), int64(segmentSize)
	if st.Size > sampleSize {
		part = blockSize
		step = (st.Size - part) / (samples - 1)
		_, _ = fmt.Fprintf(x, "%d bytes: ", st.Size) // a hash takes all
	}
	for at := int64(0); at < st.Size; at += step {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		n, err := f.ReadAt(buf[:min(part, st.Size-at)], at)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%s: %w", f.Name(), err)
		}
		_, _ = x.Write(buf[:n])
	}
	b := x.Sum128().Bytes()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.seen == nil || len(h.seen) >= maxRemembered {
		h.seen = map[version][]byte{}
	}
	h.seen[v] = b[:]
	return b[:], nil
}
