package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/client"
)

func newEventsCommand() *cobra.Command {
	req := &clusterapi.EventsRequest{}
	var since, output string
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show what the cluster has decided and seen",
		Long: "Prints what became of hosts, workloads and moves, as the replicated log has it: every server tells the same, in the same order, under\n" +
			"the same numbers. The newest 4,096 events are kept; when older ones were asked for, the first line says how many are missing.\n" +
			"With -f it goes on, also across changes of the leader, without losing or repeating one. A script that has read up to event N goes\n" +
			"on with --after N.",
		Example: "  migrate events --since 10m\n  migrate events -f\n  migrate events -f --after 1234 -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if req.SinceUnixNs, err = sinceTime(since, time.Now()); err != nil {
				return err
			}
			show, err := eventPrinter(cmd.OutOrStdout(), output)
			if err != nil {
				return err
			}
			return withAPI(cmd, func(ctx context.Context, a *api) error {
				err := client.Events(ctx, a.cluster, req, show)
				if req.GetFollow() && ctx.Err() != nil {
					return nil // Ctrl-C is how one stops reading
				}
				return err
			})
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&req.Follow, "follow", "f", false, "go on with what happens")
	f.StringVar(&since, "since", "", "only what is not older: a time back from now (10m) or an instant (2006-01-02T15:04:05Z)")
	f.Uint64Var(&req.After, "after", 0, "only what comes after the event with this index")
	addOutputFlag(cmd, &output)
	return cmd
}

// sinceTime is an instant in nanoseconds since 1970 from what --since takes; 0 for nothing.
func sinceTime(s string, now time.Time) (int64, error) {
	if s == "" {
		return 0, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d).UnixNano(), nil
	}
	if at, err := time.Parse(time.RFC3339, s); err == nil {
		return at.UnixNano(), nil
	}
	return 0, fmt.Errorf("--since %q is neither a time back from now, such as 10m, nor an instant such as 2006-01-02T15:04:05Z", s)
}

// event is how an event is printed.
type event struct {
	Index       uint64  `json:"index"`
	LogIndex    uint64  `json:"log_index"`
	UnixNS      int64   `json:"unix_ns"`
	Kind        string  `json:"kind"`
	Host        string  `json:"host,omitempty"`
	Workload    string  `json:"workload,omitempty"`
	Migration   string  `json:"migration,omitempty"`
	Source      string  `json:"source,omitempty"`
	Destination string  `json:"destination,omitempty"`
	State       string  `json:"state,omitempty"`
	Attempt     uint32  `json:"attempt,omitempty"`
	Outcome     string  `json:"outcome,omitempty"`
	DowntimeMS  float64 `json:"downtime_ms,omitempty"`
	Remaining   *uint32 `json:"remaining,omitempty"`
	Text        string  `json:"text"`
}

func eventOf(e *clusterapi.Event) event {
	out := event{Index: e.GetIndex(), LogIndex: e.GetLogIndex(), UnixNS: e.GetUnixNs(), Kind: enumText(e.GetKind().String(), "EVENT_KIND_"), Host: e.GetHost(),
		Workload: e.GetWorkload(), Migration: e.GetMigration(), Source: e.GetSource(), Destination: e.GetDestination(), Attempt: e.GetAttempt(),
		DowntimeMS: e.GetDowntimeMs(), Text: e.GetText()}
	if e.GetMigration() != "" {
		out.State = enumText(e.GetPhase().String(), "PHASE_")
	}
	if e.GetOutcome() != clusterapi.Outcome_OUTCOME_UNSPECIFIED {
		out.Outcome = outcomeText(e.GetOutcome())
	}
	switch e.GetKind() {
	case clusterapi.EventKind_EVENT_KIND_MISSED, clusterapi.EventKind_EVENT_KIND_DRAIN_BEGUN, clusterapi.EventKind_EVENT_KIND_DRAIN_PROGRESS,
		clusterapi.EventKind_EVENT_KIND_DRAIN_DONE, clusterapi.EventKind_EVENT_KIND_DRAIN_ENDED:
		out.Remaining = &e.Remaining
	}
	return out
}

// eventPrinter prints one event to a line.
func eventPrinter(w io.Writer, format string) (func(*clusterapi.Event) error, error) {
	switch format {
	case "json":
		enc := json.NewEncoder(w)
		return func(e *clusterapi.Event) error { return enc.Encode(eventOf(e)) }, nil
	case "text", "":
		return func(e *clusterapi.Event) error {
			o := eventOf(e)
			id := o.Migration
			if id != "" {
				id = " (" + id + ")"
			}
			_, err := fmt.Fprintf(w, "%-6d %s  %-19s %s%s\n", o.Index, time.Unix(0, o.UnixNS).Format("2006-01-02 15:04:05.000"), o.Kind, client.OneLine(o.Text), id)
			return err
		}, nil
	}
	return nil, fmt.Errorf("output format %q is not known: use text or json", format)
}
