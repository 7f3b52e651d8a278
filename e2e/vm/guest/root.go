//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"migrate/e2e/testns"
)

// environment is that of every program.
var environment = []string{"PATH=/usr/local/bin:/usr/bin:/bin:/sbin", "HOME=/root", "USER=root", "LANG=C.UTF-8", "CI=true"}

// makeRoot copies the initramfs onto a tmpfs and makes that the root of all processes.
func makeRoot() error {
	const at = "/mnt"
	if err := mount("tmpfs", at, 0, "mode=0755,size=80%"); err != nil {
		return err
	}
	err := filepath.WalkDir("/", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path == at {
			return fs.SkipDir
		}
		return copyEntry(path, at+path, d)
	})
	if err != nil {
		return fmt.Errorf("copying the initramfs: %w", err)
	}
	if err := os.Mkdir(at+at, 0o755); err != nil {
		return err
	}
	if err := os.Chdir(at); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("moving the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	return os.Chdir("/")
}

// copyEntry copies what is no directory and frees its memory.
func copyEntry(from, to string, d fs.DirEntry) error {
	info, err := d.Info()
	if err != nil {
		return err
	}
	switch info.Mode().Type() {
	case fs.ModeDir:
		if err := os.Mkdir(to, info.Mode().Perm()); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return nil
	case fs.ModeSymlink:
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(target, to)
	case 0:
		if err := copyFile(from, to, info.Mode().Perm()); err != nil {
			return err
		}
		return os.Remove(from)
	}
	return nil // devices are devtmpfs's
}

func copyFile(from, to string, perm fs.FileMode) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, perm)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}

func mount(fstype, at string, flags uintptr, data string) error {
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(fstype, at, fstype, flags, data); err != nil {
		return fmt.Errorf("mounting %s on %s: %w", fstype, at, err)
	}
	return nil
}

// makeSystem mounts the kernel's file systems and does what else a system's start does for programs.
func makeSystem() error {
	const safe = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	for _, m := range []struct {
		fstype, at, data string
		flags            uintptr
	}{
		{"proc", "/proc", "", safe}, {"sysfs", "/sys", "", safe}, {"devtmpfs", "/dev", "", unix.MS_NOSUID},
		{"devpts", "/dev/pts", "ptmxmode=0666,mode=0620", unix.MS_NOSUID | unix.MS_NOEXEC}, {"tmpfs", "/dev/shm", "mode=1777", unix.MS_NOSUID},
		{"mqueue", "/dev/mqueue", "", safe}, {"tmpfs", "/run", "mode=0755", unix.MS_NOSUID}, {"tmpfs", "/tmp", "mode=1777", unix.MS_NOSUID},
		{"cgroup2", "/sys/fs/cgroup", "", safe},
	} {
		if err := mount(m.fstype, m.at, m.flags, m.data); err != nil {
			return err
		}
	}
	for _, l := range []struct{ name, to string }{{"fd", "/proc/self/fd"}, {"stdin", "/proc/self/fd/0"}, {"stdout", "/proc/self/fd/1"}, {"stderr", "/proc/self/fd/2"}} {
		if err := os.Symlink(l.to, "/dev/"+l.name); err != nil {
			return err
		}
	}
	if err := unix.Sethostname([]byte("vm")); err != nil {
		return fmt.Errorf("sethostname: %w", err)
	}
	if err := delegate("/sys/fs/cgroup"); err != nil {
		return err
	}
	return testns.LoopbackUp()
}

// delegate makes the controllers of a cgroup available below it.
func delegate(dir string) error {
	text, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for c := range strings.FieldsSeq(string(text)) {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0); err != nil {
			return fmt.Errorf("the cgroup controller %s: %w", c, err)
		}
	}
	return nil
}
