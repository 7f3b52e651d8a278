//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"migrate/e2e/vm/verdict"
)

// boot runs the machine, shows its console and returns nil if the guest said PASS.
func boot(ctx context.Context, o options, k *kernel, initrd string) error {
	runtime.LockOSThread() // the death of the thread that started the machine ends it
	defer runtime.UnlockOSThread()
	outer := ctx
	ctx, kill := context.WithCancel(ctx)
	defer kill()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", strconv.Itoa(o.memory), "-smp", "2",
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio", "-kernel", k.image, "-initrd", initrd,
		"-append", "console=ttyS0 quiet panic=-1 -- "+strings.Join(o.guest, " "))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	cmd.Stderr = os.Stderr
	console, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting the machine: %w (Debian: qemu-system-x86)", err)
	}
	said, err := listen(console, os.Stdout)
	if err != nil {
		kill() // nobody can hear it any more
	}
	err = errors.Join(err, cmd.Wait())
	switch {
	case outer.Err() != nil:
		return fmt.Errorf("the machine was ended: %w", context.Cause(outer))
	case err != nil:
		return fmt.Errorf("the machine: %w", err)
	case said == "":
		return errors.New("the machine ended without a verdict: its kernel or its init failed, see above")
	case said != verdict.Pass:
		return fmt.Errorf("the guest says: %s", said)
	}
	return nil
}

// listen shows what the console says until it ends, and returns the last verdict in it.
func listen(console io.Reader, show io.Writer) (said string, err error) {
	r := bufio.NewReader(console)
	for {
		line, err := r.ReadString('\n')
		line = strings.TrimRight(line, "\r\n")
		if v, ok := verdict.Parse(line); ok {
			said = v
		}
		if line != "" || err == nil {
			if _, err := fmt.Fprintln(show, line); err != nil {
				return said, err
			}
		}
		if errors.Is(err, io.EOF) {
			return said, nil
		}
		if err != nil {
			return said, err
		}
	}
}
