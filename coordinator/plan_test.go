package coordinator

import (
	"fmt"
	"testing"

	clusterapi "migrate/coordinator/api"
)

// TestPlanLooksAgain: a file that is gone a moment later is no obstacle, one that stays missing is, and a program that always lacks
// another file is refused in the end.
func TestPlanLooksAgain(t *testing.T) {
	w := start(t, true)
	w.run("w")
	for _, c := range []struct {
		name        string
		lacks       func(look int) string
		looks, want int
	}{
		{"passing", func(n int) string { return []string{"/tmp/a", "/tmp/b", ""}[n-1] }, 3, 0},
		{"lasting", func(int) string { return "/srv/data" }, 2, 1},
		{"always others", func(n int) string { return fmt.Sprintf("/tmp/%d", n) }, 0, 1},
	} {
		looks := 0
		lacks := func() string { looks++; return c.lacks(looks) }
		w.agents["host2"].lacks.Store(&lacks)
		plan, err := w.cluster.Plan(t.Context(), &clusterapi.PlanRequest{Target: &clusterapi.Target{What: &clusterapi.Target_Workload{Workload: "w"}}, Destination: "host2"})
		if err != nil || len(plan.GetObstacles()) != c.want || c.looks > 0 && looks != c.looks || looks > 10 {
			t.Errorf("%s: after %d looks %v, %v", c.name, looks, plan.GetObstacles(), err)
		}
	}
}
