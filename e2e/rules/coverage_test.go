//go:build linux

package rules

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"migrate/engine/files"
	"migrate/engine/mem"
	"migrate/engine/ns"
	"migrate/engine/task"
)

var update = flag.Bool("update", false, "write docs/coverage.md anew from the engine's tables")

// coverageRow is one kind of state, as docs/coverage.md shows it.
type coverageRow struct {
	name, about string
	carried     bool
}

// TestCoverageIsCurrent fails when docs/coverage.md says something else than the tables by which the engine carries and
// refuses. `go test ./e2e/rules -run Coverage -update` writes it anew.
func TestCoverageIsCurrent(t *testing.T) {
	path := filepath.Join(root(t), "docs", "coverage.md")
	want := coverage(t)
	if *update {
		if err := os.WriteFile(path, want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("docs/coverage.md is not what the engine's tables say; run: go test ./e2e/rules -run Coverage -update\n%s", firstDifference(string(got), string(want)))
	}
}

func firstDifference(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range max(len(g), len(w)) {
		a, b := "(end)", "(end)"
		if i < len(g) {
			a = g[i]
		}
		if i < len(w) {
			b = w[i]
		}
		if a != b {
			return fmt.Sprintf("line %d is   %s\nit should be %s", i+1, a, b)
		}
	}
	return ""
}

func coverage(t *testing.T) []byte {
	var b bytes.Buffer
	b.WriteString("# What moves with a program, and what does not\n\n" +
		"Made from the tables by which the engine works (`go test ./e2e/rules -run Coverage -update`); a test keeps it current.\n\n" +
		"What is carried arrives exactly, within the limits that its row names. What is refused is named by `migrate plan` and\n" +
		"`migrate move`, with process and descriptor, before the program is touched; where it can only be seen in a stopped\n" +
		"program, its row says so, and the program then runs on. What the kernel neither shows nor lets anybody set cannot be\n" +
		"refused and does not arrive: the rows say so, too. The first column is the kind that a plan prints.\n")
	var tasks []coverageRow
	for _, k := range task.Kinds() {
		tasks = append(tasks, coverageRow{k.Name, k.About, k.Carried})
	}
	section(&b, "Processes and threads", tasks)
	section(&b, "Descriptors", descriptorRows())
	section(&b, "Memory", memoryRows(t))
	var spaces []coverageRow
	for _, k := range ns.Kinds() {
		spaces = append(spaces, coverageRow{k.Name, k.About, k.Carried})
	}
	section(&b, "Namespaces that a tree has for itself", spaces)
	return b.Bytes()
}

func section(b *bytes.Buffer, title string, rows []coverageRow) {
	fmt.Fprintf(b, "\n## %s\n", title)
	for _, carried := range []bool{true, false} {
		head := "\n| refused | what it is |\n|---|---|\n"
		if carried {
			head = "\n| carried | what, and how far |\n|---|---|\n"
		}
		b.WriteString(head)
		for _, r := range rows {
			if r.carried == carried {
				fmt.Fprintf(b, "| %s | %s |\n", cell(r.name), cell(r.about))
			}
		}
	}
}

func cell(s string) string { return strings.ReplaceAll(s, "|", `\|`) }

func descriptorRows() []coverageRow {
	var rows []coverageRow
	for _, k := range files.Kinds() {
		row := coverageRow{k.Name, k.Note, k.Carried}
		if k.Remedy != "" {
			row.about += "; " + k.Remedy
		}
		rows = append(rows, row)
	}
	return joined(rows)
}

// joined puts rows of one name together: several rows of a table may make up one kind.
func joined(list []coverageRow) []coverageRow {
	var rows []coverageRow
	for _, row := range list {
		i := slices.IndexFunc(rows, func(r coverageRow) bool { return r.name == row.name && r.carried == row.carried })
		switch {
		case i < 0:
			rows = append(rows, row)
		case row.about != "" && rows[i].about != row.about:
			rows[i].about = strings.TrimPrefix(rows[i].about+"; "+row.about, "; ")
		}
	}
	return rows
}

var memoryAbout = map[mem.Kind]string{
	mem.PrivateAnon: "content, protection, advice, names, locks (mlock), seals (mseal), guard pages, protection keys and huge pages of hugetlbfs; the heap and all stacks among it, and memory that may be dropped (MAP_DROPPABLE). NUMA policies (mbind), but not a home node (set_mempolicy_home_node) nor the node that a page is on. What a child has in common with its parent since a fork is the same memory after a restore from a directory, and is copied by a move",
	mem.PrivateFile: "the pages that the program has written; the file itself must be at the destination, with the same size and build id",
	mem.SharedFile:  "the file must be at the destination with the same content, as on shared storage, or is brought there by a move (`--files copy`, `--volume`)",
	mem.SharedAnon:  "content, once for all processes of the tree that share it",
	mem.AIORing:     "with the events that were not fetched; a request that has not completed when the program is stopped cannot be seen and is lost",
	mem.PacketRing:  "mapped anew, and empty: see packet socket",
	mem.VDSO:        "the destination's own is put in its place",
	mem.Vvar:        "the destination's own is put in its place",
	mem.Vsyscall:    "the destination's own",
}

func memoryRows(t *testing.T) []coverageRow {
	t.Helper()
	var rows []coverageRow
	for k := mem.PrivateAnon; k < mem.Other; k++ {
		if memoryAbout[k] == "" {
			t.Errorf("docs/coverage.md would say nothing about %v; add it to memoryAbout", k)
		}
		rows = append(rows, coverageRow{k.String(), memoryAbout[k], true})
	}
	for _, r := range mem.Refusals() {
		rows = append(rows, coverageRow{name: r.Kind, about: r.About})
	}
	return joined(rows)
}
