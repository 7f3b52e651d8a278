//go:build linux

package programs

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestShellUnderScript moves an interactive bash at a terminal with script(1), which holds the terminal's master.
func TestShellUnderScript(t *testing.T) {
	s := begin(t, 2*time.Minute)
	shown := filepath.Join(s.disk("shell"), "shown") // what a workload prints stays on the host where it printed it
	s.Workload("typing", "", "/bin/bash", s.Script("typing.sh"), shown)
	s.shows(shown, regexp.MustCompile(`got:3\r`))
	for _, to := range []string{"host2", "host3"} {
		s.Move("typing", to, "--files", "shared", "--max-downtime", "5s")
	}
	if err := os.WriteFile(shown+".stop", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	end := regexp.MustCompile(`end:(\d+)x\r`)
	out := s.shows(shown, end)
	lines, err := strconv.Atoi(end.FindStringSubmatch(out)[1])
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for i := 1; i <= lines; i++ {
		want = append(want, fmt.Sprintf("got:%d", i))
		if i%10 == 0 {
			want = append(want, fmt.Sprintf("slept:%d", i))
		}
	}
	seen := map[string]int{}
	for _, m := range regexp.MustCompile(`(got|slept):\d+\r`).FindAllString(out, -1) {
		seen[strings.TrimSuffix(m, "\r")]++
	}
	for _, w := range want {
		if seen[w] != 1 {
			t.Errorf("%q was shown %d times", w, seen[w])
		}
	}
	if t.Failed() {
		t.Log(out)
	}
}

// shows waits until a file of the shared storage holds a match, and returns all of it.
func (s *scope) shows(path string, match *regexp.Regexp) string {
	s.Helper()
	for {
		got, err := os.ReadFile(path)
		if err == nil && match.Match(got) {
			return string(got)
		}
		if s.Ctx.Err() != nil {
			s.Fatalf("%v is not shown (%v):\n%s", match, err, got)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
