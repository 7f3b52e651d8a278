package mem

import (
	"fmt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"golang.org/x/sys/unix"

	"migrate/engine/images"
	"migrate/engine/remote"
)

// The rings of a packet socket (packet(7), PACKET_RX_RING) are mapped by the socket's descriptor, at once and as a whole. There is none
// while a process is built, so the place is kept by memory that nobody may touch, and the rings are mapped when the sockets are made.

// IsPacketRing tells whether a mapping is of the rings of a packet socket. The Shmid of its record is the socket's inode number at
// the source.
func IsPacketRing(v *vma.VmaEntry) bool { return v.GetStatus()&images.VMASocket != 0 }

// keepPlace maps memory that nobody may touch.
func keepPlace(b *remote.Batch, c Change) *remote.Result {
	return b.Call(unix.SYS_MMAP, c.Start, c.Size(), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE|unix.MAP_FIXED, -1, 0)
}

// MapPacketRing appends the calls that map the rings of a socket, which the process holds at fd.
func MapPacketRing(b *remote.Batch, v *vma.VmaEntry, fd int) *remote.Result {
	size := v.GetEnd() - v.GetStart()
	r := b.Call(unix.SYS_MMAP, v.GetStart(), size, v.GetProt(), v.GetFlags()&(unix.MAP_SHARED|unix.MAP_PRIVATE)|unix.MAP_FIXED, fd, 0)
	advice, _ := advise(0, v.GetMadv())
	for _, a := range advice {
		b.Call(unix.SYS_MADVISE, v.GetStart(), size, a)
	}
	b.Call(unix.SYS_CLOSE, fd)
	return r
}

// PacketRingBlob names the blob with the number of the record of a packet socket whose rings are mapped, 4 bytes little-endian.
func PacketRingBlob(inode uint64) string { return fmt.Sprintf("packet-ring-%d", inode) }
