package sock

import (
	"encoding/binary"
	"fmt"
)

// MaxQueue bounds the bytes and MaxMessages the messages of one queue in an image.
const (
	MaxQueue    = 1 << 30
	MaxMessages = 1 << 20
)

// A Message is what one read of the queue yields: a datagram or record, or a stretch of a stream.
type Message struct {
	Data []byte
	From []byte // datagrams: raw address of the sender (struct sockaddr), empty when it had none
}

// EncodeQueue lays messages out as the blob of an image:
//
//	+-----------+------+-----------+------+-----+
//	| data size | data | from size | from | ... |   sizes are 4 bytes, little-endian
//	+-----------+------+-----------+------+-----+
func EncodeQueue(msgs []Message) []byte {
	size := 0
	for _, m := range msgs {
		size += 8 + len(m.Data) + len(m.From)
	}
	out := make([]byte, 0, size)
	for _, m := range msgs {
		for _, p := range [][]byte{m.Data, m.From} {
			out = binary.LittleEndian.AppendUint32(out, uint32(len(p)))
			out = append(out, p...)
		}
	}
	return out
}

// DecodeQueue reads what EncodeQueue wrote; the messages share its memory.
func DecodeQueue(b []byte) ([]Message, error) {
	var msgs []Message
	part := func() ([]byte, error) {
		if len(b) < 4 {
			return nil, fmt.Errorf("message %d of the queue: %d bytes where a size should be", len(msgs), len(b))
		}
		n := binary.LittleEndian.Uint32(b)
		if uint64(n) > uint64(len(b)-4) {
			return nil, fmt.Errorf("message %d of the queue: a part of %d bytes in %d", len(msgs), n, len(b)-4)
		}
		p := b[4 : 4+n]
		b = b[4+n:]
		return p, nil
	}
	for len(b) > 0 {
		if len(msgs) == MaxMessages {
			return nil, fmt.Errorf("a queue of more than %d messages", MaxMessages)
		}
		var m Message
		var err error
		if m.Data, err = part(); err != nil {
			return nil, err
		}
		if m.From, err = part(); err != nil {
			return nil, err
		}
		msgs = append(msgs, m)
	}
	return msgs, nil
}
