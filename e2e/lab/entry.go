package lab

import (
	"fmt"
	"os"

	"migrate/e2e/lab/boot"
	"migrate/e2e/lab/pid1"
)

// The names under which a program that has this package in it is started again to become a part of the lab.
const (
	argSwitch = "migrate-lab-switch"
	argClient = "migrate-lab-client"
	argBoot   = "migrate-lab-boot"
	argInit   = "migrate-lab-init"
)

// init makes every program that imports the package, tests included, able to be the pid 1 of a host. A program that had to
// remember a call in its main function, and forgot it, would start itself over and over.
func init() {
	var become func() error
	switch os.Args[0] {
	default:
		return
	case argSwitch:
		become = boot.Switch
	case argClient:
		become = boot.Client
	case argBoot:
		become = func() error { return boot.Host(argInit) } // goes on as argInit, in a new program
	case argInit:
		become = func() error { return nil }
	}
	os.Exit(runPart(become))
}

func runPart(become func() error) int {
	if err := become(); err != nil {
		boot.Fail(err)
		return 1
	}
	l, err := boot.Ready()
	if err != nil {
		boot.Fail(err)
		return 1
	}
	if err := pid1.Serve(l); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	return 1
}
