//go:build linux

package bpf

import "testing"

func FuzzBTF(f *testing.F) {
	f.Add([]byte{0x9f, 0xeb, 1, 0, 24, 0, 0, 0, 0, 0, 0, 0, 12, 0, 0, 0, 12, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 4, 8, 0, 0, 0, 0, 'x', 0})
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = parseBTF(b, []string{"x"}) })
}
