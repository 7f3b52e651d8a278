package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	agentapi "migrate/agent/api"
	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/client"
)

// exitBlocked is the exit code of a plan that says that the move cannot go ahead.
const exitBlocked = 3

func newPlanCommand() *cobra.Command {
	var target targetFlags
	var files filesFlags
	var outside outsideFlags
	var to, output string
	cmd := &cobra.Command{
		Use:     "plan (NAME | --pid PID) --to HOST",
		Short:   "Say what would stop a move, and predict it, without touching anything",
		Example: "  migrate plan cache --to host2\n  migrate plan --pid 4711 --to host2 -o json",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts := &agentapi.MoveOptions{}
			if err := files.set(opts); err != nil {
				return err
			}
			if err := outside.setMove(opts); err != nil {
				return err
			}
			return withAPI(cmd, func(ctx context.Context, a *api) error {
				what, err := target.target(ctx, a, args)
				if err != nil {
					return err
				}
				r, err := a.cluster.Plan(ctx, &clusterapi.PlanRequest{Target: what, Destination: to, Options: opts})
				if err != nil {
					return err
				}
				p := planOf(r)
				if err := printAs(cmd.OutOrStdout(), output, p, p.print); err != nil {
					return err
				}
				if len(p.Obstacles) > 0 {
					return &exitError{code: exitBlocked}
				}
				return nil
			})
		},
	}
	target.add(cmd)
	files.add(cmd)
	outside.add(cmd, "that of migrate attach")
	cmd.Flags().StringVar(&to, "to", "", "destination host")
	_ = cmd.MarkFlagRequired("to") // fails for unknown flags only
	addOutputFlag(cmd, &output)
	return cmd
}

// obstacle is how a reason against a move is printed.
type obstacle struct {
	Host   string `json:"host"`
	PID    int32  `json:"pid"`
	Kind   string `json:"kind"`
	Where  string `json:"where"`
	Reason string `json:"reason"`
	Remedy string `json:"remedy"`
}

// plan is how a plan is printed.
type plan struct {
	Workload      string     `json:"workload"`
	Source        string     `json:"source"`
	Destination   string     `json:"destination"`
	PID           int32      `json:"pid"`
	Command       string     `json:"command"`
	Obstacles     []obstacle `json:"obstacles"`
	ResidentBytes uint64     `json:"resident_bytes"`
	Rounds        uint32     `json:"predicted_rounds"`
	TotalMS       float64    `json:"predicted_total_ms"`
	DowntimeMS    float64    `json:"predicted_downtime_ms"`
	Processes     uint32     `json:"processes"`
	Threads       uint32     `json:"threads"`
	Connections   uint32     `json:"connections"`
}

func obstaclesOf(list []*agentapi.Obstacle) []obstacle {
	out := make([]obstacle, 0, len(list))
	for _, o := range list {
		out = append(out, obstacle{o.GetHost(), o.GetPid(), o.GetKind(), o.GetWhere(), o.GetReason(), o.GetRemedy()})
	}
	return out
}

func planOf(r *clusterapi.PlanReply) *plan {
	f := r.GetFigures()
	return &plan{
		Workload: r.GetWorkload(), Source: r.GetSource(), Destination: r.GetDestination(), PID: r.GetPid(), Command: r.GetCommand(),
		Obstacles: obstaclesOf(r.GetObstacles()), ResidentBytes: f.GetResidentBytes(),
		Rounds: f.GetRounds(), TotalMS: f.GetTotalMs(), DowntimeMS: f.GetDowntimeMs(),
		Processes: f.GetProcesses(), Threads: f.GetThreads(), Connections: f.GetConnections(),
	}
}

func (p *plan) print(w io.Writer) error {
	name := p.Workload
	if name == "" {
		name = fmt.Sprintf("pid %d", p.PID)
	}
	_, _ = fmt.Fprintf(w, "%s (%s), %s -> %s\n", name, oneLine(p.Command), p.Source, p.Destination)
	_, _ = fmt.Fprintf(w, "  %s, %s, %s, %s resident\n", count(p.Processes, "process", "processes"), count(p.Threads, "thread", "threads"), count(p.Connections, "connection", "connections"), bytesText(p.ResidentBytes))
	if len(p.Obstacles) == 0 {
		_, err := fmt.Fprintf(w, "  predicted, if it writes little: %d rounds, %.0f ms in all, %.1f ms of blackout\nThe move can go ahead.\n", p.Rounds, p.TotalMS, p.DowntimeMS)
		return err
	}
	if err := printObstacles(w, p.Obstacles); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "The move cannot go ahead: %s.\n", count(len(p.Obstacles), "obstacle", "obstacles"))
	return err
}

func printObstacles(w io.Writer, list []obstacle) error {
	for _, o := range list {
		where := o.Host
		if o.PID != 0 {
			where += fmt.Sprintf(" pid %d", o.PID)
		}
		if o.Where != "" {
			where += ", " + o.Where
		}
		_, _ = fmt.Fprintf(w, "  - %s: %s [%s]\n", where, client.OneLine(o.Reason), o.Kind)
		if o.Remedy != "" {
			_, _ = fmt.Fprintf(w, "    %s\n", o.Remedy)
		}
	}
	return nil
}
