//go:build linux

package files

import (
	"encoding/binary"
	"fmt"
	"strconv"

	"migrate/engine/mem"
	"migrate/engine/procfs"
	"migrate/engine/sock"
)

// packetRing records that the rings of a socket are mapped by the tree. The kernel begins again with their first frames, so one
// whose next frame to be sent is another would wait for it for ever.
func (r *dump) packetRing(d *description, p *sock.PacketInfo) error {
	size := p.RX.Size() + p.TX.Size()
	if size == 0 {
		return nil
	}
	mapped, name := false, "socket:["+strconv.FormatUint(d.stat.Ino, 10)+"]"
	for _, q := range r.procs {
		maps, err := procfs.Host.Maps(q.PID)
		if err != nil {
			continue // it ended: a zombie
		}
		for _, m := range maps {
			if m.Path != name {
				continue
			}
			if mapped = true; m.End-m.Start != size || m.Offset != 0 {
				return fmt.Errorf("%d of %d bytes of its rings are mapped at 0x%x, which cannot be done again: %w", m.End-m.Start, size, m.Start, ErrNotCarried)
			}
		}
	}
	if !mapped {
		return nil
	}
	if at, err := r.sendFrame(d); err == nil && at != 0 {
		return fmt.Errorf("the next frame that it sends is number %d of its ring, which a new socket cannot be told: %w", at, ErrNotCarried)
	}
	r.blob(mem.PacketRingBlob(d.stat.Ino), binary.LittleEndian.AppendUint32(nil, d.id))
	return nil
}

// sendFrame is the frame of the ring for sending at which the kernel looks next (struct packet_sock).
func (r *dump) sendFrame(d *description) (uint32, error) {
	k, err := r.kernelMemory()
	if err != nil {
		return 0, err
	}
	file, err := k.File(d.fd)
	if err != nil {
		return 0, err
	}
	socket, err := k.Follow(file, "private_data", "socket")
	if err != nil {
		return 0, err
	}
	s, err := k.Follow(socket, "sk", "packet_sock") // begins with its struct sock
	if err != nil {
		return 0, err
	}
	return s.Uint32("tx_ring.head")
}
