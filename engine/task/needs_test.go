//go:build linux

package task

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"migrate/engine"
	"migrate/engine/procfs"
)

func TestNeeds(t *testing.T) {
	n, err := ReadNeeds(procfs.Host, []*engine.Process{{PID: os.Getpid()}, {PID: 1 << 23}})
	if err != nil || len(n.Processes) != 1 || len(n.Processes[0].Limits) != procfs.NumLimits {
		t.Fatalf("%+v, %v", n, err)
	}
	b, err := n.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	back, err := UnmarshalNeeds(b)
	if d := cmp.Diff(n, back); err != nil || d != "" {
		t.Errorf("%v %s", err, d)
	}
	if found, err := CheckNeeds(n); err != nil || len(found) != 0 {
		t.Errorf("this process could not move to its own host: %v, %v", found, err)
	}
	n.Processes[0].CPUs = []int{0, 8000}
	n.Processes[0].Capabilities = 1 << 63
	found, err := CheckNeeds(n)
	if err != nil || len(found) != 2 || !strings.Contains(found[0].String(), "[8000]") {
		t.Errorf("%v, %v", found, err)
	}
}

func FuzzUnmarshalNeeds(f *testing.F) {
	f.Add([]byte(`{"processes":[{"pid":1,"limits":[{"Soft":1,"Hard":2}],"cpus":[1]}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if n, err := UnmarshalNeeds(b); err == nil {
			if _, err := CheckNeeds(n); err != nil {
				t.Error(err)
			}
		}
	})
}
