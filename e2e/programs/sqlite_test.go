//go:build linux

package programs

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"migrate/e2e/cluster"
)

// TestSQLite moves two writers and a reader of one database in WAL mode, with the database. What a writer was told is committed is
// there afterwards, and nothing is missing between.
func TestSQLite(t *testing.T) {
	s := begin(t, time.Minute)
	s.program("sqlite3")
	const dir = "/srv/sqlite/here"
	for _, h := range []string{"host1", "host2", "host3"} { // of another run of this test
		s.On(h, "rm", "-rf", dir)
	}
	s.On("host1", "mkdir", "-p", dir)
	s.Run("sqlite", []string{"--volume", dir}, "/bin/bash", s.Script("sqlite.sh"), dir+"/db")
	for _, to := range []string{"host2", "host3"} {
		s.committed("sqlite", 10)
		s.Move("sqlite", to, "--max-downtime", "5s")
	}
	last := s.committed("sqlite", 10)
	s.On("host1", cluster.Migrate, "stop", "sqlite", "--grace", "1s")
	if got := s.On("host3", "sqlite3", dir+"/db", "PRAGMA integrity_check"); got != "ok\n" {
		t.Errorf("integrity_check says %s", got)
	}
	for who, n := range last {
		got := s.On("host3", "sqlite3", dir+"/db", fmt.Sprintf("SELECT count(*) FROM rows WHERE who='%[1]s' UNION ALL SELECT max(n) FROM rows WHERE who='%[1]s'", who))
		var count, maximum int
		if _, err := fmt.Sscan(got, &count, &maximum); err != nil {
			t.Fatalf("%q: %v", got, err)
		}
		if count != maximum || count < n {
			t.Errorf("of the %s writer there are %d rows up to %d, and %d were committed", who, count, maximum, n)
		}
	}
}

// committed waits until each writer has committed n more rows, and returns the number of each's last.
func (s *scope) committed(name string, n int) map[string]int {
	s.Helper()
	last := map[string]int{}
	for _, who := range []string{"first", "second"} {
		now := lastNumber(s.Logs(name, "\n"+who+" "), who)
		last[who] = lastNumber(s.Logs(name, fmt.Sprintf("\n%s %d\n", who, now+n)), who)
	}
	if out := s.Logs(name, "\n"); strings.Contains(out, "wrong") || strings.Contains(out, "rror") {
		s.Fatal(out)
	}
	return last
}

// lastNumber is the number in the last whole line that begins with a word.
func lastNumber(text, word string) (last int) {
	for line := range strings.Lines(text) {
		rest, ok := strings.CutPrefix(line, word+" ")
		if n, err := strconv.Atoi(strings.TrimSuffix(rest, "\n")); ok && err == nil && strings.HasSuffix(rest, "\n") {
			last = n
		}
	}
	return last
}
