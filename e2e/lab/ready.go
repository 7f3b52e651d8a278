//go:build linux

package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"migrate/e2e/lab/boot"
)

// AwaitCluster returns when n hosts have been heard by a leader, as host1 sees it: from then on workloads can be run and moved.
func (l *Lab) AwaitCluster(ctx context.Context, n int) error {
	// Before the agents have found each other there is no event to wait for, so it is asked again.
	const again = 50 * time.Millisecond
	for {
		var nodes []struct {
			Up     bool `json:"up"`
			Leader bool `json:"leader"`
		}
		out, err := l.Host("host1").Exec(ctx, boot.ProgramPath, "nodes", "-o", "json")
		if err == nil {
			err = json.Unmarshal([]byte(out), &nodes)
		}
		up, leader := 0, false
		for _, x := range nodes {
			if x.Up {
				up++
			}
			leader = leader || x.Leader
		}
		if err == nil && up == n && leader {
			return nil
		}
		select {
		case <-ctx.Done():
			if err == nil {
				err = context.Cause(ctx)
			}
			return fmt.Errorf("%d of %d hosts have joined the cluster: %w", up, n, err)
		case <-time.After(again):
		}
	}
}
