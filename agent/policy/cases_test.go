package policy

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// A scenario is a program on a link.
type scenario struct {
	name string
	p    writer
	w    wire
	b    Bounds
	// hopeless says that no rule can keep the bound.
	hopeless bool
}

const (
	linkRate = 150000.0 // pages per second: 600 MB/s
	half     = 131072.0 // pages of 512 MiB
	perRound = 4 * time.Millisecond
)

var usual = Bounds{MaxDowntime: 100 * time.Millisecond, Fixed: 15 * time.Millisecond}

func steady(rate float64) wire { return wire{rate: always(rate), overhead: perRound} }

// uniform writes all over its memory.
func uniform(pages, rate float64) regions { return regions{{pages: pages, rate: always(rate)}} }

// zipf writes the pages of its memory as often as Zipf's law has it: the page of rank k by 1/k.
func zipf(pages, rate float64) regions {
	var out regions
	sum := math.Log(pages) + 0.577
	for first := 1.0; first <= pages; first *= 2 {
		n := min(first, pages-first+1)
		share := (math.Log(first+n) - math.Log(first)) / sum
		out = append(out, region{pages: n, rate: always(rate * share)})
	}
	return out
}

// bursts writes little, and for a while in each period everything.
func bursts(pages, quiet float64, period, burst, first time.Duration) regions {
	return regions{
		{pages: pages, rate: always(quiet)},
		{pages: pages, fresh: true, rate: func(at time.Duration) float64 {
			if at < first || (at-first)%period >= burst {
				return 0
			}
			return pages / burst.Seconds()
		}},
	}
}

// phases writes at one rate until a time, and at another from then on.
func phases(pages, before, after float64, change time.Duration) regions {
	return regions{{pages: pages, rate: func(at time.Duration) float64 {
		if at < change {
			return before
		}
		return after
	}}}
}

func scenarios(t *testing.T) []scenario {
	list := []scenario{{name: "idle", p: uniform(half, 0), w: steady(linkRate), b: usual}}
	for _, x := range []float64{0.1, 0.3, 0.5, 0.7, 0.9, 1, 1.5, 2, 3} {
		list = append(list, scenario{name: fmt.Sprintf("uniform, %.1f of the link", x), p: uniform(half, x*linkRate), w: steady(linkRate), b: usual, hopeless: x >= 1})
	}
	hot := func(pages, rate float64) regions {
		return regions{{pages: pages, rate: always(rate)}, {pages: half, rate: always(500)}}
	}
	slow := func(share float64, at time.Duration) wire {
		return wire{overhead: perRound, rate: func(t time.Duration) float64 {
			if t < at {
				return linkRate
			}
			return linkRate * share
		}}
	}
	noisy := wire{rate: always(linkRate), overhead: perRound, jitter: 0.3, stall: 0.1, seed: 7}
	list = append(list,
		scenario{name: "small, 1000 pages/s", p: uniform(16384, 1000), w: steady(linkRate), b: usual},
		scenario{name: "hot set of 8 MiB at 3 x link, cold 512 MiB", p: hot(2048, 3*linkRate), w: steady(linkRate), b: usual},
		scenario{name: "hot set of 32 MiB at 3 x link, cold 512 MiB", p: hot(8192, 3*linkRate), w: steady(linkRate), b: usual},
		scenario{name: "hot set of 64 MiB at 3 x link", p: hot(16384, 3*linkRate), w: steady(linkRate), b: usual, hopeless: true},
		scenario{name: "Zipf, 0.3 of the link", p: zipf(half, 0.3*linkRate), w: steady(linkRate), b: usual},
		scenario{name: "Zipf, 2 x link", p: zipf(half, 2*linkRate), w: steady(linkRate), b: usual},
		scenario{name: "bursts: 2 s quiet, 0.3 s everything", p: bursts(half, 1000, 2300*time.Millisecond, 300*time.Millisecond, 800*time.Millisecond), w: steady(linkRate), b: usual},
		scenario{name: "bursts, 1 Gbit/s", p: bursts(half, 1000, 2300*time.Millisecond, 300*time.Millisecond, time.Second), w: steady(28000), b: usual, hopeless: true},
		scenario{name: "quiet after 3 s of 2 x link", p: phases(half, 2*linkRate, 1000, 3*time.Second), w: steady(linkRate), b: usual},
		scenario{name: "half the link after 3 s of 2 x link", p: phases(half, 2*linkRate, 0.5*linkRate, 3*time.Second), w: steady(linkRate), b: usual},
		scenario{name: "0.8 of the link after 5 s of 2 x link", p: phases(half, 2*linkRate, 0.8*linkRate, 5*time.Second), w: steady(linkRate), b: usual},
		scenario{name: "1.5 x link after 0.5 s of quiet", p: phases(half, 1000, 1.5*linkRate, time.Second/2), w: steady(linkRate), b: usual, hopeless: true},
		scenario{name: "heap grows by 200 MB/s", p: regions{{pages: half, rate: always(500)}, {pages: 1e9, rate: always(50000), fresh: true, grows: true}}, w: steady(linkRate), b: usual},
		scenario{name: "link slows to half, 0.3 of it written", p: uniform(half, 0.3*linkRate), w: slow(0.5, time.Second), b: usual},
		scenario{name: "link slows to a tenth, 1000 pages/s", p: uniform(half, 1000), w: slow(0.1, 900*time.Millisecond), b: usual},
		scenario{name: "link slows to a tenth, 0.05 of it written", p: uniform(half, 0.05*linkRate), w: slow(0.1, 900*time.Millisecond), b: usual},
		scenario{name: "link slows to a tenth, 0.3 of it written", p: uniform(half, 0.3*linkRate), w: slow(0.1, 900*time.Millisecond), b: usual, hopeless: true},
		scenario{name: "noise, 1000 pages/s", p: uniform(half, 1000), w: noisy, b: usual},
		scenario{name: "noise, 0.5 of the link", p: uniform(half, 0.5*linkRate), w: noisy, b: usual},
		scenario{name: "noise, Zipf at the link's rate", p: zipf(half, linkRate), w: noisy, b: usual},
		scenario{name: "busy hosts, 0.4 of the link", p: uniform(half, 0.4*busyRate), w: busy(1), b: usual},
		scenario{name: "busy hosts, 0.55 of the link", p: uniform(half, 0.55*busyRate), w: busy(2), b: usual},
		scenario{name: "8 GiB over 1 Gbit/s, 0.2 of it written", p: uniform(16*half, 0.2*28000), w: steady(28000), b: usual},
		scenario{name: "8 GiB over 1 Gbit/s, 1.5 of it written", p: uniform(16*half, 1.5*28000), w: steady(28000), b: usual, hopeless: true},
		scenario{name: "bound below what is fixed", p: uniform(half, 1000), w: steady(linkRate), b: Bounds{MaxDowntime: 10 * time.Millisecond, Fixed: 15 * time.Millisecond}, hopeless: true},
		scenario{name: "bound of 1 s, 0.7 of the link", p: uniform(half, 0.7*linkRate), w: steady(linkRate), b: Bounds{MaxDowntime: time.Second, Fixed: 15 * time.Millisecond}},
	)
	for _, x := range recorded(t) {
		list = append(list, scenario{name: x.name + ", recorded, 600 MB/s", p: x, w: steady(linkRate), b: usual},
			scenario{name: x.name + ", recorded, 1 Gbit/s", p: x, w: steady(28000), b: usual})
	}
	return list
}

// busyRate is the mean rate of busy.
const busyRate = 51000.0

// busy is a link between hosts whose processors others use, too: its rate wanders all the time, from 27,000 to 75,000 pages per second.
func busy(seed uint64) wire {
	return wire{overhead: perRound, jitter: 0.2, stall: 0.1, seed: seed, rate: func(at time.Duration) float64 {
		rnd := rand.New(rand.NewPCG(seed, uint64(at/(300*time.Millisecond))))
		return busyRate + 24000*(2*rnd.Float64()-1)
	}}
}
