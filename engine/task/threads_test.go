//go:build linux

package task

import (
	"bufio"
	"context"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"migrate/engine"
	"migrate/engine/procfs"
	"migrate/engine/ptrace"
	"migrate/engine/remote"
)

// BenchmarkDumpThreads measures what a thread costs while its process is stopped.
func BenchmarkDumpThreads(b *testing.B) {
	needRoot(b)
	const threads = 500
	path := filepath.Join(b.TempDir(), "threads")
	if out, err := exec.Command("gcc", "-O1", "-pthread", "-o", path, "testdata/threads.c").CombinedOutput(); err != nil {
		b.Fatalf("gcc: %v\n%s", err, out)
	}
	cmd := exec.Command(path, "500")
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	reader, err := OpenThreadReader()
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = reader.Close() }()
	var states, record time.Duration
	for b.Loop() {
		tracer := ptrace.New()
		stops, err := tracer.SeizeAll(ctx, cmd.Process.Pid, 0)
		if err != nil || len(stops) != threads {
			b.Fatalf("%d threads, %v", len(stops), err)
		}
		begin := time.Now()
		p := &engine.Process{PID: cmd.Process.Pid, VPID: cmd.Process.Pid}
		for _, s := range stops {
			p.Threads = append(p.Threads, engine.Thread{TID: s.TID, VTID: s.TID})
		}
		list, err := ReadThreadStates(ctx, tracer, p.Threads, stops)
		if err != nil {
			b.Fatal(err)
		}
		states += time.Since(begin)
		memory, err := ptrace.OpenMemory(p.PID)
		if err != nil {
			b.Fatal(err)
		}
		session, err := remote.Open(ctx, tracer, p.PID, remote.Options{})
		if err != nil {
			b.Fatal(err)
		}
		list[0].Caller = session
		begin = time.Now()
		clocks, err := Clocks(procfs.Host, p.PID)
		if err != nil {
			b.Fatal(err)
		}
		src := &Source{FS: procfs.Host, Tracer: tracer, Memory: memory, Proc: p, Tree: []*engine.Process{p}, Clocks: clocks, RestartBlocks: reader}
		if _, err := DumpProcess(ctx, src, list); err != nil {
			b.Fatal(err)
		}
		record += time.Since(begin)
		if err := session.Close(); err != nil {
			b.Fatal(err)
		}
		_ = memory.Close()
		for _, th := range p.Threads {
			if err := tracer.Detach(ctx, th.TID, 0); err != nil {
				b.Fatal(err)
			}
		}
		_ = tracer.Close()
	}
	b.ReportMetric(float64(states.Microseconds())/float64(b.N*threads), "us/thread-ptrace")
	b.ReportMetric(float64(record.Microseconds())/float64(b.N*threads), "us/thread-record")
}
