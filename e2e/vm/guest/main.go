//go:build linux

// The command guest is the init of the virtual machine of e2e/vm, and what the kernel there starts to load modules.
//
//	pid 1      mounts what a system has, copies the initramfs onto a tmpfs and makes that the root (root.go: a root file system that
//	           is an initramfs cannot be left by pivot_root(2), which virtual hosts do), starts "steps", reaps, powers off
//	steps      runs one step after another, each within its time, and prints the verdict (steps.go)
//	program    is what is dumped and restored (program.go)
//	modprobe   loads the modules that the kernel asks for (modprobe.go)
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"migrate/e2e/vm/verdict"
)

// argSteps is the name under which init starts itself again.
const argSteps = "migrate-vm-steps"

func main() {
	switch name := filepath.Base(os.Args[0]); {
	case name == "modprobe":
		if err := modprobe(os.Args[1:]); err != nil {
			_, _ = fmt.Fprintln(os.Stderr, "modprobe:", err)
			os.Exit(1)
		}
	case name == argSteps:
		if err := runSteps(os.Args[1:]); err != nil {
			fmt.Println(verdict.Line(err.Error()))
			return
		}
		fmt.Println(verdict.Line(verdict.Pass))
	case name == argProgram && len(os.Args) == 2:
		_, _ = fmt.Fprintln(os.Stderr, program(os.Args[1]))
		os.Exit(1)
	case os.Getpid() == 1:
		if err := initialize(); err != nil {
			fmt.Println(verdict.Line("init: " + err.Error()))
		}
		unix.Sync()
		fmt.Println("power off:", unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
	default:
		_, _ = fmt.Fprintln(os.Stderr, "this is the init of a virtual machine; run: make vm-smoke")
		os.Exit(2)
	}
}

// initialize makes the system, runs the steps and returns when they have ended.
func initialize() error {
	if err := makeRoot(); err != nil {
		return err
	}
	if err := makeSystem(); err != nil {
		return err
	}
	cmd := exec.Command("/init")
	cmd.Args = append([]string{argSteps}, os.Args[1:]...)
	cmd.Env = environment
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	for {
		pid, err := unix.Wait4(-1, nil, 0, nil)
		if pid == cmd.Process.Pid {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait4: %w", err)
		}
	}
}
