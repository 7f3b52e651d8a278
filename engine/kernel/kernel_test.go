package kernel

import (
	"errors"
	"strings"
	"testing"
)

func TestProbesAnswer(t *testing.T) {
	for _, f := range All() {
		err := f.Probe()
		var missing *MissingError
		if err != nil && !errors.As(err, &missing) {
			t.Errorf("%v: %v is no MissingError", f, err)
		}
		if again := f.Probe(); again != err {
			t.Errorf("%v: answered %v, then %v", f, err, again)
		}
		t.Logf("%v: %v", f, err)
	}
}

func TestMissingNamesVersion(t *testing.T) {
	calls := 0
	f := &Feature{Name: "teleportation", Since: "9.9", Need: "speed", probe: func() error { calls++; return errors.ErrUnsupported }}
	for range 2 {
		if f.Have() || calls != 1 {
			t.Errorf("probed %d times", calls)
		}
	}
	err := f.Probe()
	if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "9.9") || !strings.Contains(err.Error(), "teleportation") {
		t.Error(err)
	}
}
