package port

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// Frame is an Ethernet frame as it was on its way between two devices of one kernel.
type Frame struct {
	// Offload is the kernel's struct virtio_net_hdr: which checksum is still to be filled in, and into which segments
	// the frame is to be cut (linux/virtio_net.h; fields are of the host's byte order, so both hosts must have the same).
	Offload [offloadLen]byte
	Data    []byte // from the destination's hardware address on
}

const (
	offloadLen  = 10
	ethernetLen = 14
	maxFrame    = 1 << 20 // bytes; the kernel's own limit for one is 512 KiB (GSO_MAX_SIZE)
	maxFrames   = 1 << 20
)

// Frames travel as
//
//	"MGF1"  frames uint32  { length uint32  offload [10]byte  data [length]byte } ...
//
// with big-endian numbers. length counts the data only.
var framesMagic = []byte("MGF1")

// MarshalFrames encodes frames for the other host.
func MarshalFrames(frames []Frame) []byte {
	b := append(make([]byte, 0, Size(frames)), framesMagic...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(frames)))
	for _, f := range frames {
		b = binary.BigEndian.AppendUint32(b, uint32(len(f.Data)))
		b = append(b, f.Offload[:]...)
		b = append(b, f.Data...)
	}
	return b
}

// UnmarshalFrames decodes what MarshalFrames wrote. The frames share b.
func UnmarshalFrames(b []byte) ([]Frame, error) {
	if len(b) < len(framesMagic)+4 || !bytes.Equal(b[:len(framesMagic)], framesMagic) {
		return nil, errors.New("captured frames: not in this format")
	}
	count := binary.BigEndian.Uint32(b[len(framesMagic):])
	b = b[len(framesMagic)+4:]
	// Each takes at least its own header, so a count that lies allocates nothing.
	if count > maxFrames || uint64(count)*(4+offloadLen+ethernetLen) > uint64(len(b)) {
		return nil, fmt.Errorf("captured frames: %d frames in %d bytes", count, len(b))
	}
	frames := make([]Frame, count)
	for i := range frames {
		if len(b) < 4+offloadLen {
			return nil, fmt.Errorf("captured frames: frame %d is cut off", i)
		}
		n := binary.BigEndian.Uint32(b)
		copy(frames[i].Offload[:], b[4:])
		b = b[4+offloadLen:]
		if n < ethernetLen || n > maxFrame || uint64(n) > uint64(len(b)) {
			return nil, fmt.Errorf("captured frames: frame %d has a length of %d bytes, %d are left", i, n, len(b))
		}
		frames[i].Data = b[:n:n]
		b = b[n:]
	}
	if len(b) > 0 {
		return nil, fmt.Errorf("captured frames: %d bytes after the last one", len(b))
	}
	return frames, nil
}

// Size is the number of bytes that the frames take when marshalled.
func Size(frames []Frame) int {
	n := len(framesMagic) + 4
	for _, f := range frames {
		n += 4 + offloadLen + len(f.Data)
	}
	return n
}
