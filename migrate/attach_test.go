//go:build linux

package main

import (
	"bytes"
	"testing"
)

// TestDetachKeys passes everything on but the whole of the keys.
func TestDetachKeys(t *testing.T) {
	for _, c := range []struct {
		keys, in, want string
		left           bool
	}{
		{"ctrl-p,ctrl-q", "abc", "abc", false},
		{"ctrl-p,ctrl-q", "a\x10", "a", false},
		{"ctrl-p,ctrl-q", "a\x10b", "a\x10b", false},
		{"ctrl-p,ctrl-q", "a\x10\x10\x11b", "a\x10", true},
		{"ctrl-p,ctrl-q", "\x10\x10\x10x", "\x10\x10\x10x", false},
		{"a,a,b", "aaab", "a", true},
		{"a,b,a,c", "ababac", "ab", true},
		{"ctrl-]", "x\x1dy", "x", true},
		{"", "\x10\x11", "\x10\x11", false},
	} {
		keys, err := parseKeys(c.keys)
		if err != nil {
			t.Fatal(err)
		}
		ty := newTyped(keys)
		for i := range len(c.in) { // in pieces, as they are typed
			ty.add([]byte(c.in[i : i+1]))
		}
		_, got, _, _ := ty.next()
		if string(got) != c.want || ty.left != c.left {
			t.Errorf("%s: %q gives %q, %v; want %q, %v", c.keys, c.in, got, ty.left, c.want, c.left)
		}
	}
	for _, bad := range []string{"ctrl-", "ctrl-pp", "xy", "ctrl-p,"} {
		if keys, err := parseKeys(bad); err == nil {
			t.Errorf("%q is taken as %v", bad, keys)
		}
	}
}

// TestTypedAgain sends what was not taken again, and nothing twice.
func TestTypedAgain(t *testing.T) {
	ty := newTyped(nil)
	step := func(offset uint64, data string) {
		t.Helper()
		o, d, _, _ := ty.next()
		if o != offset || !bytes.Equal(d, []byte(data)) {
			t.Fatalf("%d, %q, want %d, %q", o, d, offset, data)
		}
	}
	ty.add([]byte("0123456789"))
	step(0, "0123456789")
	step(10, "")
	ty.taken(4)
	ty.add([]byte("ab"))
	step(10, "ab")
	ty.resume(6, true)
	step(6, "6789ab")
	ty.taken(5) // late
	ty.add([]byte("cd"))
	step(12, "cd")
	ty.resume(0, false) // an agent that knows nothing: what was sent may have arrived
	ty.add([]byte("ef"))
	step(0, "ef")
}
