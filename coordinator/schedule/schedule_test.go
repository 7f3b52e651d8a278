package schedule

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
)

func TestSpread(t *testing.T) {
	const gib = 1 << 30
	hosts := []Host{{"b", 8 * gib, 0}, {"a", 8 * gib, 0}, {"small", gib, 0}}
	placed, left := Spread([]Workload{{"little", gib / 2, nil}, {"big", 5 * gib, nil}, {"picky", gib, []string{"a", "b", "small"}}, {"huge", 9 * gib, nil}, {"second", 5 * gib, nil}}, hosts)
	want := []Placement{{"big", "a"}, {"second", "b"}, {"little", "a"}}
	if !reflect.DeepEqual(placed, want) {
		t.Errorf("placed %v, want %v", placed, want)
	}
	if want := []string{"huge", "picky"}; !reflect.DeepEqual(left, want) {
		t.Errorf("left %v, want %v", left, want)
	}
	if hosts[0].Workloads != 0 {
		t.Error("the caller's hosts were changed")
	}
}

// TestSpreadProperties: over random clusters, no host gets more than it has, nothing goes where it may not, each workload is placed
// or left exactly once, what is left fits nowhere, and order does not matter.
func TestSpreadProperties(t *testing.T) {
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 1))
		var hosts []Host
		for i := range r.IntN(6) {
			hosts = append(hosts, Host{Name: fmt.Sprint("h", i), Free: r.Uint64N(100), Workloads: r.IntN(3)})
		}
		var workloads []Workload
		for i := range r.IntN(12) {
			w := Workload{Name: fmt.Sprint("w", i), Size: r.Uint64N(40)}
			for _, h := range hosts {
				if r.IntN(4) == 0 {
					w.Not = append(w.Not, h.Name)
				}
			}
			workloads = append(workloads, w)
		}
		placed, left := Spread(workloads, hosts)
		check(t, seed, workloads, hosts, placed, left)
		r.Shuffle(len(hosts), func(i, j int) { hosts[i], hosts[j] = hosts[j], hosts[i] })
		r.Shuffle(len(workloads), func(i, j int) { workloads[i], workloads[j] = workloads[j], workloads[i] })
		if p, l := Spread(workloads, hosts); !reflect.DeepEqual(p, placed) || !reflect.DeepEqual(l, left) {
			t.Fatalf("seed %d: another order gives %v, %v instead of %v, %v", seed, p, l, placed, left)
		}
	}
}

func check(t *testing.T, seed uint64, workloads []Workload, hosts []Host, placed []Placement, left []string) {
	t.Helper()
	used, seen := map[string]uint64{}, map[string]int{}
	by := map[string]Workload{}
	for _, w := range workloads {
		by[w.Name] = w
	}
	for _, p := range placed {
		used[p.Host] += by[p.Workload].Size
		seen[p.Workload]++
		if slices.Contains(by[p.Workload].Not, p.Host) {
			t.Fatalf("seed %d: %v, where it may not go", seed, p)
		}
	}
	for _, h := range hosts {
		if used[h.Name] > h.Free {
			t.Fatalf("seed %d: %s has %d and got %d", seed, h.Name, h.Free, used[h.Name])
		}
	}
	for _, name := range left {
		seen[name]++
		for _, h := range hosts {
			if !slices.Contains(by[name].Not, h.Name) && h.room()-used[h.Name] >= by[name].Size {
				t.Fatalf("seed %d: %s was left, and %s has room for it", seed, name, h.Name)
			}
		}
	}
	for _, w := range workloads {
		if seen[w.Name] != 1 {
			t.Fatalf("seed %d: %s was decided %d times", seed, w.Name, seen[w.Name])
		}
	}
}
