//go:build linux

// The command vm boots Debian's own kernel for clouds in a virtual machine and shows the tool there: `make vm-smoke`. That kernel
// has what others lack (soft-dirty bits) and lacks what newer ones have, so what works on the machine that builds the project
// is seen to work, or to be refused by name, on one that users have.
//
//	fetch     the kernel's Debian package, by apt, once; its modules are decompressed beside it (kernel.go)
//	build     the command, test binaries, and e2e/vm/guest, which is all that runs in the machine besides; an initramfs of them (build.go)
//	boot      qemu without KVM, two processors, the serial console on standard output (machine.go)
//	PASS      the guest prints its verdict and powers the machine off; the exit code is 0 after PASS, 1 after anything else
//
// The machine has no network, no disk and no other way out than its console. It ends with this program, however that ends.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

type options struct {
	kernel  string
	memory  int
	timeout time.Duration
	guest   []string
}

func main() {
	var o options
	flag.StringVar(&o.kernel, "kernel", "6.12", "version of the Debian kernel, such as 6.1 or 6.12")
	flag.IntVar(&o.memory, "memory", 2048, "memory of the machine, in MiB")
	flag.DurationVar(&o.timeout, "timeout", 20*time.Minute, "time for all of it")
	flag.Usage = func() {
		_, _ = fmt.Fprintf(flag.CommandLine.Output(), "usage: go run ./e2e/vm [flags] [-- flags of e2e/vm/guest]\n")
		flag.PrintDefaults()
	}
	flag.Parse()
	o.guest = flag.Args()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	ctx, cancel := context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("not done after %v (-timeout)", o.timeout))
	defer cancel()
	if err := run(ctx, o); err != nil {
		_, _ = fmt.Fprintf(os.Stderr, "vm: FAIL: %v\n", err)
		os.Exit(1)
	}
	_, _ = fmt.Println("vm: PASS")
}

func run(ctx context.Context, o options) (err error) {
	k, err := fetchKernel(ctx, o.kernel)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "migrate-vm-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	initrd := filepath.Join(dir, "initrd")
	if err := buildInitramfs(ctx, dir, initrd, k); err != nil {
		return err
	}
	return boot(ctx, o, k, initrd)
}
