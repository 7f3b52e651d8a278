package volume

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/zeebo/xxh3"
)

// kind is what a frame says.
type kind uint8

const (
	kindEntry  kind = iota + 1 // an entry is there, with these attributes; content may follow up to kindEnd
	kindData                   // bytes of the file that was begun
	kindPacked                 // likewise, compressed (s2)
	kindHole                   // a range of the file that was begun has no content
	kindZero                   // a range of the file that was begun has zeroes
	kindEnd                    // the file that was begun is complete
	kindRemove                 // an entry is gone, with all below it
	kindLink                   // a path is another name of a file
	kindRename                 // a file has another path
	kindSync                   // flush all; answered by kindSynced
	kindList                   // what is there of a unit? answered by kindListed
	kindHave                   // the hashes of a file's blocks? answered by kindHashes
	kindSynced
	kindListed
	kindHashes
	kindFailure
	kinds
)

var kindNames = [kinds]string{"none", "entry", "data", "packed", "hole", "zero", "end", "remove", "link", "rename", "sync", "list", "have",
	"synced", "listed", "hashes", "failure"}

func (k kind) String() string {
	if k < kinds {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

const (
	frameMagic  = 0x4656474d // "MGVF"
	frameHeader = 24
	maxPayload  = 1<<20 + 64<<10
)

// ErrCorrupt means that what arrived is not what was sent, or was not sent by this protocol.
var ErrCorrupt = errors.New("the file stream is corrupt")

// appendFrame adds a frame to b.
func appendFrame(b []byte, k kind, payload []byte) []byte {
	le := binary.LittleEndian
	at := len(b)
	b = le.AppendUint32(b, frameMagic)
	b = append(b, byte(k), 0, 0, 0)
	b = le.AppendUint32(b, uint32(len(payload)))
	b = le.AppendUint32(b, 0)
	b = le.AppendUint64(b, sum(b[at:], payload))
	return append(b, payload...)
}

func sum(head, payload []byte) uint64 { return xxh3.HashSeed(payload, xxh3.Hash(head)) }

// readFrame reads the next frame. The payload is valid until the next call with the same buffer.
func readFrame(r io.Reader, buf []byte) (kind, []byte, []byte, error) {
	var head [frameHeader]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, buf, err
	}
	le := binary.LittleEndian
	n := le.Uint32(head[8:])
	switch {
	case le.Uint32(head[:]) != frameMagic || head[5]|head[6]|head[7] != 0 || le.Uint32(head[12:]) != 0:
		return 0, nil, buf, fmt.Errorf("%w: no frame begins with %x", ErrCorrupt, head)
	case head[4] == 0 || head[4] >= byte(kinds):
		return 0, nil, buf, fmt.Errorf("%w: frame of unknown kind %d", ErrCorrupt, head[4])
	case n > maxPayload:
		return 0, nil, buf, fmt.Errorf("%w: a frame of %d bytes; at most %d are taken", ErrCorrupt, n, maxPayload)
	}
	if cap(buf) < int(n) {
		buf = make([]byte, n)
	}
	payload := buf[:n]
	if _, err := io.ReadFull(r, payload); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, buf, err
	}
	if le.Uint64(head[16:]) != sum(head[:16], payload) {
		return 0, nil, buf, fmt.Errorf("%w: the sum of a frame of %d bytes (%v) is wrong", ErrCorrupt, n, kind(head[4]))
	}
	return kind(head[4]), payload, buf, nil
}
