//go:build linux

package mem

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"migrate/engine/remote"
)

// discard is a Sink that keeps one buffer for each sender.
type discard struct{ buffers chan []byte }

func newDiscard() discard { return discard{make(chan []byte, 8)} }

func (d discard) Buffer() []byte {
	select {
	case b := <-d.buffers:
		return b[:0]
	default:
		return make([]byte, 0, BatchBytes)
	}
}

func (d discard) Send(_ context.Context, _ uint32, _ []Run, data []byte) error {
	if data != nil {
		select {
		case d.buffers <- data:
		default:
		}
	}
	return nil
}

// resident is a target with size bytes of its own, and a source that follows it.
func resident(b *testing.B, size uint64, huge bool) (*target, *Source) {
	p := startTarget(b)
	p.anon(arena, size)
	if huge {
		p.do(order{Op: "madvise", Addr: arena, Size: size, Advice: unix.MADV_HUGEPAGE})
	}
	p.fill(arena, size, 1)
	var s *Source
	p.borrow(func(c remote.Caller) (err error) {
		if s, err = NewSource(p.pid(), 7, p.userfault(c)); err == nil {
			err = s.Start(testContext(b))
		}
		return err
	})
	b.Cleanup(func() { s.Close() })
	follow(b, p, s)
	return p, s
}

func follow(b *testing.B, p *target, s *Source) {
	objects := NewObjects()
	defer objects.Close()
	layout, err := NewLayoutReader(p.pid(), objects).Read(true)
	if err != nil {
		b.Fatal(err)
	}
	vmas, err := layout.Entries(func(*File) (uint32, error) { return 1, nil })
	if err != nil {
		b.Fatal(err)
	}
	s.Follow(vmas)
}

// BenchmarkScan asks for 500 scattered dirty pages; what it costs grows with the resident size.
func BenchmarkScan(b *testing.B) {
	for _, mib := range []uint64{64, 512, 2048} {
		for _, huge := range []bool{false, true} {
			b.Run(fmt.Sprintf("resident=%dMiB/huge=%v", mib, huge), func(b *testing.B) {
				p, s := resident(b, mib<<20, huge)
				round := func() RoundStats {
					stats, err := s.Round(testContext(b), newDiscard())
					if err != nil {
						b.Fatal(err)
					}
					return stats
				}
				round()
				round()
				scan, whole := math.Inf(1), math.Inf(1)
				for b.Loop() {
					b.StopTimer()
					for range 500 {
						p.stamp(arena+rand.Uint64N(mib<<20)&^(PageSize-1), PageSize, rand.Uint64())
					}
					b.StartTimer()
					p.stopped(func() {
						stats := round()
						scan = min(scan, stats.ScanDuration.Seconds())
						whole = min(whole, stats.Duration.Seconds())
					})
				}
				b.ReportMetric(scan*1e3, "ms-scan-min")
				b.ReportMetric(whole*1e3, "ms-round-min")
			})
		}
	}
}

// BenchmarkFirstRound reads all of a program's memory.
func BenchmarkFirstRound(b *testing.B) {
	const size = 512 << 20
	_, s := resident(b, size, false)
	b.SetBytes(size)
	for b.Loop() {
		s.Restart()
		if _, err := s.Round(testContext(b), newDiscard()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDigest hashes pages as both sides do.
func BenchmarkDigest(b *testing.B) {
	data := make([]byte, 64<<20)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	d := NewDigest(7)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		d.distrust()
		d.Write(arena, data)
	}
}

// BenchmarkFill fills fresh memory of another process in the ways that there are.
func BenchmarkFill(b *testing.B) {
	const size = 128 << 20
	data := make([]byte, BatchBytes)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	for _, way := range []string{"writev", "uffd", "populate+writev", "huge+writev"} {
		b.Run(way, func(b *testing.B) {
			trap := newSeed(b)
			v, err := openView(trap.PID())
			if err != nil {
				b.Fatal(err)
			}
			defer v.mem.Close()
			b.SetBytes(size)
			for b.Loop() {
				b.StopTimer()
				var c remote.Batch
				c.Call(unix.SYS_MMAP, uint64(arena), size, rw, anon, -1, 0)
				if way == "huge+writev" {
					c.Call(unix.SYS_MADVISE, uint64(arena), size, unix.MADV_HUGEPAGE)
				}
				if err := trap.Run(testContext(b), &c); err != nil {
					b.Fatal(err)
				}
				var f *filler
				if way == "uffd" {
					if f, err = newFiller(testContext(b), trap); err != nil {
						b.Fatal(err)
					}
					f.register(Range{arena, arena + size})
				}
				b.StartTimer()
				if way == "populate+writev" {
					var c remote.Batch
					c.Call(unix.SYS_MADVISE, uint64(arena), size, unix.MADV_POPULATE_WRITE)
					if err := trap.Run(testContext(b), &c); err != nil {
						b.Fatal(err)
					}
				}
				for at := uint64(arena); at < arena+size; at += BatchBytes {
					if f != nil {
						if n := f.fill(at, data); n != len(data) {
							b.Fatal(n)
						}
					} else if err := v.write(at, data); err != nil {
						b.Fatal(err)
					}
				}
				if f != nil {
					f.Close()
				}
			}
		})
	}
}

// BenchmarkManyMappings follows a program with 50,000 mappings: reading them, comparing them with those of before, a round.
func BenchmarkManyMappings(b *testing.B) {
	const mappings = 50_000
	p := startTarget(b)
	p.anon(arena, mappings*PageSize)
	p.stamp(arena, mappings*PageSize, 1)
	for i := uint64(0); i < mappings; i += 2 {
		p.do(order{Op: "mprotect", Addr: arena + i*PageSize, Size: PageSize, Prot: unix.PROT_READ})
	}
	var s *Source
	p.borrow(func(c remote.Caller) (err error) {
		if s, err = NewSource(p.pid(), 7, p.userfault(c)); err == nil {
			err = s.Start(testContext(b))
		}
		return err
	})
	defer s.Close()
	objects := NewObjects()
	defer objects.Close()
	reader := NewLayoutReader(p.pid(), objects)
	var read, follow, round float64
	step := func(marks bool) {
		start := time.Now()
		layout, err := reader.Read(marks)
		if err != nil {
			b.Fatal(err)
		}
		read += time.Since(start).Seconds()
		start = time.Now()
		vmas, err := layout.Entries(func(*File) (uint32, error) { return 1, nil })
		if err != nil {
			b.Fatal(err)
		}
		s.Follow(vmas)
		follow += time.Since(start).Seconds()
		stats, err := s.Round(testContext(b), newDiscard())
		if err != nil {
			b.Fatal(err)
		}
		round += stats.Duration.Seconds()
	}
	step(true)
	b.Logf("first: smaps %.1f ms, follow %.1f ms, round %.1f ms", read*1e3, follow*1e3, round*1e3)
	read, follow, round = 0, 0, 0
	for b.Loop() {
		step(false)
	}
	n := float64(b.N) / 1e3
	b.ReportMetric(read/n, "ms-maps")
	b.ReportMetric(follow/n, "ms-follow")
	b.ReportMetric(round/n, "ms-round")
}

// link is a Sink that carries 100 MB/s.
type link struct {
	discard
	mu sync.Mutex
}

func (l *link) Send(ctx context.Context, space uint32, runs []Run, data []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	time.Sleep(time.Duration(len(data)) * 10 * time.Nanosecond)
	return l.discard.Send(ctx, space, runs, data)
}

// unskipped hides from a source that its tracker can tell what was written again.
type unskipped struct{ Tracker }

// BenchmarkHotAndCold copies a program over a link of 100 MB/s in eight rounds, with and without skipping what was written again: 64 MiB, of which it
// writes 8 MiB all the time, and 2,000 pages per second of the rest.
func BenchmarkHotAndCold(b *testing.B) {
	const size, hot = 64 << 20, 8 << 20
	for _, skip := range []bool{false, true} {
		b.Run(fmt.Sprintf("skip=%v", skip), func(b *testing.B) {
			var sent []float64
			for b.Loop() {
				p, s := resident(b, size, false)
				if !skip {
					s.tracker = unskipped{s.tracker}
				}
				stop, done := make(chan struct{}), make(chan struct{})
				go func() {
					defer close(done)
					began, cold := time.Now(), 0
					for n := uint64(0); ; n++ {
						select {
						case <-stop:
							return
						default:
						}
						p.stamp(arena, hot, n)
						for ; cold < int(2000*time.Since(began).Seconds()); cold++ {
							p.stamp(arena+hot+rand.Uint64N(size-hot)&^(PageSize-1), PageSize, n)
						}
					}
				}()
				var total RoundStats
				sink := &link{discard: newDiscard()}
				for range 8 {
					stats, err := s.Round(testContext(b), sink)
					if err != nil {
						b.Fatal(err)
					}
					total.Add(stats)
				}
				close(stop)
				<-done
				p.stopped(func() {
					stats, err := s.Final(testContext(b), sink)
					if err != nil {
						b.Fatal(err)
					}
					total.Add(stats)
					b.ReportMetric(float64(stats.Pages), "pages-last")
				})
				sent = append(sent, float64(total.Bytes)/1e6)
				s.Close()
			}
			slices.Sort(sent)
			b.ReportMetric(sent[len(sent)/2], "MB-sent-median")
		})
	}
}
