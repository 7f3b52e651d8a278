//go:build linux

package bench

import (
	"context"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"slices"
	"testing"
	"text/tabwriter"
	"time"

	"migrate/e2e/lab"
	"migrate/engine/kernel/kerneltest"
)

// The floors and ceilings that the figures are held against.
const (
	maxBlackout  = 40.0 // ms, median
	maxApart     = 2.0  // ms between the reported blackout and the heartbeat, median
	minStopRatio = 50.0 // blackout of stop-and-copy to that of pre-copy, for the largest size
	minStream    = 0.6  // throughput of the first round to that of the plain stream
	maxSpread    = 1.5  // largest median blackout to the smallest, over the sizes
)

func median(v []float64) float64 {
	s := slices.DeleteFunc(slices.Clone(v), math.IsNaN)
	if len(s) == 0 {
		return math.NaN()
	}
	slices.Sort(s)
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

func worst(v []float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	return slices.Max(v)
}

// verdict counts what misses its floor; what was not measured misses it too.
type verdict struct{ missed int }

func (v *verdict) of(met bool) string {
	if met {
		return "met"
	}
	v.missed++
	return "MISSED"
}

// printTable prints the figures with their floors and returns how many are missed.
func printTable(out io.Writer, rows []figures) int {
	if len(rows) == 0 {
		return 0
	}
	var v verdict
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(name, value, floor, verdict string) {
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", name, value, floor, verdict)
	}
	_, _ = fmt.Fprintln(w)
	line("FIGURE", "MEASURED", "FLOOR", "")
	var blackouts []float64
	largest := slices.MaxFunc(rows, func(a, b figures) int { return a.mib - b.mib }).mib
	for _, f := range rows {
		b := median(f.blackout)
		blackouts = append(blackouts, b)
		size := fmt.Sprintf("%d MiB: ", f.mib)
		line(size+"blackout, median of "+fmt.Sprint(len(f.blackout)), fmt.Sprintf("%.1f ms (worst %.1f)", b, worst(f.blackout)), fmt.Sprintf("< %.0f ms", maxBlackout), v.of(b < maxBlackout))
		line(size+"heartbeat's gap across the move", fmt.Sprintf("%.1f ms (worst %.1f)", median(f.gap), worst(f.gap)), "", "")
		line(size+"predicted blackout", fmt.Sprintf("%.1f ms (worst %.1f)", median(f.predicted), worst(f.predicted)), "", "")
		line(size+"rounds, and time of a move", fmt.Sprintf("%.0f, %.0f ms", median(f.rounds), median(f.total)), "", "")
		line(size+"gap and blackout apart, median", fmt.Sprintf("%.2f ms (worst %.2f)", median(f.apart), worst(f.apart)), fmt.Sprintf("<= %.0f ms", maxApart), v.of(median(f.apart) <= maxApart))
		line(size+"longest gap while it is copied", fmt.Sprintf("%.1f ms (worst %.1f)", median(f.waits), worst(f.waits)),
			fmt.Sprintf("%.1f ms (worst %.1f)", median(f.aside), worst(f.aside)), "during the plain stream")
		ratio, floor, held := median(f.stop)/b, "", ""
		if f.mib == largest {
			floor, held = fmt.Sprintf(">= %.0f times", minStopRatio), v.of(ratio >= minStopRatio)
		}
		line(size+"stop, copy all, restore: blackout", fmt.Sprintf("%.0f ms, %.1f times as long", median(f.stop), ratio), floor, held)
		share := median(f.round) / median(f.stream)
		line(size+"first round to plain TLS 1.3", fmt.Sprintf("%.2f (%.0f of %.0f MB/s)", share, median(f.round)/1e6, median(f.stream)/1e6), fmt.Sprintf(">= %.1f", minStream), v.of(share >= minStream))
		line(size+"pages written per second meanwhile", fmt.Sprintf("%.0f", median(f.rate)), fmt.Sprint(*dirtyRate), f.tracker)
	}
	if len(rows) > 1 {
		spread := slices.Max(blackouts) / slices.Min(blackouts)
		line("largest blackout to smallest, over the sizes", fmt.Sprintf("%.2f", spread), fmt.Sprintf("<= %.1f", maxSpread), v.of(spread <= maxSpread))
	}
	_ = w.Flush() // to standard output; there is nowhere else to complain
	return v.missed
}

// TestStream tries the plain stream on its own, between hosts whose agents do nothing.
func TestStream(t *testing.T) {
	kerneltest.Root(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r := &rig{share: t.TempDir()}
	if err := copyFile(filepath.Join(r.share, streamProgram), "/proc/self/exe"); err != nil {
		t.Fatal(err)
	}
	var err error
	r.hosts, err = lab.Up(ctx, lab.Options{StateDir: filepath.Join(t.TempDir(), "lab"), Hosts: 2, Agent: []string{"sleep", "1000"}, Share: []string{r.share}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.hosts.Down(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	}()
	rate, err := r.stream(ctx, r.hosts.Host("host1"), r.hosts.Host("host2"), 300<<20)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%.0f MB/s", rate/1e6)
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want float64
	}{{[]float64{3, 1, 2}, 2}, {[]float64{4, 1, 2, 3}, 2.5}, {[]float64{math.NaN(), 5}, 5}} {
		if got := median(c.in); got != c.want {
			t.Errorf("median of %v is %v, want %v", c.in, got, c.want)
		}
	}
	if !math.IsNaN(median(nil)) {
		t.Error("the median of nothing is a number")
	}
}

func TestTableCountsMisses(t *testing.T) {
	good := figures{mib: 64, blackout: []float64{10}, apart: []float64{0.5}, stop: []float64{600}, round: []float64{7e8}, stream: []float64{1e9}}
	if n := printTable(io.Discard, []figures{good}); n != 0 {
		t.Errorf("%d floors are missed, want none", n)
	}
	bad := figures{mib: 64, blackout: []float64{50}, apart: []float64{3}, stop: []float64{600}, round: []float64{5e8}, stream: []float64{1e9}}
	if n := printTable(io.Discard, []figures{bad}); n != 4 {
		t.Errorf("%d floors are missed, want 4", n)
	}
	if n := printTable(io.Discard, []figures{{mib: 64}}); n != 4 {
		t.Errorf("%d floors are missed without figures, want 4", n)
	}
}
