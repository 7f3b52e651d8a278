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

// TestShellAtTerminal moves an interactive bash at a terminal with script(1), which holds the terminal's master.
func TestShellAtTerminal(t *testing.T) {
	s := begin(t, 2*time.Minute)
	const lines = 200
	shown := filepath.Join(s.disk("shell"), "shown") // what a workload prints stays on the host where it printed it
	s.Workload("shell", "", "/bin/bash", s.Script("typing.sh"), strconv.Itoa(lines), shown)
	s.shows(shown, "got:3\r")
	s.Move("shell", "host2", "--files", "shared", "--max-downtime", "5s")
	s.Move("shell", "host3", "--files", "shared", "--max-downtime", "5s")
	out := s.shows(shown, "end:42\r")
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

// shows waits until a file of the shared storage holds a text, and returns all of it.
func (s *scope) shows(path, text string) string {
	s.Helper()
	for {
		got, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(got), text) {
			return string(got)
		}
		if s.Ctx.Err() != nil {
			s.Fatalf("%q is not shown (%v):\n%s", text, err, got)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
