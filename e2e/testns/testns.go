// Package testns runs a package's tests inside pid, mount, network and IPC namespaces of their own, under a pid 1 that reaps.
// Process ids are then free as soon as a process has ended, and nothing that a test forgets outlives it.
package testns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// stage is the environment variable that tells a re-executed test binary what it is.
const stage = "MIGRATE_TESTNS"

// Main runs the tests of m in namespaces when the caller is root, and where it is otherwise. Use it as
//
//	func TestMain(m *testing.M) { os.Exit(testns.Main(m)) }
func Main(m *testing.M) int {
	switch {
	case os.Geteuid() != 0 || os.Getenv(stage) == "tests":
		return m.Run()
	case os.Getenv(stage) == "pid1":
		code, err := pid1()
		return report(code, err)
	}
	cmd := again("pid1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC,
		Pdeathsig:  unix.SIGKILL,
	}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return report(0, err)
}

func report(code int, err error) int {
	if err == nil {
		return code
	}
	_, _ = fmt.Fprintf(os.Stderr, "testns: %v\n", err)
	return 1
}

func again(what string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), stage+"="+what)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd
}

// pid1 sets the namespaces up, starts the tests and reaps until they end.
func pid1() (int, error) {
	// What the tests were started with besides the standard descriptors is nothing that programs under test should have.
	if err := unix.CloseRange(3, 1<<31-1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return 0, fmt.Errorf("close_range: %w", err)
	}
	if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return 0, fmt.Errorf("making mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return 0, fmt.Errorf("mounting /proc: %w", err)
	}
	if err := LoopbackUp(); err != nil {
		return 0, err
	}
	cmd := again("tests")
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	for {
		var st unix.WaitStatus
		pid, err := unix.Wait4(-1, &st, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("wait4: %w", err)
		}
		if pid == cmd.Process.Pid && st.Exited() {
			return st.ExitStatus(), nil
		}
		if pid == cmd.Process.Pid && st.Signaled() {
			return 0, fmt.Errorf("the tests ended by signal %v", st.Signal())
		}
	}
}

// LoopbackUp switches lo on in the network namespace of the calling thread.
func LoopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("switching lo on: %w", err)
	}
	return nil
}
