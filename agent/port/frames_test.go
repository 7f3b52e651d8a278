//go:build linux

package port

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"reflect"
	"testing"
)

func TestFrames(t *testing.T) {
	in := []Frame{
		{Data: bytes.Repeat([]byte{1}, 14)},
		{Offload: [10]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, Data: bytes.Repeat([]byte{2}, 65000)},
	}
	b := MarshalFrames(in)
	if len(b) != Size(in) {
		t.Errorf("%d bytes, Size says %d", len(b), Size(in))
	}
	out, err := UnmarshalFrames(b)
	if err != nil || !reflect.DeepEqual(in, out) {
		t.Errorf("frames differ: %v", err)
	}
	if out, err := UnmarshalFrames(MarshalFrames(nil)); err != nil || len(out) != 0 {
		t.Errorf("no frames: %v %v", out, err)
	}
	for name, spoil := range map[string]func([]byte) []byte{
		"empty":    func([]byte) []byte { return nil },
		"magic":    func(b []byte) []byte { b[0]++; return b },
		"count":    func(b []byte) []byte { b[4] = 255; return b },
		"one more": func(b []byte) []byte { b[7]++; return b },
		"length":   func(b []byte) []byte { binary.BigEndian.PutUint32(b[8:], 1<<30); return b },
		"short":    func(b []byte) []byte { binary.BigEndian.PutUint32(b[8:], 13); return b },
		"cut":      func(b []byte) []byte { return b[:len(b)-1] },
		"trailing": func(b []byte) []byte { return append(b, 0) },
	} {
		if _, err := UnmarshalFrames(spoil(bytes.Clone(b))); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzUnmarshalFrames(f *testing.F) {
	f.Add(MarshalFrames([]Frame{{Data: make([]byte, 60)}, {Data: make([]byte, 14)}}))
	f.Add(MarshalFrames(nil))
	f.Add([]byte("MGF1\x00\x0f\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		frames, err := UnmarshalFrames(b)
		if err == nil && !bytes.Equal(MarshalFrames(frames), b) {
			t.Error("encoded again, the frames differ")
		}
	})
}

func TestAnnouncement(t *testing.T) {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 0x50}
	arp := announcement(mac, netip.MustParseAddr("10.77.0.50"))
	want := []byte{
		0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 0x50, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1,
		2, 0, 0, 0, 0, 0x50, 10, 77, 0, 50, 0, 0, 0, 0, 0, 0, 10, 77, 0, 50,
	}
	if !bytes.Equal(arp, want) {
		t.Errorf("gratuitous ARP\n% x, want\n% x", arp, want)
	}
	na := announcement(mac, netip.MustParseAddr("fd77::50"))
	if len(na) != 14+40+32 || na[14+6] != protoICMPv6 || na[14+7] != 255 || na[54] != 136 || na[58] != 0x20 {
		t.Errorf("neighbour advertisement % x", na)
	}
	// A message with its checksum in place sums to zero.
	body := bytes.Clone(na[54:])
	if sum := icmpv6Checksum(netip.MustParseAddr("fd77::50"), netip.MustParseAddr("ff02::1"), body); sum != 0 {
		t.Errorf("checksum is off by %#x", sum)
	}
}
