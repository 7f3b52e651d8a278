package volume

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"
)

const (
	// blockSize is the grain of differences: a write of a byte costs so much on the wire, and a hash of 16 bytes in memory stands
	// for it.
	blockSize = 64 << 10
	// segmentSize is what one goroutine reads at once.
	segmentSize = 16 * blockSize
	// maxExtents bounds how finely the holes of one file are kept; a file with more is sent in full.
	maxExtents = 1 << 16
)

func blocksOf(size uint64) int { return int((size + blockSize - 1) / blockSize) }

// extentsOf lists where a file has content, in order (lseek(2), SEEK_DATA).
func extentsOf(f *os.File, st *unix.Stat_t) ([]span, error) {
	size := uint64(st.Size)
	whole := []span{{0, size}}
	if size == 0 {
		return nil, nil
	}
	if uint64(st.Blocks)*512 >= size { // no room for a hole
		return whole, nil
	}
	var out []span
	for at := int64(0); uint64(at) < size; {
		from, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return out, nil
		}
		if errors.Is(err, unix.EINVAL) || len(out) >= maxExtents {
			return whole, nil // the file system does not tell
		}
		if err != nil {
			return nil, fmt.Errorf("looking for content: %w", err)
		}
		to, err := unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE)
		if errors.Is(err, unix.ENXIO) { // it became shorter meanwhile
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("looking for a hole: %w", err)
		}
		out = append(out, span{uint64(from), uint64(to - from)})
		at = to
	}
	return out, nil
}

// clip returns the parts of the extents that are in s; first is where to begin to look, for calls in order.
func clip(extents []span, s span) []span {
	lo, hi := 0, len(extents)
	for lo < hi { // the first that ends after the beginning of s
		if mid := (lo + hi) / 2; extents[mid].end() <= s.offset {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	var out []span
	for ; lo < len(extents) && extents[lo].offset < s.end(); lo++ {
		from, to := max(extents[lo].offset, s.offset), min(extents[lo].end(), s.end())
		out = append(out, span{from, to - from})
	}
	return out
}

// hashBlock is that of a block's bytes and of where among them is content; zero if nowhere.
func hashBlock(data []byte, at span, content []span) block {
	if len(content) == 0 {
		return block{}
	}
	h := xxh3.Hash128(data)
	if len(content) > 1 || content[0] != at {
		for _, c := range content {
			h.Lo = h.Lo*31 + c.offset - at.offset
			h.Hi = h.Hi*31 + c.length
		}
	}
	b := block(h.Bytes())
	if b == (block{}) {
		b[0] = 1
	}
	return b
}

// readSegment fills buf with the bytes of a file at an offset; what is beyond its end reads as zeroes.
func readSegment(f *os.File, buf []byte, offset uint64) error {
	n, err := f.ReadAt(buf, int64(offset))
	if errors.Is(err, io.EOF) {
		clear(buf[n:])
		return nil
	}
	return err
}

// blockAt is the range of the i-th block of a file of a size.
func blockAt(i int, size uint64) span {
	from := uint64(i) * blockSize
	return span{from, min(blockSize, size-from)}
}

// hashFile returns the hashes of all blocks of a file.
func hashFile(f *os.File, st *unix.Stat_t) ([]block, error) {
	extents, err := extentsOf(f, st)
	if err != nil {
		return nil, err
	}
	size := uint64(st.Size)
	out := make([]block, blocksOf(size))
	buf := make([]byte, blockSize)
	for i := range out {
		at := blockAt(i, size)
		content := clip(extents, at)
		if len(content) == 0 {
			continue
		}
		if err := readSegment(f, buf[:at.length], at.offset); err != nil {
			return nil, err
		}
		out[i] = hashBlock(buf[:at.length], at, content)
	}
	return out, nil
}
