package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/client"
)

func newDrainCommand() *cobra.Command {
	req := &clusterapi.DrainRequest{}
	var deadline time.Duration
	var output string
	var detach bool
	cmd := &cobra.Command{
		Use:   "drain HOST",
		Short: "Move all workloads away from a host and give it no more",
		Long: "Takes a host out of use: nothing is started on it or moved to it any more, and its workloads move to the other hosts, the\n" +
			"largest first, to where the most memory is free. What no host can take stays, is named with the reasons, and is tried again\n" +
			"every 30 s. The cluster goes on with the drain whether this command watches or not (Ctrl-C, --detach); given again, it\n" +
			"changes the limits and watches on. After the deadline no move is begun any more. `migrate undrain` puts the host back into use.\n\n" +
			"Exit code 0 when nothing is left on the host, 1 when something stays. Programs that no agent has started or moved are not seen.",
		Example: "  migrate drain host2\n  migrate drain host2 --deadline 10m --max-parallel 4\n  migrate drain host2 -o json",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("deadline") && deadline <= 0 {
				return fmt.Errorf("--deadline %v is not a time above zero", deadline)
			}
			req.Node, req.DeadlineNs = args[0], deadline.Nanoseconds()
			return withAPI(cmd, func(ctx context.Context, a *api) error { return drainHost(ctx, cmd, a, req, detach, output) })
		},
	}
	f := cmd.Flags()
	f.DurationVar(&deadline, "deadline", 0, "time after which no move is begun any more (default: none)")
	f.Uint32Var(&req.MaxParallel, "max-parallel", 2, "moves at a time, from this host and to each other one")
	f.BoolVar(&detach, "detach", false, "do not wait for the end")
	addOutputFlag(cmd, &output)
	return cmd
}

func drainHost(ctx context.Context, cmd *cobra.Command, a *api, req *clusterapi.DrainRequest, detach bool, output string) error {
	r, err := a.cluster.Drain(ctx, req)
	if err != nil {
		return err
	}
	last := r.GetStatus()
	if !detach {
		view := &drainView{w: cmd.ErrOrStderr(), said: map[string]string{}}
		last, err = client.WatchDrain(ctx, a.cluster, req.GetNode(), view.show)
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s is drained on, without being watched; `migrate undrain %s` ends that", req.GetNode(), req.GetNode())
	}
	if err != nil {
		return err
	}
	result := drainResultOf(last)
	if err := printAs(cmd.OutOrStdout(), output, result, func(w io.Writer) error { return printDrain(w, result, detach) }); err != nil {
		return err
	}
	if !result.Empty && !detach {
		return &exitError{code: 1}
	}
	return nil
}

// drainView prints what becomes of each workload, a line for each change.
type drainView struct {
	w    io.Writer
	said map[string]string
}

func (v *drainView) show(s *clusterapi.DrainStatus) error {
	for _, i := range s.GetItems() {
		text := drainText(i)
		if text == "" || v.said[i.GetWorkload()] == text {
			continue
		}
		v.said[i.GetWorkload()] = text
		if _, err := fmt.Fprintf(v.w, "%s: %s\n", i.GetWorkload(), text); err != nil {
			return err
		}
	}
	return nil
}

// drainText says what became of a workload; nothing while it waits for its turn.
func drainText(i *clusterapi.DrainItem) string {
	switch i.GetState() {
	case clusterapi.DrainState_DRAIN_STATE_MOVING:
		return fmt.Sprintf("moving to %s (%s)", i.GetDestination(), i.GetMigration())
	case clusterapi.DrainState_DRAIN_STATE_MOVED:
		return fmt.Sprintf("moved to %s, %.1f ms of blackout", i.GetDestination(), i.GetDowntimeMs())
	case clusterapi.DrainState_DRAIN_STATE_STUCK:
		return "stays: " + client.OneLine(i.GetReason())
	}
	return ""
}

// drainResult is how a drain is printed.
type drainResult struct {
	Host        string          `json:"host"`
	BegunNS     int64           `json:"begun_unix_ns"`
	DeadlineNS  int64           `json:"deadline_unix_ns"`
	MaxParallel uint32          `json:"max_parallel"`
	Empty       bool            `json:"empty"`
	Expired     bool            `json:"expired"`
	Workloads   []drainWorkload `json:"workloads"`
}

type drainWorkload struct {
	Workload    string  `json:"workload"`
	State       string  `json:"state"`
	Migration   string  `json:"migration"`
	Destination string  `json:"destination"`
	DowntimeMS  float64 `json:"downtime_ms"`
	Reason      string  `json:"reason"`
}

func drainResultOf(s *clusterapi.DrainStatus) drainResult {
	r := drainResult{Host: s.GetNode(), BegunNS: s.GetBegunUnixNs(), DeadlineNS: s.GetDeadlineUnixNs(), MaxParallel: s.GetMaxParallel(),
		Empty: true, Expired: s.GetExpired(), Workloads: []drainWorkload{}}
	for _, i := range s.GetItems() {
		r.Empty = r.Empty && i.GetState() == clusterapi.DrainState_DRAIN_STATE_MOVED
		r.Workloads = append(r.Workloads, drainWorkload{Workload: i.GetWorkload(), State: enumText(i.GetState().String(), "DRAIN_STATE_"),
			Migration: i.GetMigration(), Destination: i.GetDestination(), DowntimeMS: i.GetDowntimeMs(), Reason: i.GetReason()})
	}
	return r
}

func printDrain(w io.Writer, r drainResult, detached bool) error {
	moved := 0
	for _, i := range r.Workloads {
		if i.State == "moved" {
			moved++
		}
	}
	left := len(r.Workloads) - moved
	text := fmt.Sprintf("%s is empty and out of use: %d moved; `migrate undrain %s` puts it back", r.Host, moved, r.Host)
	switch {
	case detached && left > 0:
		text = fmt.Sprintf("%s is being drained: %d to move; `migrate drain %s` watches it", r.Host, left, r.Host)
	case left > 0 && r.Expired:
		text = fmt.Sprintf("%s is not empty at its deadline: %d moved, %d stay", r.Host, moved, left)
	case left > 0:
		text = fmt.Sprintf("%s is not empty: %d moved, %d stay and are tried again; `migrate undrain %s` ends that", r.Host, moved, left, r.Host)
	}
	_, err := fmt.Fprintln(w, text)
	return err
}

func newUndrainCommand() *cobra.Command {
	req := &clusterapi.UndrainRequest{}
	cmd := &cobra.Command{
		Use:     "undrain HOST",
		Short:   "Put a drained host back into use",
		Long:    "Ends the drain of a host, and lets workloads be started on it and moved to it again. What has left it does not come back by\nitself. Moves that the drain has begun go on, unless --cancel-moves is given.",
		Example: "  migrate undrain host2\n  migrate undrain host2 --cancel-moves",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Node = args[0]
			return withAPI(cmd, func(ctx context.Context, a *api) error {
				r, err := a.cluster.Undrain(ctx, req)
				if err != nil {
					return err
				}
				text := args[0] + " takes workloads again"
				if n := len(r.GetMoving()); n > 0 && req.GetCancelMoves() {
					text += fmt.Sprintf("; %d moves away from it were cancelled or were past that: see `migrate status`", n)
				} else if n > 0 {
					text += fmt.Sprintf("; %d moves away from it go on: see `migrate status`", n)
				}
				_, werr := fmt.Fprintln(cmd.OutOrStdout(), text)
				return werr
			})
		},
	}
	cmd.Flags().BoolVar(&req.CancelMoves, "cancel-moves", false, "also cancel the moves that the drain has begun")
	return cmd
}
