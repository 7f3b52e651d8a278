// Package rules holds the rules of the house as tests: which package may import which, where unsafe code may
// stand, how long a file may grow.
package rules

import (
	"bufio"
	"encoding/json"
	"errors"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "migrate"

// allowed names, for each part of the module, the other parts it may import. A part is the longest matching
// prefix. Test files may import more: only a package's own code is held to the table.
var allowed = map[string][]string{
	"arch":                 {},
	"tcprepair":            {},
	"pagexfer":             {},
	"engine":               {"engine", "arch", "tcprepair"},
	"coordinator/handoff":  {},
	"coordinator/pki":      {},
	"coordinator/schedule": {},
	"coordinator/api":      {"agent/api"},
	"agent/api":            {},
	"agent/port":           {"engine/thread"},
	"agent":                {"agent", "engine", "pagexfer", "coordinator/handoff", "coordinator/api", "coordinator/client", "coordinator/pki"},
	"coordinator":          {"coordinator", "arch", "agent/api"},
	"migrate":              {"agent", "coordinator", "engine", "e2e/lab", "e2e/demo"},
	"e2e":                  {"agent", "coordinator", "engine", "pagexfer", "arch", "tcprepair", "e2e"},
}

// pure packages do no I/O and read no clock.
var pure = map[string][]string{
	"coordinator/handoff":  {"os", "net", "time", "sync", "io", "syscall", "context", "log", "log/slog"},
	"coordinator/schedule": {"os", "net", "time", "sync", "io", "syscall", "context", "log", "log/slog"},
}

type pkg struct {
	ImportPath, Dir         string
	Imports                 []string
	GoFiles, IgnoredGoFiles []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Imports,GoFiles,IgnoredGoFiles", module+"/...")
	cmd.Dir = root(t)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var ps []pkg
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return ps
		} else if err != nil {
			t.Fatal(err)
		}
		ps = append(ps, p)
	}
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func within(path, part string) bool { return path == part || strings.HasPrefix(path, part+"/") }

func partOf(path string) string {
	best := ""
	for part := range allowed {
		if within(path, part) && len(part) > len(best) {
			best = part
		}
	}
	return best
}

func TestImportsPointDown(t *testing.T) {
	for _, p := range packages(t) {
		rel := strings.TrimPrefix(p.ImportPath, module+"/")
		part := partOf(rel)
		if part == "" {
			t.Errorf("%s belongs to no part of the table of allowed imports", p.ImportPath)
			continue
		}
		for _, imp := range p.Imports {
			if !within(imp, module) {
				continue
			}
			to := strings.TrimPrefix(imp, module+"/")
			if !within(to, part) && !slices.ContainsFunc(allowed[part], func(a string) bool { return within(to, a) }) {
				t.Errorf("%s imports %s: %s may import only %v", rel, to, part, allowed[part])
			}
		}
		for _, imp := range pure[rel] {
			if slices.Contains(p.Imports, imp) {
				t.Errorf("%s is pure and must not import %s", rel, imp)
			}
		}
	}
}

func TestEachPackageHasOneComment(t *testing.T) {
	for _, p := range packages(t) {
		var with []string
		for _, f := range append(p.GoFiles, p.IgnoredGoFiles...) {
			if strings.HasSuffix(f, "_test.go") || strings.HasSuffix(f, ".pb.go") {
				continue
			}
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, f), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Errorf("%s/%s: %v", p.ImportPath, f, err)
				continue
			}
			if file.Doc != nil {
				with = append(with, f)
			}
		}
		generated := len(p.GoFiles) > 0 && !slices.ContainsFunc(p.GoFiles, func(f string) bool { return !strings.HasSuffix(f, ".pb.go") })
		if len(p.GoFiles) > 0 && !generated && len(with) != 1 {
			t.Errorf("%s has package comments in %v; want one", p.ImportPath, with)
		}
	}
}

func TestUnsafeIsQuarantined(t *testing.T) {
	for _, p := range packages(t) {
		for _, f := range append(p.GoFiles, p.IgnoredGoFiles...) {
			if strings.HasSuffix(f, "_unsafe.go") || strings.HasSuffix(f, "_unsafe_linux.go") || strings.HasSuffix(f, ".pb.go") || strings.HasSuffix(f, "_test.go") {
				continue
			}
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, f), nil, parser.ImportsOnly)
			if err != nil {
				t.Errorf("%s/%s: %v", p.ImportPath, f, err)
				continue
			}
			for _, imp := range file.Imports {
				if imp.Path.Value == `"unsafe"` {
					t.Errorf("%s/%s imports unsafe; it belongs into a *_unsafe.go file", p.ImportPath, f)
				}
			}
		}
	}
}

// maxLines is the length at which a file has outgrown its subject.
const maxLines = 600

func TestFilesStaySmall(t *testing.T) {
	for _, p := range packages(t) {
		for _, f := range append(p.GoFiles, p.IgnoredGoFiles...) {
			if strings.HasSuffix(f, ".pb.go") {
				continue
			}
			if n := lines(t, filepath.Join(p.Dir, f)); n > maxLines {
				t.Errorf("%s/%s has %d lines; split it by subject below %d", p.ImportPath, f, n, maxLines)
			}
		}
	}
}

func lines(t *testing.T, path string) int {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	n := 0
	for s := bufio.NewScanner(f); s.Scan(); {
		n++
	}
	return n
}
