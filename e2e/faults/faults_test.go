//go:build linux

// Package faults breaks things at every step of a move: the agents, the leader, hosts, and the links between them. The steps are those
// of the state machines of coordinator/handoff, so that a new one cannot be forgotten. After each fault there must be exactly one copy
// of the program, with every write that it had acknowledged.
package faults

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"migrate/e2e/cluster"
)

var (
	only  = flag.String("only", "", "only the cases of the full matrix whose name, step and fault, contains this")
	seeds = flag.Uint64("seeds", 0, "how many pairs of faults, at random")
	first = flag.Uint64("seed", 1, "the first seed of them")
	full  = flag.Bool("full", false, "every step with every fault")
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(cluster.Main(m, "MIGRATE_FAILPOINT_SOCKET="+socket))
}

// outcome is a row of the table.
type outcome struct {
	step, fault string
	what        string // became of the move
	blackout    time.Duration
	took        time.Duration
	err         error
}

// TestAMoveReachesEveryStep: what follows would be worth nothing if the steps were not those of a real move.
func TestAMoveReachesEveryStep(t *testing.T) {
	r := newRig(t, time.Minute)
	o := r.one("", fault{name: "none"})
	if o.err != nil || o.what != "moved" {
		t.Fatalf("%s: %v", o.what, o.err)
	}
	reached := r.watch.points()
	for _, step := range steps() {
		if !slices.Contains(reached, step) {
			t.Errorf("the move has not come to %s", step)
		}
	}
}

// TestEveryStep has a fault at every step: one of the usual kinds, in turn, or with -full each of all kinds.
func TestEveryStep(t *testing.T) {
	r := newRig(t, 10*time.Hour)
	left := r.leavesNothing()
	var rows []outcome
	n := 0
	for i, step := range steps() {
		for k, f := range faults() {
			name := step + " / " + f.name
			switch {
			case *only != "" && strings.Contains(name, *only), *full:
			case *only == "" && strings.Contains(step, ".before") && k == i/2%usual:
			default:
				continue
			}
			n++
			rows = append(rows, r.judged(step, f, left))
		}
	}
	table(os.Stdout, rows)
}

// TestPairs has two faults at one step, at random: as many pairs as -seeds says.
func TestPairs(t *testing.T) {
	r := newRig(t, 10*time.Hour)
	left := r.leavesNothing()
	var rows []outcome
	all, kinds := steps(), faults()
	for seed := *first; seed < *first+*seeds; seed++ {
		random := rand.New(rand.NewPCG(seed, 0))
		step, a := all[random.IntN(len(all))], random.IntN(len(kinds))
		b := (a + 1 + random.IntN(len(kinds)-1)) % len(kinds)
		t.Logf("seed %d", seed)
		rows = append(rows, r.judged(step, both(kinds[a], kinds[b]), left))
	}
	table(os.Stdout, rows)
}

// judged is one case, with its failure.
func (r *rig) judged(step string, f fault, left *leftovers) outcome {
	o := r.one(step, f)
	o.err = errors.Join(o.err, left.check(r.Ctx, 10*time.Second, soon))
	r.Logf("%s / %s: %s after %v, blackout %v", step, f.name, o.what, o.took.Round(time.Millisecond), o.blackout.Round(time.Millisecond))
	if o.err != nil {
		r.Errorf("%s / %s: %v", step, f.name, o.err)
	}
	return o
}

func table(out *os.File, rows []outcome) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "step\tfault\toutcome\tblackout ms")
	for _, o := range rows {
		what := o.what
		if o.err != nil {
			what = "WRONG: " + strings.ReplaceAll(o.err.Error(), "\n", "; ")
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%d\n", o.step, o.fault, what, o.blackout.Milliseconds())
	}
	_ = w.Flush()
}

var lasts = flag.Duration("lasts", 1500*time.Millisecond, "how long what is cut or stalled stays so")

// one makes a move in which something happens at a step, and judges what has become of it.
func (r *rig) one(step string, f fault) (o outcome) {
	o = outcome{step: step, fault: f.name}
	began := time.Now()
	p, err := r.start()
	if err != nil {
		o.err = fmt.Errorf("before the move: %w", err)
		return o
	}
	m := &move{program: p, step: step, fault: f}
	o.err = m.make()
	o.what, o.blackout = m.outcome, m.blackout
	if o.err != nil {
		r.Logf("points: %v", r.watch.points())
		r.Diagnose(r.Ctx, p.name)
	}
	o.err = errors.Join(o.err, p.end())
	o.took = time.Since(began)
	return o
}
