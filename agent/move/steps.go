package move

import (
	"time"

	clusterapi "migrate/coordinator/api"
	"migrate/engine/span"
)

// stepsOf are the steps of a switch that a recorder has, which began when the program stopped, as the API has them.
func stepsOf(rec *span.Recorder, host string) []*clusterapi.Step {
	if rec == nil {
		return nil
	}
	var out []*clusterapi.Step
	for _, s := range rec.Spans() {
		out = append(out, &clusterapi.Step{Name: s.Name, StartMs: ms(s.Start), Ms: ms(s.Took), Host: host})
	}
	return out
}

// sinceStop returns a recorder for steps on this host of a program that was stopped at an instant of its monotonic clock.
func sinceStop(stopped time.Duration) *span.Recorder {
	return span.New(time.Now().Add(stopped - monotonic()))
}
