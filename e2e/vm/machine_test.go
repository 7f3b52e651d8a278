//go:build linux

package main

import (
	"io"
	"strings"
	"testing"
)

func TestListen(t *testing.T) {
	for console, want := range map[string]string{
		"":                                    "",
		"noise\r\nVM VERDICT: PASS\r\n":       "PASS",
		"VM VERDICT: PASS":                    "PASS",
		"x VM VERDICT: PASS\n":                "",
		"VM VERDICT: PASS\nVM VERDICT: bad\n": "bad",
	} {
		if got, err := listen(strings.NewReader(console), io.Discard); err != nil || got != want {
			t.Errorf("%q: got %q, %v; want %q", console, got, err, want)
		}
	}
}
