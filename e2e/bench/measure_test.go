//go:build linux

package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"strconv"
	"time"

	"migrate/e2e/lab"
)

// figures of one size; each list has one value per move.
type figures struct {
	mib       int
	blackout  []float64 // ms, as the move reports it
	predicted []float64 // ms, by the policy before the switch
	rounds    []float64 // of copying, with that of the freeze
	total     []float64 // ms, of the whole move
	gap       []float64 // ms, between the two beats of the program's own heart between which it was moved
	apart     []float64 // ms, |gap - blackout|
	waits     []float64 // ms, longest other time between two beats during a move
	aside     []float64 // ms, longest time between two beats during the plain stream, which has nothing to do with the program
	stop      []float64 // ms of blackout with --strategy stop
	round     []float64 // bytes/s of the first round
	stream    []float64 // bytes/s of a plain TLS stream of as many bytes
	rate      []float64 // pages/s that the program has written between two looks
	tracker   string
	notes     []string // about gaps that were not the blackout
}

// measure moves one program of a size between host1 and host2, first by pre-copy, then stopped.
func (r *rig) measure(ctx context.Context, mib int) (_ *figures, err error) {
	d, err := r.start(ctx, mib)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	f := &figures{mib: mib}
	for i := range *moves {
		began := time.Now()
		m, beat, err := d.move(ctx)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			continue // the first one finds caches cold and memory not yet given to the machine
		}
		first := m.Rounds[0]
		stream, err := r.stream(ctx, d.other(), d.at, int64(mib)<<20) // the way that the pages just took
		if err != nil {
			return nil, err
		}
		aside, err := d.beat(ctx)
		if err != nil {
			return nil, err
		}
		f.aside = append(f.aside, aside.longest)
		f.blackout = append(f.blackout, m.DowntimeMS)
		f.predicted = append(f.predicted, m.PredictedMS)
		f.rounds = append(f.rounds, float64(len(m.Rounds)))
		f.total = append(f.total, m.TotalMS)
		f.gap = append(f.gap, beat.moved)
		f.apart = append(f.apart, math.Abs(beat.moved-m.DowntimeMS))
		f.waits = append(f.waits, beat.longest)
		f.round = append(f.round, float64(first.BytesSent)/(first.MS/1000))
		f.stream = append(f.stream, stream)
		f.rate = append(f.rate, beat.rate)
		f.tracker = m.Tracker
		if beat.longest > m.DowntimeMS {
			f.notes = append(f.notes, fmt.Sprintf("a gap of %.1f ms, without being moved, ended %.0f ms after the move was asked for, which took %.0f ms, with %.1f ms of blackout",
				beat.longest, float64(beat.end.Sub(began))/1e6, m.TotalMS, m.DowntimeMS))
		}
	}
	for range *stops {
		m, _, err := d.move(ctx, "--strategy", "stop", "--max-downtime", "5m", "--timeout", "5m")
		if err != nil {
			return nil, err
		}
		f.stop = append(f.stop, m.DowntimeMS)
	}
	return f, nil
}

// dirty is the measured program, a workload.
type dirty struct {
	r       *rig
	name    string
	at      *lab.Host
	pid     int    // there
	dir     string // its working directory, which every host has
	written uint64
	looked  time.Time
}

// heartbeat is what the program tells of the time since it was asked last.
type heartbeat struct {
	moved   float64   // ms between the two beats between which it was moved; 0 if it was not
	longest float64   // ms, longest other gap
	end     time.Time // of that one
	rate    float64   // pages written per second; NaN when it has begun to count anew, which it does after a long pause
}

func (r *rig) start(ctx context.Context, mib int) (*dirty, error) {
	d := &dirty{r: r, name: fmt.Sprintf("dirty%d", mib), at: r.hosts.Host("host1")}
	d.dir = "/srv/" + d.name
	for _, h := range r.hosts.Hosts() {
		if err := h.WriteFile(ctx, d.dir+"/host", []byte(h.Name()), 0o644); err != nil {
			return nil, err
		}
	}
	out, err := d.at.Exec(ctx, migrate, "run", "--name", d.name, "--cwd", d.dir, "-o", "json", "--",
		filepath.Join(r.share, "dirty"), strconv.Itoa(mib), strconv.Itoa(*dirtyRate))
	if err != nil {
		return nil, err
	}
	var w struct {
		PID int `json:"pid"`
	}
	if err := json.Unmarshal([]byte(out), &w); err != nil {
		return nil, fmt.Errorf("migrate run: %w in %s", err, out)
	}
	d.pid = w.PID
	if _, err := d.await(ctx, "ready"); err != nil {
		return nil, errors.Join(err, d.stop())
	}
	return d, nil
}

func (d *dirty) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	_, err := d.r.hosts.Host("host1").Exec(ctx, migrate, "stop", d.name, "--grace", "1s")
	return err
}

func (d *dirty) other() *lab.Host {
	if d.at.Name() == "host1" {
		return d.r.hosts.Host("host2")
	}
	return d.r.hosts.Host("host1")
}

// move moves the program to the other host. The heartbeat is that of the time from just before the move to just after it.
func (d *dirty) move(ctx context.Context, flags ...string) (*report, heartbeat, error) {
	if _, err := d.beat(ctx); err != nil { // starts the measure of the gaps anew
		return nil, heartbeat{}, err
	}
	to := d.other()
	m, err := d.r.move(ctx, d.name, to.Name(), flags...)
	if err != nil {
		return nil, heartbeat{}, err
	}
	d.at, d.pid = to, m.DestinationPID
	h, err := d.beat(ctx)
	if err == nil && h.moved == 0 {
		err = fmt.Errorf("%s: %s has not seen that it was moved", d.at.Name(), d.name)
	}
	return m, h, err
}

// beat asks the program for its heartbeat.
func (d *dirty) beat(ctx context.Context) (heartbeat, error) {
	path := filepath.Join(d.dir, "heartbeat")
	if _, err := d.at.Exec(ctx, "sh", "-c", `rm -f "$1" && kill -USR1 "$2"`, "sh", path, strconv.Itoa(d.pid)); err != nil {
		return heartbeat{}, err
	}
	text, err := d.await(ctx, "heartbeat")
	if err != nil {
		return heartbeat{}, err
	}
	var movedNS, longestNS, count, written uint64
	var end int64
	if _, err := fmt.Sscanf(string(text), "beat %d %d %d %d %d\n", &movedNS, &longestNS, &end, &count, &written); err != nil {
		return heartbeat{}, fmt.Errorf("%s: %s: %w in %q", d.at.Name(), path, err, text)
	}
	h := heartbeat{moved: float64(movedNS) / 1e6, longest: float64(longestNS) / 1e6, end: time.Unix(0, end), rate: math.NaN()}
	now := time.Now()
	if written >= d.written && !d.looked.IsZero() {
		h.rate = float64(written-d.written) / now.Sub(d.looked).Seconds()
	}
	d.written, d.looked = written, now
	return h, nil
}

// await returns a file of the program once it is there. It is in another mount namespace, so there is nothing that could be
// watched for less than it costs to look.
func (d *dirty) await(ctx context.Context, name string) ([]byte, error) {
	for {
		text, err := d.at.ReadFile(ctx, filepath.Join(d.dir, name))
		if !errors.Is(err, fs.ErrNotExist) {
			return text, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%s: %s has not written %s: %w", d.at.Name(), d.name, name, context.Cause(ctx))
		case <-time.After(5 * time.Millisecond):
		}
	}
}
