//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"migrate/e2e/vm/initramfs"
)

// tested are the packages whose tests run in the machine.
var tested = []string{"engine/mem"}

const busybox = "/bin/busybox" // of busybox-static; on Debian 13 /bin is /usr/bin

// applets are the programs that tests start.
var applets = []string{"cat", "echo", "sh", "sleep", "true"}

// buildInitramfs builds the programs in dir and writes the archive.
func buildInitramfs(ctx context.Context, dir, archive string, k *kernel) (err error) {
	fmt.Println("vm: building for", k.release)
	if err := compile(ctx, dir); err != nil {
		return err
	}
	f, err := os.Create(archive)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	b := bufio.NewWriterSize(f, 1<<20)
	w := initramfs.NewWriter(b)
	w.Device("dev/console", 0o600, 5, 1)
	for _, d := range []string{"proc", "sys", "run", "tmp", "root", "var/lib", "var/log", "mnt"} {
		w.Dir(d, 0o755)
	}
	w.Copy("init", 0o755, filepath.Join(dir, "guest"))
	w.Link("sbin/modprobe", "/init")
	w.Copy("usr/local/bin/migrate", 0o755, filepath.Join(dir, "migrate"))
	w.Copy("bin/busybox", 0o755, busybox)
	for _, name := range applets {
		w.Link("bin/"+name, "busybox")
	}
	w.File("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"))
	w.File("etc/group", 0o644, []byte("root:x:0:\nnogroup:x:65534:\n"))
	w.File("etc/hosts", 0o644, []byte("127.0.0.1\tlocalhost\n::1\tlocalhost\n"))
	if err := addModules(w, k); err != nil {
		return err
	}
	for _, pkg := range tested {
		w.Copy("src/"+pkg+"/test", 0o755, filepath.Join(dir, testBinary(pkg)))
		if err := addTree(w, pkg+"/testdata"); err != nil {
			return err
		}
	}
	return errors.Join(w.Close(), b.Flush())
}

// compile builds what runs in the machine. The working directory is the top of the module.
func compile(ctx context.Context, dir string) error {
	builds := [][]string{
		{"build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, "migrate"), "./migrate"},
		{"build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, "guest"), "./e2e/vm/guest"},
	}
	for _, pkg := range tested {
		builds = append(builds, []string{"test", "-c", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, testBinary(pkg)), "./" + pkg})
	}
	for _, args := range builds {
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH=amd64")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	return nil
}

func testBinary(pkg string) string { return strings.ReplaceAll(pkg, "/", "-") + ".test" }

func addModules(w *initramfs.Writer, k *kernel) error {
	for _, m := range k.modules {
		w.Copy("lib/modules/"+m.File, 0o644, filepath.Join(k.dir, m.File))
	}
	var table bytes.Buffer
	if err := k.modules.Write(&table); err != nil {
		return err
	}
	w.File("lib/modules/table.json", 0o644, table.Bytes())
	return nil
}

// addTree adds a directory of the module below src, if it exists.
func addTree(w *initramfs.Writer, dir string) error {
	err := filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			w.Copy("src/"+file, 0o644, file)
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
