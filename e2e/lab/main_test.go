package lab

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"migrate/engine/kernel/kerneltest"
)

// Each variable makes the test program do one thing with the directory that it names, and no tests.
const (
	upVariable      = "LAB_TEST_UP"      // bring up a lab there and wait to be killed
	overlayVariable = "LAB_TEST_OVERLAY" // live with a lab whose state is on an overlay
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(upVariable); dir != "" {
		os.Exit(upAndWait(dir))
	}
	if dir := os.Getenv(overlayVariable); dir != "" {
		if err := liveOnOverlay(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func upAndWait(dir string) int {
	if _, err := Up(context.Background(), options(dir)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("up")
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM)
	<-c
	return 0
}

// options are those of a small lab, with a stand-in for the agent.
func options(dir string) Options {
	return Options{StateDir: dir, Agent: []string{"sleep", "1000"}}
}

// labDir is a state directory that a test can give to Up; its parent is removed when the test ends.
func labDir(t *testing.T) string {
	t.Helper()
	dir, err := canonical(filepath.Join(t.TempDir(), "lab"))
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// up brings up a lab that ends with the test, which fails if anything is left of it.
func up(t *testing.T, change ...func(*Options)) (context.Context, *Lab) {
	t.Helper()
	kerneltest.Root(t)
	ctx := testContext(t)
	o := options(labDir(t))
	for _, f := range change {
		f(&o)
	}
	before := takeTraces(t)
	l, err := Up(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		seen := lookAround(t, l.dir)
		if err := l.Down(ctx); err != nil {
			t.Errorf("down: %v", err)
		}
		seen.mustBeGone(t)
		before.mustBeSame(t)
	})
	return ctx, l
}

func exec(ctx context.Context, t *testing.T, h *Host, args ...string) string {
	t.Helper()
	out, err := h.Exec(ctx, args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// traces are what the machine itself has that a lab might change.
type traces struct {
	devices []string
	mounts  int
}

func takeTraces(t *testing.T) traces {
	t.Helper()
	devices, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	var tr traces
	for _, d := range devices {
		tr.devices = append(tr.devices, d.Name)
	}
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	tr.mounts = bytes.Count(text, []byte("/lab/"))
	return tr
}

func (tr traces) mustBeSame(t *testing.T) {
	t.Helper()
	now := takeTraces(t)
	if !slices.Equal(now.devices, tr.devices) || now.mounts != tr.mounts {
		t.Errorf("the machine had %+v, and has %+v", tr, now)
	}
}

// presence is all of a lab that can be seen from the machine: its processes, with their namespaces, and its directories.
type presence struct {
	dir        string
	cgroup     cgroup
	processes  map[int]string // start times
	namespaces []string
}

func lookAround(t *testing.T, dir string) presence {
	t.Helper()
	cg, err := cgroupOf(dir)
	if err != nil {
		t.Fatal(err)
	}
	p := presence{dir: dir, cgroup: cg, processes: map[int]string{}}
	own := namespacesOf(os.Getpid())
	for _, pid := range p.members(t) {
		if start := startTime(pid); start != "" {
			p.processes[pid] = start
		}
		for _, ns := range namespacesOf(pid) {
			if !slices.Contains(own, ns) && !slices.Contains(p.namespaces, ns) {
				p.namespaces = append(p.namespaces, ns)
			}
		}
	}
	return p
}

func (p presence) members(t *testing.T) []int {
	t.Helper()
	var pids []int
	err := filepath.WalkDir(string(p.cgroup), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil // it went away meanwhile
		}
		text, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		for line := range strings.Lines(string(text)) {
			pid, err := strconv.Atoi(strings.TrimSpace(line))
			if err != nil {
				return err
			}
			pids = append(pids, pid)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return pids
}

var namespaceKinds = []string{"net", "pid", "mnt", "uts", "ipc", "cgroup", "time"}

func namespacesOf(pid int) []string {
	var list []string
	for _, kind := range namespaceKinds {
		if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind)); err == nil {
			list = append(list, ns)
		}
	}
	return list
}

// startTime returns the 22nd field of /proc/PID/stat, or "" for a process that is gone or only waits to be reaped: the
// machine's own pid 1 may take seconds for that.
func startTime(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	f := strings.Fields(rest)
	if len(f) < 20 || f[0] == "Z" || f[0] == "X" {
		return ""
	}
	return f[19]
}

func (p presence) mustBeGone(t *testing.T) {
	t.Helper()
	if _, err := os.Stat(string(p.cgroup)); err == nil {
		t.Errorf("the cgroup %s is left", p.cgroup)
	}
	if entries, err := os.ReadDir(p.dir); err == nil {
		t.Errorf("the state directory is left, with %v", entries)
	}
	for pid, start := range p.processes {
		if startTime(pid) == start {
			t.Errorf("process %d is left", pid)
		}
	}
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range all {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if startTime(pid) == "" {
			continue
		}
		for _, ns := range namespacesOf(pid) {
			if slices.Contains(p.namespaces, ns) {
				t.Errorf("process %d is in the namespace %s of the lab", pid, ns)
			}
		}
		text, _ := os.ReadFile(filepath.Join(dir, "mountinfo"))
		if bytes.Contains(text, []byte(p.dir+"/")) {
			t.Errorf("process %d sees a mount under %s", pid, p.dir)
		}
	}
}
