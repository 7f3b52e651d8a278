package mem

import (
	"encoding/binary"
	"fmt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"google.golang.org/protobuf/proto"

	"migrate/engine/images"
)

// A context of io_setup(2) is known by the address of its ring, which the kernel maps and the program may read (fs/aio.c,
// struct aio_ring), all little-endian:
//
//	 0    4    8      12     16      20       24         28             32
//	+----+----+------+------+-------+--------+----------+--------------+--------+--------+ ...
//	| id | nr | head | tail | magic | compat | incompat | header size  | struct io_event  |
//	+----+----+------+------+-------+--------+----------+--------------+--------+--------+ ...
//
// It has nr slots. Events wait from head up to tail, which go round. The kernel counts the tail for itself, so a ring is brought back by as
// many requests as events wait, whose events are then overwritten.
const (
	aioHeader = 32
	aioEvent  = 32
	// maxAIORing bounds a ring in an image, in bytes: /proc/sys/fs/aio-max-nr is 65536 by default.
	maxAIORing = 64 << 20
)

// IsAIORing tells whether a mapping is the ring of a context.
func IsAIORing(v *vma.VmaEntry) bool { return v.GetStatus()&images.VMAAIORing != 0 }

// AIORequests is the argument of io_setup(2) that makes a ring of the size of a mapping.
func AIORequests(v *vma.VmaEntry) (uint64, error) {
	size := v.GetEnd() - v.GetStart()
	if size > maxAIORing {
		return 0, fmt.Errorf("a ring of io_setup(2) of %d bytes", size)
	}
	return ((size-aioHeader)/aioEvent - 2) / 2, nil
}

// AIOBlob names the blob with the events that wait in a ring.
func AIOBlob(pid uint32, v *vma.VmaEntry) string { return fmt.Sprintf("aio-%d-%x", pid, v.GetStart()) }

// DumpAIO reads the events that wait in a ring, in order. read reads memory of the stopped process.
func DumpAIO(v *vma.VmaEntry, read func(addr uint64, b []byte) error) (*mm.AioRingEntry, []byte, error) {
	if _, err := AIORequests(v); err != nil {
		return nil, nil, err
	}
	ring := make([]byte, v.GetEnd()-v.GetStart())
	if err := read(v.GetStart(), ring); err != nil {
		return nil, nil, fmt.Errorf("ring of io_setup(2) at 0x%x: %w", v.GetStart(), err)
	}
	le := binary.LittleEndian
	nr, head, tail := uint64(le.Uint32(ring[4:])), uint64(le.Uint32(ring[8:])), uint64(le.Uint32(ring[12:]))
	if nr == 0 || nr > uint64(len(ring)-aioHeader)/aioEvent || head >= nr || tail >= nr {
		return nil, nil, fmt.Errorf("ring of io_setup(2) at 0x%x: head %d and tail %d of %d events", v.GetStart(), head, tail, nr)
	}
	var events []byte
	for ; head != tail; head = (head + 1) % nr {
		at := aioHeader + head*aioEvent
		events = append(events, ring[at:at+aioEvent]...)
	}
	return &mm.AioRingEntry{Id: proto.Uint64(v.GetStart()), NrReq: proto.Uint32(uint32(nr)), RingLen: proto.Uint32(uint32(len(ring)))}, events, nil
}

// AIOEvents is how many events a blob holds, and where in a ring they belong.
func AIOEvents(v *vma.VmaEntry, blob []byte) (n int, addr uint64, err error) {
	if len(blob)%aioEvent != 0 || uint64(len(blob)) > v.GetEnd()-v.GetStart()-aioHeader-aioEvent {
		return 0, 0, fmt.Errorf("events of the ring at 0x%x: %d bytes", v.GetStart(), len(blob))
	}
	return len(blob) / aioEvent, v.GetStart() + aioHeader, nil
}
