package main

import "testing"

func TestRate(t *testing.T) {
	for text, want := range map[string]uint64{
		"100": 100, "100MiB": 100 << 20, "100MiB/s": 100 << 20, "1gbit": 125000000, "1.5MB": 1500000, "8kbit": 1000, "2G": 2 << 30,
		"": 0, "-1": 0, "0": 0, "many": 0, "1e30": 0, "nan": 0, "inf": 0,
	} {
		var r rate
		err := r.Set(text)
		if (err != nil) != (want == 0) || uint64(r) != want {
			t.Errorf("%q: %d, %v; want %d", text, r, err, want)
		}
	}
}
