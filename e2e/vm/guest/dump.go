//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// dumpAndRestore takes a program from memory to disk and back, twice, and compares all that it ever computes.
func dumpAndRestore(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp("", "dump-*")
	if err != nil {
		return err
	}
	output := filepath.Join(dir, "output")
	cmd := exec.CommandContext(ctx, "/init")
	cmd.Args = []string{argProgram, output}
	cmd.Dir, cmd.Env = dir, environment
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	pid, gone := cmd.Process.Pid, make(chan error, 1)
	go func() { gone <- cmd.Wait() }()
	defer func() {
		if e := unix.Kill(pid, unix.SIGKILL); e != nil && !errors.Is(e, unix.ESRCH) {
			err = errors.Join(err, e)
		}
	}()
	var lines uint64
	for round := range 2 {
		if lines, err = awaitLines(ctx, output, lines+50); err != nil {
			return err
		}
		images := filepath.Join(dir, fmt.Sprintf("images%d", round))
		if err := command(ctx, "/", migrate, "dump", "--pid", strconv.Itoa(pid), "--dir", images); err != nil {
			return err
		}
		if round == 0 {
			<-gone // it was killed; the restored one is a child of init
		}
		pidfile := filepath.Join(dir, fmt.Sprintf("pid%d", round))
		if err := command(ctx, "/", migrate, "restore", "--dir", images, "--detach", "--pidfile", pidfile); err != nil {
			return err
		}
		text, err := os.ReadFile(pidfile)
		if err != nil {
			return err
		}
		if got := strings.TrimSpace(string(text)); got != strconv.Itoa(pid) {
			return fmt.Errorf("the program had the process id %d, the restored one has %s", pid, got)
		}
	}
	lines, err = awaitLines(ctx, output, lines+50)
	if err == nil {
		fmt.Printf("pid %d was dumped and restored twice; its %d lines are right\n", pid, lines)
	}
	return err
}

// awaitLines returns when the program has written that many lines, and says how many there are. All must be right.
func awaitLines(ctx context.Context, path string, want uint64) (uint64, error) {
	for {
		got, err := verify(path)
		if err != nil || got >= want {
			return got, err
		}
		select {
		case <-ctx.Done():
			return got, fmt.Errorf("the program has written %d lines, want %d: %w", got, want, context.Cause(ctx))
		case <-time.After(50 * time.Millisecond):
		}
	}
}
