package policy

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A trace is the writing of a real program. For each tick it holds of how many pages that were written in it the write before was how many
// ticks ago, from which follows how many different pages were written in any time (the inter-reference intervals of P. J. Denning's working
// set). As a file it is the pages of the program, then a line for each tick: its microseconds and a number for each bucket, those at the
// end that are zero left out. Lines with # say how it was recorded.
type trace struct {
	name  string
	pages float64
	ticks []tick
	total time.Duration
}

type tick struct {
	end  time.Duration // since the beginning
	took time.Duration
	ago  [buckets]uint32
}

// Bucket k is for writes that are more than 1<<(k-1) and at most 1<<k ticks apart, the last but one for all that are further, and the last
// for the first write to a page.
const buckets = 14

func bucketOf(ago int) int {
	k := 0
	for ; ago > 1<<k && k < buckets-2; k++ {
	}
	return k
}

// since is how many pages of a tick had not been written in the n ticks before it.
func (t tick) since(n int) float64 {
	sum := 0.0
	for k, pages := range t.ago {
		low, high := 1<<k/2, 1<<k
		switch {
		case k >= buckets-2 || n <= low:
			sum += float64(pages)
		case n < high:
			sum += float64(pages) * float64(high-n) / float64(high-low)
		}
	}
	return sum
}

func (t *trace) resident() float64 { return t.pages }

// written takes the trace for one that begins again when it has ended.
func (t *trace) written(from, to time.Duration) float64 {
	to -= from.Truncate(t.total)
	from %= t.total
	first, _ := slices.BinarySearchFunc(t.ticks, from+1, func(x tick, at time.Duration) int { return int(x.end - at) })
	total, turn := 0.0, time.Duration(0)
	for n := 0; ; n++ {
		i := (first + n) % len(t.ticks)
		if n > 0 && i == 0 {
			turn += t.total
		}
		x := t.ticks[i]
		begin, end := turn+x.end-x.took, turn+x.end
		if begin >= to {
			return total
		}
		share := (min(to, end) - max(from, begin)).Seconds() / x.took.Seconds()
		total += share * x.since(n)
	}
}

// add adds a tick.
func (t *trace) add(x tick) {
	t.total += x.took
	x.end = t.total
	t.ticks = append(t.ticks, x)
}

func (t *trace) write(w io.Writer, how string) error {
	b := bufio.NewWriter(w)
	for line := range strings.Lines(how) {
		_, _ = fmt.Fprintf(b, "# %s\n", strings.TrimSpace(line)) // Flush has the error
	}
	_, _ = fmt.Fprintf(b, "%.0f\n", t.pages)
	for _, x := range t.ticks {
		_, _ = fmt.Fprint(b, x.took.Microseconds())
		last := buckets
		for ; last > 0 && x.ago[last-1] == 0; last-- {
		}
		for _, n := range x.ago[:last] {
			_, _ = fmt.Fprintf(b, " %d", n)
		}
		_ = b.WriteByte('\n')
	}
	return b.Flush()
}

func readTrace(path string) (*trace, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	t := &trace{name: strings.TrimSuffix(filepath.Base(path), ".trace")}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] == "#" {
			continue
		}
		n, err := strconv.ParseUint(f[0], 10, 32)
		if err != nil || len(f) > buckets+1 {
			return nil, fmt.Errorf("%s: %q is not a line of a trace", path, line)
		}
		if t.pages == 0 {
			t.pages = float64(n)
			continue
		}
		x := tick{took: time.Duration(n) * time.Microsecond}
		for k, s := range f[1:] {
			n, err := strconv.ParseUint(s, 10, 32)
			if err != nil {
				return nil, fmt.Errorf("%s: %q: %w", path, line, err)
			}
			x.ago[k] = uint32(n)
		}
		t.add(x)
	}
	if t.total == 0 {
		return nil, fmt.Errorf("%s has no ticks", path)
	}
	return t, nil
}

// recorded reads all traces of testdata.
func recorded(t *testing.T) []*trace {
	t.Helper()
	paths, err := filepath.Glob("testdata/*.trace")
	if err != nil {
		t.Fatal(err)
	}
	var list []*trace
	for _, p := range paths {
		x, err := readTrace(p)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, x)
	}
	return list
}

// A page that is written in each tick counts once in any time, one that is written in every fourth counts in each tick that it is written
// in, unless the time has had it.
func TestTraceCountsPagesOnce(t *testing.T) {
	x := &trace{pages: 100}
	for i := range 100 {
		k := tick{took: 10 * time.Millisecond}
		k.ago[bucketOf(1)] = 3
		if i%4 == 0 {
			k.ago[bucketOf(4)] = 5
		}
		x.add(k)
	}
	for _, c := range []struct {
		from, to time.Duration
		want     float64
	}{
		{0, 10 * time.Millisecond, 8}, {10 * time.Millisecond, 40 * time.Millisecond, 3}, {0, 80 * time.Millisecond, 8},
		{400 * time.Millisecond, 405 * time.Millisecond, 4}, {990 * time.Millisecond, 1010 * time.Millisecond, 8}, {2 * time.Second, 2080 * time.Millisecond, 8},
	} {
		if got := x.written(c.from, c.to); got != c.want {
			t.Errorf("%v to %v: %v pages, want %v", c.from, c.to, got, c.want)
		}
	}
}
