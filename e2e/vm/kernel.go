//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"migrate/e2e/vm/modules"
)

// kernel is a kernel of Debian's, unpacked.
type kernel struct {
	image   string // bzImage
	release string // what uname -r says
	dir     string // of the modules
	modules modules.Table
}

// wanted are the modules that go into the machine, with what they need: what the command, the lab and the tests use or ask for.
var wanted = []string{
	"drivers/net/dummy", "drivers/net/ifb", "drivers/net/macvlan", "drivers/net/tun", "drivers/net/veth", "fs/overlayfs",
	"net/8021q", "net/bridge", "net/ipv4", "net/ipv6", "net/mptcp", "net/netfilter", "net/netlink", "net/packet", "net/sched", "net/unix",
}

// fetchKernel returns the kernel of a version such as 6.12, taken from the Debian package that apt offers: on Debian 12 6.12 is
// linux-image-6.12-cloud-amd64, on Debian 13 it is linux-image-cloud-amd64. What was fetched is kept.
func fetchKernel(ctx context.Context, version string) (*kernel, error) {
	name, err := packageOf(ctx, version)
	if err != nil {
		return nil, err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = "/var/cache"
	}
	dir := filepath.Join(cache, "migrate-tests", name)
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		if err := unpack(ctx, name, dir); err != nil {
			return nil, fmt.Errorf("fetching the kernel: %w", err)
		}
	}
	release := strings.TrimPrefix(name, "linux-image-")
	k := &kernel{release: release, image: filepath.Join(dir, "boot", "vmlinuz-"+release), dir: filepath.Join(dir, "lib/modules", release, "kernel")}
	if _, err := os.Stat(k.dir); errors.Is(err, os.ErrNotExist) {
		k.dir = filepath.Join(dir, "usr/lib/modules", release, "kernel") // Debian 13
	}
	all, err := modules.Read(k.dir)
	if err != nil {
		return nil, err
	}
	k.modules, err = all.Select(wanted...)
	return k, err
}

// packageOf returns the package with the newest kernel of a version.
func packageOf(ctx context.Context, version string) (string, error) {
	var seen []string
	for _, meta := range []string{"linux-image-" + version + "-cloud-amd64", "linux-image-cloud-amd64"} {
		out, err := exec.CommandContext(ctx, "apt-cache", "depends", "--important", meta).Output()
		if err != nil {
			continue // there is no such package
		}
		for line := range strings.SplitSeq(string(out), "\n") {
			name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: ")
			if ok && strings.HasPrefix(name, "linux-image-"+version+".") {
				return name, nil
			}
			if ok {
				seen = append(seen, name)
			}
		}
	}
	return "", fmt.Errorf("apt knows no kernel %s for clouds (apt-get update; on Debian 12 the backports or security archive has 6.12); it has %v", version, seen)
}

// unpack fetches a package and unpacks it into dir, with the modules decompressed.
func unpack(ctx context.Context, name, dir string) (err error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	part, err := os.MkdirTemp(filepath.Dir(dir), "part-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(part)) }()
	fmt.Println("vm: fetching", name)
	const script = `set -e
apt-get download -qq "$1"
dpkg-deb -x ./*.deb tree
find tree -name '*.ko.xz' -print0 | xargs -0 -r xz -d`
	cmd := exec.CommandContext(ctx, "sh", "-c", script, "sh", name)
	cmd.Dir = part
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return os.Rename(filepath.Join(part, "tree"), dir)
}
