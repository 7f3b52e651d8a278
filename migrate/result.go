package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	clusterapi "migrate/coordinator/api"
)

// moveResult is the JSON of `migrate move -o json`, a contract with scripts. Times are milliseconds.
type moveResult struct {
	ID                  string       `json:"id"`
	State               string       `json:"state"`
	Workload            string       `json:"workload"`
	Source              string       `json:"source"`
	Destination         string       `json:"destination"`
	PID                 int32        `json:"pid"`
	DestinationPID      int32        `json:"destination_pid"`
	Epoch               uint64       `json:"epoch"`
	DowntimeMS          float64      `json:"downtime_ms"`
	TotalMS             float64      `json:"total_ms"`
	PredictedDowntimeMS float64      `json:"predicted_downtime_ms"`
	Rounds              []round      `json:"rounds"`
	BytesSent           uint64       `json:"bytes_sent"`
	PagesSent           uint64       `json:"pages_sent"`
	Tracker             string       `json:"tracker"`
	Connections         []connection `json:"connections"`
	Outcome             string       `json:"outcome"`
	FrozenMS            float64      `json:"frozen_ms"`
	PagesRemaining      uint64       `json:"pages_remaining"`
	Copying             string       `json:"copying,omitempty"`
	ThrottlePercent     uint32       `json:"throttle_percent,omitempty"`
	Error               string       `json:"error"`
	Obstacles           []obstacle   `json:"obstacles,omitempty"`
	Steps               []step       `json:"steps,omitempty"`
}

// step is a part of the blackout. Its start is since the program stopped; parts of a step have its name before theirs.
type step struct {
	Name    string  `json:"name"`
	Host    string  `json:"host"`
	StartMS float64 `json:"start_ms"`
	MS      float64 `json:"ms"`
}

type round struct {
	N               uint32  `json:"n"`
	Pages           uint64  `json:"pages"`
	ZeroPages       uint64  `json:"zero_pages"`
	BytesSent       uint64  `json:"bytes_sent"`
	MS              float64 `json:"ms"`
	DirtyPagesAfter uint64  `json:"dirty_pages_after"`
	SkippedPages    uint64  `json:"skipped_pages"`
}

type connection struct {
	Local           string `json:"local"`
	Remote          string `json:"remote"`
	State           string `json:"state"`
	UnackedBytes    uint64 `json:"unacked_bytes"`
	UnreadBytes     uint64 `json:"unread_bytes"`
	FramesDelivered uint64 `json:"frames_delivered"`
	RTODuringMove   uint64 `json:"rto_during_move"`
}

func outcomeText(o clusterapi.Outcome) string {
	if o == clusterapi.Outcome_OUTCOME_UNSPECIFIED {
		return "undecided"
	}
	return enumText(o.String(), "OUTCOME_")
}

func resultOf(m *clusterapi.Migration) moveResult {
	p := m.GetProgress()
	r := moveResult{
		ID: m.GetId(), State: enumText(m.GetPhase().String(), "PHASE_"), Workload: m.GetWorkload(), Source: m.GetSource(), Destination: m.GetDestination(),
		PID: m.GetPid(), DestinationPID: m.GetDestinationPid(), Epoch: m.GetEpoch(), DowntimeMS: m.GetDowntimeMs(), TotalMS: m.GetTotalMs(),
		PredictedDowntimeMS: m.GetPredictedDowntimeMs(), BytesSent: p.GetBytesSent(), PagesSent: p.GetPagesSent(), Tracker: p.GetTracker(),
		Outcome: outcomeText(m.GetOutcome()), FrozenMS: m.GetFrozenMs(), PagesRemaining: p.GetPagesRemaining(), Copying: p.GetReason(), ThrottlePercent: p.GetThrottlePercent(), Error: m.GetError(),
		Rounds: []round{}, Connections: []connection{},
	}
	for _, x := range p.GetRounds() {
		r.Rounds = append(r.Rounds, round{x.GetN(), x.GetPages(), x.GetZeroPages(), x.GetBytesSent(), x.GetMs(), x.GetDirtyPagesAfter(), x.GetSkippedPages()})
	}
	for _, x := range m.GetSteps() {
		r.Steps = append(r.Steps, step{x.GetName(), x.GetHost(), x.GetStartMs(), x.GetMs()})
	}
	for _, c := range m.GetConnections() {
		r.Connections = append(r.Connections, connection{c.GetLocal(), c.GetRemote(), c.GetState(), c.GetUnackedBytes(), c.GetUnreadBytes(), c.GetFramesDelivered(), c.GetRtoDuringMove()})
	}
	return r
}

// printMove prints how a move ended, for people.
func printMove(w io.Writer, m *clusterapi.Migration) error {
	if m.GetOutcome() != clusterapi.Outcome_OUTCOME_MOVED {
		return nil // the error says it
	}
	r := resultOf(m)
	var pages, zero uint64
	for _, x := range r.Rounds {
		pages, zero = pages+x.Pages, zero+x.ZeroPages
	}
	_, err := fmt.Fprintf(w, "%s moved from %s to %s (pid %d, epoch %d): blackout %.1f ms, %.0f ms in all, %s, %d pages (%d zero), %s sent, %s\n",
		r.Workload, r.Source, r.Destination, r.DestinationPID, r.Epoch, r.DowntimeMS, r.TotalMS, count(len(r.Rounds), "round", "rounds"), pages, zero, bytesText(r.BytesSent), count(len(r.Connections), "connection", "connections"))
	if err == nil && r.ThrottlePercent > 0 {
		_, err = fmt.Fprintf(w, "At the end the program was slowed down by %d %%, so that its writing could be followed.\n", r.ThrottlePercent)
	}
	if limit := m.GetOptions().MaxDowntime(); err == nil && r.DowntimeMS > float64(limit)/float64(time.Millisecond) {
		_, err = fmt.Fprintf(w, "The blackout was longer than the %v of --max-downtime, which bounds the part at the source; --explain shows the rest.\n", limit)
	}
	return err
}

// printSteps prints what the blackout was spent on, for people: one line a step, those of a step under it.
func printSteps(w io.Writer, m *clusterapi.Migration) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "AT\tTOOK\tHOST\tSTEP")
	for _, x := range resultOf(m).Steps {
		depth := strings.Count(x.Name, "/")
		_, _ = fmt.Fprintf(t, "%.2f ms\t%.2f ms\t%s\t%s%s\n", x.StartMS, x.MS, x.Host, strings.Repeat("  ", depth), x.Name[strings.LastIndexByte(x.Name, '/')+1:])
	}
	if m.GetDowntimeMs() > 0 {
		_, _ = fmt.Fprintf(t, "%.2f ms\t\t%s\tthe program runs\n", m.GetDowntimeMs(), m.GetDestination())
	}
	return t.Flush()
}
