//go:build linux

// Package moves moves real programs between the virtual hosts of a cluster while they are in use, and checks
// afterwards, from outside, that nothing happened to them.
package moves

import (
	"os"
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
