//go:build linux

package faults

import (
	"context"
	"errors"
	"slices"
	"syscall"

	"migrate/e2e/cluster"
	"migrate/e2e/lab"
	"migrate/e2e/lab/pid1"
)

// roles are the hosts of a move by what they do.
type roles struct{ source, destination, leader string }

// fault is something that goes wrong at a step of a move.
type fault struct {
	name   string
	strike func(ctx context.Context, r roles) error
	mend   func(ctx context.Context, r roles) error
	// election says that the cluster has to find another leader.
	election bool
	// holder says that the agent which holds the program still is stopped itself: nobody else lets the program run before it goes on.
	holder bool
	// reboots are hosts that have lost all that ran on them.
	reboots []func(r roles) string
}

func sourceOf(r roles) string      { return r.source }
func destinationOf(r roles) string { return r.destination }
func leaderOf(r roles) string      { return r.leader }

// killed ends an agent, which is started again at once, as by a supervisor.
func killed(what string, host func(roles) string) fault {
	return fault{name: "kill " + what + " agent",
		strike: func(ctx context.Context, r roles) error {
			h := cluster.Hosts.Host(host(r))
			return errors.Join(h.SignalAgent(ctx, syscall.SIGKILL), h.StartAgent(ctx))
		},
		mend: func(context.Context, roles) error { return nil },
	}
}

// away ends the leader, which comes back when another leader has had its time.
func away() fault {
	return fault{name: "kill leader", election: true,
		strike: func(ctx context.Context, r roles) error {
			return cluster.Hosts.Host(r.leader).SignalAgent(ctx, syscall.SIGKILL)
		},
		mend: func(ctx context.Context, r roles) error { return cluster.Hosts.Host(r.leader).StartAgent(ctx) },
	}
}

func stalled(what string, host func(roles) string) fault {
	return fault{name: "stall " + what + " agent", election: what == "leader", holder: what == "source",
		strike: func(ctx context.Context, r roles) error { return cluster.Hosts.Host(host(r)).Stall(ctx) },
		mend:   func(ctx context.Context, r roles) error { return cluster.Hosts.Host(host(r)).Unstall(ctx) },
	}
}

func cut(what string, a, b func(roles) string, oneWay bool, plane lab.Plane) fault {
	name := "cut " + what
	if oneWay {
		name += " one way"
	}
	if plane != lab.PlaneAll {
		name += " (" + string(plane) + ")"
	}
	return fault{name: name,
		strike: func(ctx context.Context, r roles) error { return cluster.Hosts.CutPair(ctx, a(r), b(r), oneWay, plane) },
		mend:   func(ctx context.Context, _ roles) error { return cluster.Hosts.Heal(ctx) },
	}
}

func rebooted(what string, host func(roles) string) fault {
	return fault{name: "reboot " + what + " host", election: what == "leader", reboots: []func(roles) string{host},
		strike: func(ctx context.Context, r roles) error { return cluster.Hosts.Host(host(r)).Reboot(ctx) },
		mend:   func(context.Context, roles) error { return nil },
	}
}

// usual is how many kinds, from the first, every run has.
const usual = 4

// both is two faults at one step.
func both(a, b fault) fault {
	each := func(ctx context.Context, r roles, what ...func(context.Context, roles) error) (err error) {
		for _, f := range what {
			if e := f(ctx, r); !errors.Is(e, pid1.ErrNotRunning) { // the other fault may have ended the agent
				err = errors.Join(err, e)
			}
		}
		return err
	}
	return fault{name: a.name + " + " + b.name, election: true, reboots: append(slices.Clone(a.reboots), b.reboots...),
		strike: func(ctx context.Context, r roles) error { return each(ctx, r, a.strike, b.strike) },
		mend:   func(ctx context.Context, r roles) error { return each(ctx, r, a.mend, b.mend) },
	}
}

// faults are all kinds of faults.
func faults() []fault {
	all := []fault{
		killed("source", sourceOf), killed("destination", destinationOf), away(),
		cut("source - destination", sourceOf, destinationOf, false, lab.PlaneAll),
		cut("source - leader", sourceOf, leaderOf, false, lab.PlaneAll),
		cut("destination - leader", destinationOf, leaderOf, false, lab.PlaneAll),
		stalled("leader", leaderOf), stalled("source", sourceOf), stalled("destination", destinationOf),
		rebooted("source", sourceOf), rebooted("destination", destinationOf), rebooted("leader", leaderOf),
	}
	for _, pair := range []struct {
		what string
		a, b func(roles) string
	}{
		{"source -> destination", sourceOf, destinationOf}, {"destination -> source", destinationOf, sourceOf},
		{"source -> leader", sourceOf, leaderOf}, {"leader -> source", leaderOf, sourceOf},
		{"destination -> leader", destinationOf, leaderOf}, {"leader -> destination", leaderOf, destinationOf},
	} {
		all = append(all, cut(pair.what, pair.a, pair.b, true, lab.PlaneAll))
		for _, plane := range []lab.Plane{lab.PlaneControl, lab.PlanePages, lab.PlaneRaft} {
			all = append(all, cut(pair.what, pair.a, pair.b, true, plane), cut(pair.what, pair.a, pair.b, false, plane))
		}
	}
	return all
}
