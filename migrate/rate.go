package main

import (
	"fmt"
	"strconv"
	"strings"
)

// rate is a flag that holds bytes per second. It takes bytes (100MB, 100MiB, with an optional "/s") and bits (1gbit, 500mbit).
type rate uint64

var rateUnits = []struct {
	suffix string
	factor float64
}{
	{"kib", 1 << 10}, {"mib", 1 << 20}, {"gib", 1 << 30}, {"kbit", 1e3 / 8}, {"mbit", 1e6 / 8}, {"gbit", 1e9 / 8},
	{"kb", 1e3}, {"mb", 1e6}, {"gb", 1e9}, {"k", 1 << 10}, {"m", 1 << 20}, {"g", 1 << 30}, {"b", 1},
}

// Set parses a rate.
func (r *rate) Set(s string) error {
	text, factor := strings.TrimSuffix(strings.ToLower(strings.TrimSpace(s)), "/s"), 1.0
	for _, u := range rateUnits {
		if t, ok := strings.CutSuffix(text, u.suffix); ok {
			text, factor = t, u.factor
			break
		}
	}
	v, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
	if err != nil || !(v > 0) || v*factor < 1 || v*factor > 1e15 {
		return fmt.Errorf("%q is not a rate: write bytes per second as 100MiB or bits as 1gbit", s)
	}
	*r = rate(v * factor)
	return nil
}

// String prints the rate in bytes per second; the unset rate is empty.
func (r *rate) String() string {
	if *r == 0 {
		return ""
	}
	return strconv.FormatUint(uint64(*r), 10)
}

// Type is the name of the flag's value in --help.
func (r *rate) Type() string { return "rate" }
