//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"migrate/e2e/vm/modules"
)

const modulesDir = "/lib/modules"

// modprobe loads what the names or aliases in its arguments mean, with what that needs. The kernel starts it as
// "/sbin/modprobe -q -- ALIAS" (kernel/module/kmod.c) and often asks for what does not exist.
func modprobe(args []string) error {
	f, err := os.Open(filepath.Join(modulesDir, "table.json"))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	table, err := modules.Load(f)
	if err != nil {
		return err
	}
	for _, alias := range args {
		if strings.HasPrefix(alias, "-") {
			continue
		}
		names := table.Find(alias)
		if len(names) == 0 {
			return fmt.Errorf("no module is called %s", alias)
		}
		for _, name := range names {
			if err := insert(table, name); err != nil {
				return err
			}
		}
	}
	return nil
}

func insert(table modules.Table, name string) error {
	order, err := table.Order(name)
	if err != nil {
		return err
	}
	for _, n := range order {
		f, err := os.Open(filepath.Join(modulesDir, table[n].File))
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		_ = f.Close() // it was only read
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("loading %s: %w", n, err)
		}
	}
	return nil
}
