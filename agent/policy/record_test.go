//go:build linux

package policy

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"migrate/engine/dump"
	"migrate/engine/kernel/kerneltest"
	"migrate/engine/mem"
)

var (
	recordPID = flag.Int("record", 0, "pid of a tree to record a trace of")
	recordFor = flag.Duration("record-for", 10*time.Second, "how long")
	recordTo  = flag.String("record-to", "", "file to write it to")
	recordHow = flag.String("record-how", "", "what is recorded, for the head of the file")
)

const tickTime = 10 * time.Millisecond

type pageAt struct {
	space uint32
	addr  uint64
}

// A recorder is a sink that notes which pages come.
type recorder struct {
	mu    sync.Mutex
	now   int            // tick
	last  map[pageAt]int // in which a page was written; 0 if never since the first round
	tick  tick
	pages int // of the first round
}

func (r *recorder) Buffer() []byte { return make([]byte, 0, mem.BatchBytes) }

func (r *recorder) Send(_ context.Context, space uint32, runs []mem.Run, _ []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, run := range runs {
		for i := range uint64(run.Pages) {
			p := pageAt{space, run.Addr + i*mem.PageSize}
			last := r.last[p]
			switch {
			case r.now == 0:
				r.pages++
				continue
			case last == 0:
				r.tick.ago[buckets-1]++
			default:
				r.tick.ago[bucketOf(r.now-last)]++
			}
			r.last[p] = r.now
		}
	}
	return nil
}

// record watches a tree with the tracker of moves. After each tick it asks whether to go on.
func record(ctx context.Context, pid int, more func(ticks int) bool) (t *trace, err error) {
	src, err := dump.Open(ctx, dump.Options{Target: dump.Target{PID: pid}})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, src.Close(context.WithoutCancel(ctx))) }()
	if err := src.Track(ctx); err != nil {
		return nil, err
	}
	t = &trace{}
	r := &recorder{last: map[pageAt]int{}}
	ticks := time.NewTicker(tickTime)
	defer ticks.Stop()
	for before := time.Now(); more(len(t.ticks)); r.now++ {
		now := time.Now()
		if _, err := src.Layout(ctx); err != nil {
			return nil, err
		}
		if _, err := src.Round(ctx, r); err != nil {
			return nil, err
		}
		if r.now > 0 {
			r.tick.took = now.Sub(before)
			t.add(r.tick)
		}
		before, r.tick = now, tick{}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-ticks.C:
		}
	}
	t.pages = float64(r.pages)
	return t, nil
}

// childVariable makes this program one that writes pages when it is told to.
const childVariable = "POLICY_WRITER"

const childPages = 1000

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) == "" {
		os.Exit(m.Run())
	}
	memory, err := unix.Mmap(-1, 0, 4*childPages*os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		panic(err)
	}
	fmt.Println("ready")
	for n, in := 1, bufio.NewScanner(os.Stdin); in.Scan(); n++ {
		for i := range childPages {
			memory[i*os.Getpagesize()] = byte(n)
		}
		fmt.Println("written")
	}
}

// TestRecord records a program that writes known pages twice; or, with -record, any tree, into a file:
//
//	go test ./agent/policy -run TestRecord -args -record 4711 -record-to testdata/NAME.trace -record-how 'what it does'
func TestRecord(t *testing.T) {
	kerneltest.Root(t)
	if *recordPID != 0 {
		recordInto(t)
		return
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = append(os.Environ(), childVariable+"=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { stop(); _ = cmd.Wait() }()
	lines := bufio.NewScanner(out)
	lines.Scan()
	x, err := record(ctx, cmd.Process.Pid, func(ticks int) bool {
		if ticks%5 == 2 { // it is done before the next tick
			_, err := fmt.Fprintln(in)
			return err == nil && lines.Scan()
		}
		return ticks < 20
	})
	if err != nil {
		t.Fatal(err)
	}
	var first, again uint32
	for _, k := range x.ticks {
		first += k.ago[buckets-1]
		for _, n := range k.ago[:buckets-1] {
			again += n
		}
	}
	const more = childPages / 2 // the program's own runtime writes some pages, too
	if first < childPages || first > childPages+more || again < 3*childPages || again > 3*childPages+more {
		t.Errorf("%d pages were written for the first time, and %d again; want %d and %d", first, again, childPages, 3*childPages)
	}
	if got := x.written(0, x.total); got < childPages || got > childPages+more {
		t.Errorf("%.0f different pages were written, want %d", got, childPages)
	}
}

func recordInto(t *testing.T) {
	end := time.Now().Add(*recordFor)
	x, err := record(t.Context(), *recordPID, func(int) bool { return time.Now().Before(end) })
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Clean(*recordTo))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(x.write(f, *recordHow), f.Close()); err != nil {
		t.Error(err)
	}
}
