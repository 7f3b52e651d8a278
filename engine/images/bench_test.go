package images

import "testing"

func BenchmarkUnmarshal(b *testing.B) {
	raw, err := sample().Marshal()
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := Unmarshal(raw); err != nil {
			b.Fatal(err)
		}
	}
}
