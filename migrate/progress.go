package main

import (
	"fmt"
	"io"
	"sync/atomic"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/client"
)

// progress shows a running move: a live bar on a terminal, a line for each step and round elsewhere, nothing where
// the answer is to be JSON.
type progress struct {
	w     io.Writer
	quiet bool
	live  *mpb.Progress
	bar   *mpb.Bar
	now   atomic.Pointer[clusterapi.Migration]

	phase  clusterapi.Phase // last one printed
	rounds int              // printed so far
	reason string           // last one printed
}

// barUnits is the resolution of the bar: the fraction of a round that is done, in thousandths.
const barUnits = 1000

// newProgress returns a view of the given mode: auto (live on a terminal, else lines), plain or none.
func newProgress(w io.Writer, mode string) *progress {
	p := &progress{w: w, quiet: mode == "none"}
	if mode != "auto" || !isTerminal(w) {
		return p
	}
	p.live = mpb.New(mpb.WithOutput(w), mpb.WithWidth(40))
	p.bar = p.live.AddBar(barUnits,
		mpb.PrependDecorators(decor.Any(func(decor.Statistics) string { return p.left() })),
		mpb.AppendDecorators(decor.Any(func(decor.Statistics) string { return p.right() })),
		mpb.BarRemoveOnComplete())
	return p
}

// show takes in one event.
func (p *progress) show(ev *clusterapi.MigrationEvent) {
	m := ev.GetMigration()
	p.now.Store(m)
	switch {
	case p.quiet:
	case p.live != nil:
		p.bar.SetCurrent(int64(m.GetProgress().GetRoundFraction() * (barUnits - 1)))
	default:
		p.lines(ev)
	}
}

// lines prints what is new in an event.
func (p *progress) lines(ev *clusterapi.MigrationEvent) {
	m := ev.GetMigration()
	rounds := m.GetProgress().GetRounds()
	for _, r := range rounds[min(p.rounds, len(rounds)):] {
		_, _ = fmt.Fprintf(p.w, "round %d: %d pages (%d zero, %d skipped), %s in %.0f ms; %d dirty after it\n", r.GetN(), r.GetPages(), r.GetZeroPages(), r.GetSkippedPages(), bytesText(r.GetBytesSent()), r.GetMs(), r.GetDirtyPagesAfter())
		p.rounds++
	}
	if why := client.OneLine(m.GetProgress().GetReason()); why != p.reason {
		p.reason = why
		_, _ = fmt.Fprintf(p.w, "blackout would be %.1f ms: %s\n", m.GetProgress().GetPredictedDowntimeMs(), why)
	}
	text := client.OneLine(ev.GetMessage())
	if m.GetPhase() != p.phase {
		p.phase = m.GetPhase()
		if text == "" {
			text = enumText(p.phase.String(), "PHASE_")
		}
	}
	if text != "" {
		_, _ = fmt.Fprintf(p.w, "%s: %s\n", m.GetId(), text)
	}
}

// left is the text before the bar.
func (p *progress) left() string {
	m := p.now.Load()
	if m == nil {
		return "waiting"
	}
	return fmt.Sprintf("%s %s -> %s  %s round %d ", m.GetWorkload(), m.GetSource(), m.GetDestination(), enumText(m.GetPhase().String(), "PHASE_"), m.GetProgress().GetRound())
}

// right is the text after the bar.
func (p *progress) right() string {
	x := p.now.Load().GetProgress()
	slow := ""
	if p := x.GetThrottlePercent(); p > 0 {
		slow = fmt.Sprintf(", slowed down by %d %%", p)
	}
	return fmt.Sprintf(" %s/s, %d pages left, writes %.0f pages/s, blackout would be %.1f ms%s", bytesText(uint64(x.GetBytesPerSecond())), x.GetPagesRemaining(), x.GetDirtyPagesPerSecond(), x.GetPredictedDowntimeMs(), slow)
}

// close ends the live view, so that what is printed next stands below it.
func (p *progress) close() {
	if p.live == nil {
		return
	}
	p.bar.Abort(true)
	p.live.Wait()
}
