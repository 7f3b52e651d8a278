//go:build linux

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// step is one thing that is shown in the machine.
type step struct {
	name  string
	limit time.Duration
	run   func(ctx context.Context) error
}

var (
	only  = flag.String("steps", "", "run only the steps whose name matches")
	seeds = flag.Int("seeds", 6, "how many random programs each tracker copies")
)

func steps() []step {
	return []step{
		{"kernel", time.Minute, aboutKernel},
		{"memory/userfaultfd", 4 * time.Minute, memory("userfaultfd")},
		{"memory/soft-dirty", 3 * time.Minute, memory("soft-dirty")},
		{"memory/hashes", 3 * time.Minute, memory("hashes")},
		{"dump", 2 * time.Minute, dumpAndRestore},
		{"move", 8 * time.Minute, moveInLab},
	}
}

// runSteps runs all of them, also after one has failed, and says which have.
func runSteps(args []string) error {
	if err := flag.CommandLine.Parse(args); err != nil {
		return err
	}
	pattern, err := regexp.Compile(*only)
	if err != nil {
		return fmt.Errorf("-steps: %w", err)
	}
	var failed []string
	for _, s := range steps() {
		if !pattern.MatchString(s.name) {
			continue
		}
		fmt.Printf("=== %s\n", s.name)
		began := time.Now()
		ctx, cancel := context.WithTimeoutCause(context.Background(), s.limit, fmt.Errorf("not done after %v", s.limit))
		err := s.run(ctx)
		if ctx.Err() != nil {
			err = errors.Join(context.Cause(ctx), err)
		}
		cancel()
		result := "ok"
		if err != nil {
			failed = append(failed, s.name)
			result = "FAILED"
			fmt.Println(err)
		}
		fmt.Printf("--- %s %s (%.0f s)\n", result, s.name, time.Since(began).Seconds())
	}
	if len(failed) > 0 {
		return fmt.Errorf("failed: %s", strings.Join(failed, ", "))
	}
	return nil
}

// command runs a program with its output on the console.
func command(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env = dir, environment
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

const migrate = "/usr/local/bin/migrate"

func aboutKernel(ctx context.Context) error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	fmt.Println(unix.ByteSliceToString(u.Sysname[:]), unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Version[:]), unix.ByteSliceToString(u.Machine[:]))
	return command(ctx, "/", migrate, "check")
}

// memory runs the tests of engine/mem by which a tracker is judged: one for each way in which writes get lost, and programs
// that map, unmap, move, protect and write at random, whose memory must be the same on both sides.
func memory(tracker string) func(context.Context) error {
	tests := map[string]string{
		"userfaultfd": "Test(Loss|Exec|Replaced|Copy|RandomProgram)",
		"soft-dirty":  "Test(SoftDirty$|RandomProgram)",
		"hashes":      "Test(Hashes|RandomProgram)",
	}[tracker]
	return func(ctx context.Context) error {
		return command(ctx, "/src/engine/mem", "./test", "-test.v", "-test.short", "-test.run", "^"+tests, "-tracker", tracker, "-seeds", strconv.Itoa(*seeds))
	}
}
