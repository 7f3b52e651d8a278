//go:build linux

// Package bench measures moves between virtual hosts of one machine. Single times mean little on a machine that others use
// too, so every figure that has a floor is a ratio within one run, or is taken several times. docs/benchmarks.md holds
// the method and the figures.
//
//	go test -run '^$' -bench . -benchtime 1x ./e2e/bench
package bench

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"migrate/e2e/lab"
)

var (
	strict    = flag.Bool("strict", false, "fail when a figure misses its floor")
	moves     = flag.Int("moves", 6, "moves per size; the first is not counted")
	stops     = flag.Int("stops", 3, "moves per size with --strategy stop")
	sizes     = flag.String("sizes", "64,512,2048", "resident MiB, separated by commas")
	dirtyRate = flag.Int("dirty-rate", 1000, "pages per second that the measured program writes")
	bandwidth = flag.String("bandwidth", "0", "limit of each port of the lab in bytes per second; 0 means none")
)

// migrate is where hosts see the command.
const migrate = "/usr/local/bin/migrate"

// rig is the lab that all benchmarks share.
type rig struct {
	hosts *lab.Lab
	share string // a directory that all hosts see, read-only
}

var (
	bench *rig
	table []figures // one row per size
)

func TestMain(m *testing.M) {
	if part := os.Getenv(partVariable); part != "" {
		if err := streamPart(part, os.Args[1:]); err != nil {
			complain(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	flag.Parse()
	os.Exit(run(m))
}

// run brings the lab up only when something is to be measured: `go test ./...` must not.
func run(m *testing.M) int {
	if f := flag.Lookup("test.bench"); f == nil || f.Value.String() == "" {
		return m.Run()
	}
	down, err := up()
	if err != nil {
		complain(err)
		return 1
	}
	code := m.Run()
	missed := printTable(os.Stdout, table)
	if err := down(); err != nil {
		complain(err)
		code = max(code, 1)
	}
	if missed > 0 && *strict {
		code = max(code, 1)
	}
	return code
}

func complain(err error) { _, _ = fmt.Fprintf(os.Stderr, "bench: %v\n", err) }

// up builds what runs in the hosts, and brings three of them up.
func up() (down func() error, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("virtual hosts need root")
	}
	limit, err := strconv.ParseUint(*bandwidth, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("-bandwidth: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	state, err := os.MkdirTemp("/var/lib", "migrate-bench-*")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(state))
		}
	}()
	r := &rig{share: filepath.Join(state, "share")}
	if err := os.Mkdir(r.share, 0o755); err != nil {
		return nil, err
	}
	program := filepath.Join(r.share, "migrate")
	if err := command(ctx, "go", "build", "-o", program, "migrate/migrate"); err != nil {
		return nil, err
	}
	if err := command(ctx, "gcc", "-O2", "-Wall", "-o", filepath.Join(r.share, "dirty"), "testdata/dirty.c"); err != nil {
		return nil, err
	}
	if err := copyFile(filepath.Join(r.share, streamProgram), "/proc/self/exe"); err != nil {
		return nil, err
	}
	if r.hosts, err = lab.Up(ctx, lab.Options{StateDir: filepath.Join(state, "lab"), Program: program, Share: []string{r.share}, Bandwidth: limit}); err != nil {
		return nil, err
	}
	down = func() error { return errors.Join(r.hosts.Down(context.Background()), os.RemoveAll(state)) }
	if err := r.hosts.AwaitCluster(ctx, len(r.hosts.Hosts())); err != nil {
		return nil, errors.Join(err, r.hosts.Down(context.Background()))
	}
	bench = r
	return down, nil
}

func command(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

func copyFile(to, from string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }() // opened for reading: nothing is lost
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// diagnose prints the end of the agents' logs.
func (r *rig) diagnose(b *testing.B) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, h := range r.hosts.Hosts() {
		text, err := h.AgentLog(ctx)
		lines := strings.Split(text, "\n")
		b.Logf("log of %s (%v):\n%s", h.Name(), err, strings.Join(lines[max(0, len(lines)-40):], "\n"))
	}
}

// report is what is read of `migrate move -o json`.
type report struct {
	Outcome        string  `json:"outcome"`
	Error          string  `json:"error"`
	DestinationPID int     `json:"destination_pid"`
	DowntimeMS     float64 `json:"downtime_ms"`
	PredictedMS    float64 `json:"predicted_downtime_ms"`
	TotalMS        float64 `json:"total_ms"`
	Tracker        string  `json:"tracker"`
	Rounds         []struct {
		Pages     uint64  `json:"pages"`
		BytesSent uint64  `json:"bytes_sent"`
		MS        float64 `json:"ms"`
	} `json:"rounds"`
}

func (r *rig) move(ctx context.Context, name, to string, flags ...string) (*report, error) {
	args := append([]string{migrate, "move", name, "--to", to, "-o", "json"}, flags...)
	out, err := r.hosts.Host("host1").Exec(ctx, args...)
	if err != nil {
		return nil, err
	}
	var m report
	if err := json.Unmarshal([]byte(out), &m); err != nil {
		return nil, fmt.Errorf("%v: %w in %s", args, err, out)
	}
	if m.Outcome != "moved" || m.Error != "" || len(m.Rounds) == 0 {
		return nil, fmt.Errorf("%v: %s", args, out)
	}
	return &m, nil
}

// BenchmarkBlackout moves a program that keeps writing into all of its memory, once per size.
func BenchmarkBlackout(b *testing.B) {
	for text := range strings.SplitSeq(*sizes, ",") {
		mib, err := strconv.Atoi(text)
		if err != nil || mib < 1 {
			b.Fatalf("-sizes: %q is not a number of MiB", text)
		}
		b.Run(text+"MiB", func(b *testing.B) {
			for range b.N {
				ctx, cancel := context.WithTimeout(b.Context(), 10*time.Minute)
				row, err := bench.measure(ctx, mib)
				cancel()
				if err != nil {
					bench.diagnose(b)
					b.Fatal(err)
				}
				table = append(table, *row)
				for _, n := range row.notes {
					b.Log(n)
				}
				b.ReportMetric(median(row.blackout), "blackout-ms")
				b.ReportMetric(median(row.stop)/median(row.blackout), "stop/blackout")
				b.ReportMetric(median(row.round)/median(row.stream), "round/tls")
				b.ReportMetric(0, "ns/op") // the time of the whole procedure says nothing
			}
		})
	}
}
