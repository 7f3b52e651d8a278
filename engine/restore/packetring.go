//go:build linux

package restore

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"

	"migrate/engine/images"
	"migrate/engine/mem"
	"migrate/engine/remote"
)

// mapPacketRings maps the rings of packet sockets into a process that has no descriptors of its own yet.
func (s *Skeleton) mapPacketRings(ctx context.Context, p *process, img *images.Process, blobs map[string][]byte) error {
	for _, v := range img.MM.GetVmas() {
		if !mem.IsPacketRing(v) {
			continue
		}
		if err := s.mapPacketRing(ctx, p, v, blobs[mem.PacketRingBlob(v.GetShmid())]); err != nil {
			return fmt.Errorf("the rings of a packet socket at 0x%x: %w", v.GetStart(), err)
		}
	}
	return nil
}

func (s *Skeleton) mapPacketRing(ctx context.Context, p *process, v *vma.VmaEntry, blob []byte) error {
	if len(blob) != 4 {
		return fmt.Errorf("blob %s has %d bytes, not the 4 of a number", mem.PacketRingBlob(v.GetShmid()), len(blob))
	}
	fd, err := s.files.Duplicate(binary.LittleEndian.Uint32(blob))
	if err != nil {
		return err
	}
	if err := p.lend(ctx, os.NewFile(uintptr(fd), "packet socket"), sharedFD); err != nil {
		return err
	}
	var b remote.Batch
	r := mem.MapPacketRing(&b, v, sharedFD)
	if err := p.trap.Run(ctx, &b); err != nil {
		return fmt.Errorf("mapping them: %w", err)
	}
	return r.Err()
}
