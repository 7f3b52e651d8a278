//go:build linux

package programs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"migrate/e2e/cluster"
)

// TestCompiler moves a shell that has gcc compile something again and again: processes and temporary files that come and go all
// the time. Its directory is on storage that the hosts share.
func TestCompiler(t *testing.T) {
	s := begin(t, time.Minute)
	dir := s.disk("compiler")
	s.sources(dir)
	s.Workload("compiler", "", "/bin/sh", s.Script("compile.sh"), dir)
	said := func() string {
		text, err := os.ReadFile(filepath.Join(dir, "said"))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		return string(text)
	}
	s.compiled(said, 1)
	for range 4 { // each at another moment of the work
		s.On("host1", cluster.Migrate, "plan", "compiler", "--to", "host2")
	}
	for _, to := range []string{"host2", "host3"} {
		s.Move("compiler", to, "--max-downtime", "5s")
		s.compiled(said, 2) // one from its begin to its end, at least
	}
	if err := os.WriteFile(filepath.Join(dir, "stop"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	s.until(said, "done\n")
}

// TestCompilerVolume is the same with a directory of the host, which moves along.
func TestCompilerVolume(t *testing.T) {
	s := begin(t, time.Minute)
	const dir = "/srv/compiler/here"
	for _, h := range []string{"host1", "host2", "host3"} { // of another run of this test
		s.On(h, "rm", "-rf", dir)
	}
	made := s.disk("sources")
	s.sources(made)
	s.On("host1", "mkdir", "-p", dir)
	s.On("host1", "cp", made+"/source.c", made+"/want.o", dir)
	s.Run("volume", []string{"--volume", dir}, "/bin/sh", s.Script("compile.sh"), dir)
	host := "host1"
	said := func() string { return s.On(host, "sh", "-c", "cat "+dir+"/said 2>&-; true") }
	s.compiled(said, 1)
	s.Move("volume", "host2", "--max-downtime", "5s")
	host = "host2"
	s.compiled(said, 2)
	s.On(host, "touch", dir+"/stop")
	s.until(said, "done\n")
}

// sources makes source.c and want.o in a directory.
func (s *scope) sources(dir string) {
	s.Helper()
	var source strings.Builder
	for i := range 40 {
		fmt.Fprintf(&source, "int f%d(int *p, int n) { int s = %d; for (int i = 0; i < n; i++) s += p[i] * %d; return s; }\n", i, i, i)
	}
	if err := os.WriteFile(filepath.Join(dir, "source.c"), []byte(source.String()), 0o644); err != nil {
		s.Fatal(err)
	}
	cmd := exec.CommandContext(s.Ctx, s.program("gcc"), "-O1", "-c", "-o", filepath.Join(dir, "want.o"), filepath.Join(dir, "source.c"))
	if out, err := cmd.CombinedOutput(); err != nil {
		s.Fatalf("gcc: %v\n%s", err, out)
	}
}

// compiled waits until there are n more objects.
func (s *scope) compiled(said func() string, n int) {
	s.Helper()
	s.until(said, fmt.Sprintf("\n%d\n", strings.Count(said(), "\n")+n))
}

// until waits for a text that ends in a newline.
func (s *scope) until(said func() string, text string) {
	s.Helper()
	for {
		got := "\n" + said()
		if strings.Contains(got, "wrong") {
			s.Fatal(got)
		}
		if strings.Contains(got, text) {
			return
		}
		if s.Ctx.Err() != nil {
			s.Fatalf("no %q:\n%s", text, got)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
