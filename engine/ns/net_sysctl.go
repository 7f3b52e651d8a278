//go:build linux

package ns

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"migrate/engine/images/imagespb"
)

const netSysctls = sysctlDir + "net"

// readSysctls reads all settings below /proc/sys/net that can be read and written. A thread sees there those of its own network
// namespace.
func readSysctls() ([]*imagespb.Sysctl, error) {
	var out []*imagespb.Sysctl
	err := filepath.WalkDir(netSysctls, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // of a device that is gone
		}
		if err != nil {
			return err
		}
		if info.Mode()&0o600 != 0o600 {
			return nil
		}
		value, err := os.ReadFile(path)
		if err != nil {
			return nil // such as a secret that has not been set (stable_secret): there is nothing to carry
		}
		out = append(out, &imagespb.Sysctl{Name: strings.TrimPrefix(path, netSysctls+"/"), Value: strings.TrimRight(string(value), "\n")})
		return nil
	})
	return out, err
}

func (d *dumper) sysctls(n *imagespb.NetNamespace) (err error) {
	n.Sysctls, err = readSysctls()
	return err
}

// sysctlRank orders settings so that those which change others come first: "all" and "default" before single devices, and
// the switches that set all of a device's anew before what they set.
func sysctlRank(s *imagespb.Sysctl) int {
	rank := 0
	switch name := s.GetName(); {
	case strings.Contains(name, "/conf/all/"):
		rank = 2
	case strings.Contains(name, "/conf/default/"), strings.Contains(name, "/neigh/default/"):
		rank = 4
	case strings.Contains(name, "/conf/"), strings.Contains(name, "/neigh/"):
		rank = 6
	}
	if base := filepath.Base(s.GetName()); base != "forwarding" && base != "ip_forward" && base != "disable_ipv6" {
		rank++
	}
	return rank
}

// restoreSysctls writes what differs. One setting may change another, so it goes over them twice.
func restoreSysctls(want []*imagespb.Sysctl) error {
	want = slices.Clone(want)
	slices.SortStableFunc(want, func(a, b *imagespb.Sysctl) int { return cmp.Compare(sysctlRank(a), sysctlRank(b)) })
	for range 2 {
		for _, s := range want {
			if !filepath.IsLocal(s.GetName()) {
				return fmt.Errorf("setting %.200q: leads out of %s", s.GetName(), netSysctls)
			}
			path := filepath.Join(netSysctls, s.GetName())
			have, err := os.ReadFile(path)
			if errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("%s: this kernel has no such setting", path)
			}
			if err == nil && strings.TrimRight(string(have), "\n") == s.GetValue() {
				continue
			}
			if err := writeFile(path, s.GetValue()); err != nil {
				return err
			}
		}
	}
	return nil
}
