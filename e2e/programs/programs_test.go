//go:build linux

// Package programs moves real programs of Debian between the virtual hosts of a cluster while they are in use, and checks
// afterwards, from outside, that nothing happened to them. deploy/debian-deps installs them.
package programs

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"migrate/e2e/cluster"
)

func TestMain(m *testing.M) { os.Exit(cluster.Main(m)) }

// scope is one test's use of the cluster.
type scope struct{ *cluster.Scope }

func begin(t *testing.T, d time.Duration) *scope {
	t.Helper()
	return &scope{cluster.Begin(t, d)}
}

// program finds an installed program.
func (s *scope) program(name string) string {
	s.Helper()
	bin, err := exec.LookPath(name)
	if err != nil {
		s.Fatalf("%s is not installed; `make deps` installs it", name)
	}
	return bin
}

// disk makes a directory on the storage that hosts share.
func (s *scope) disk(name string) string {
	s.Helper()
	dir := filepath.Join(cluster.Disk, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			s.Error(err)
		}
	})
	return dir
}
