package restore

import (
	"errors"
	"testing"
)

func TestFindHole(t *testing.T) {
	big := []extent{{0x400000, 0x500000}, {0x7ffff0000000, 0x7ffff7fff000}}
	at, err := findHole(1<<20, big, []extent{{0x5000_0000_0000, 0x5000_0000_1000}})
	if err != nil || at%4096 != 0 {
		t.Fatalf("%v, %v", at, err)
	}
	if uint64(at) < 0x500000 || uint64(at)+1<<20 > 0x7ffff0000000 {
		t.Errorf("%v is not free", at)
	}
	full := []extent{{lowestHole, highestHole}}
	if _, err := findHole(4096, full); !errors.Is(err, ErrNoRoom) {
		t.Errorf("a full address space: %v", err)
	}
	almost := []extent{{lowestHole, 1 << 40}, {1<<40 + 3<<20, highestHole}}
	if at, err := findHole(1<<20, almost); err != nil || at != 1<<40+1<<20 {
		t.Errorf("%v, %v", at, err)
	}
}
