package policy

import (
	"fmt"
	"strings"
	"testing"
	"text/tabwriter"
	"time"
)

// timeout is that of a move, unless it is told another.
const timeout = 5 * time.Minute

// TestAgainstOtherRules copies all programs by this policy, by at most eight rounds, and by what is left over the bandwidth, and prints
// what comes of it. The policy never breaks the bound. Where another rule keeps it, too, its blackout is not clearly shorter.
func TestAgainstOtherRules(t *testing.T) {
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "program\tpolicy\tGB\trounds\ts\teight rounds\tGB\trounds\ts\tleft/bandwidth\tGB\trounds\ts")
	broken := map[string]int{}
	for _, s := range scenarios(t) {
		rules := []struct {
			name string
			rule
		}{{"policy", &ours{}}, {"eight rounds", &eightRounds{}}, {"left/bandwidth", &bandwidth{}}}
		_, _ = fmt.Fprint(w, s.name)
		var mine result
		for i, ru := range rules {
			r := simulate(s.p, s.w, ru, s.b, timeout, false)
			over := r.switched && r.blackout > s.b.MaxDowntime
			if over {
				broken[ru.name]++
			}
			_, _ = fmt.Fprintf(w, "\t%s\t%.2f\t%d\t%.1f", r.text(s.b), r.pages*4096/1e9, r.rounds, r.copied.Seconds())
			switch {
			case i == 0:
				mine = r
				s.judge(t, r)
			case r.switched && !over && mine.switched && mine.blackout > r.blackout+max(2*time.Millisecond, r.blackout/10):
				t.Errorf("%s: the blackout is %v, with the rule of %s %v", s.name, mine.blackout, ru.name, r.blackout)
			}
		}
		_, _ = fmt.Fprintln(w)
	}
	_ = w.Flush() // to memory
	t.Logf("blackouts in ms, ! where one is over the bound\n%s", out.String())
	if broken["policy"] > 0 || broken["eight rounds"] == 0 || broken["left/bandwidth"] == 0 {
		t.Errorf("bounds that were broken: %v; want none by the policy, and some by the others, or the programs are too tame", broken)
	}
}

// judge holds a copy by the policy against what the scenario says.
func (s scenario) judge(t *testing.T, r result) {
	t.Helper()
	switch {
	case s.hopeless && r.switched:
		t.Errorf("%s: it switches after %d rounds", s.name, r.rounds)
	case s.hopeless && r.gaveUp == 0:
		t.Errorf("%s: it does not say that it cannot converge", s.name)
	case s.hopeless && r.saidIn > 20:
		t.Errorf("%s: it needs %d rounds to see that it cannot converge", s.name, r.saidIn)
	case !s.hopeless && !r.switched:
		t.Errorf("%s: it does not switch in %d rounds", s.name, r.rounds)
	}
	// A program or link that is not steady, and noise, can be other in the freeze than just before it.
	if d := r.blackout - r.predicted; r.switched && d > max(3*time.Millisecond, r.blackout/5) {
		t.Errorf("%s: the blackout is %v, predicted was %v", s.name, r.blackout, r.predicted)
	}
}

func (r result) text(b Bounds) string {
	switch {
	case r.switched && r.blackout > b.MaxDowntime:
		return fmt.Sprintf("%.1f!", ms(r.blackout))
	case r.switched && r.predicted > 0:
		return fmt.Sprintf("%.1f (%.1f predicted)", ms(r.blackout), ms(r.predicted))
	case r.switched:
		return fmt.Sprintf("%.1f", ms(r.blackout))
	case r.gaveUp > 0:
		return fmt.Sprintf("never; says so after %d rounds", r.saidIn)
	}
	return "never"
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
