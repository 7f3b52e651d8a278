package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	agentapi "migrate/agent/api"
	clusterapi "migrate/coordinator/api"
)

// TestCommands: what users know by name is there, with an example and, where it prints data, a choice of formats.
func TestCommands(t *testing.T) {
	root := newRootCommand()
	root.InitDefaultCompletionCmd()
	var have []string
	for _, c := range root.Commands() {
		have = append(have, c.Name())
		if c.Short == "" {
			t.Errorf("%s says nothing of itself", c.Name())
		}
		if c.Runnable() && !c.Hidden && c.Example == "" && c.Name() != "version" && c.Name() != "help" && c.Name() != "completion" {
			t.Errorf("%s has no example", c.Name())
		}
	}
	want := strings.Fields("agent attach cancel check completion dashboard demo drain dump events history init join lab logs move nodes plan ps resolve restore run set status stop token undrain version watch")
	for _, name := range want {
		if !slices.Contains(have, name) {
			t.Errorf("there is no command %q", name)
		}
	}
}

// quotedCommand is a command in the text of a message, such as "see `migrate ps`".
var quotedCommand = regexp.MustCompile("`migrate ([a-z]+)")

// TestQuotedCommands: what messages tell people to type is a command.
func TestQuotedCommands(t *testing.T) {
	root := newRootCommand()
	root.InitDefaultCompletionCmd()
	have := map[string]bool{}
	for _, c := range root.Commands() {
		have[c.Name()] = true
	}
	found := 0
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, ".pb.go") {
			return err
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			lit, ok := n.(*ast.BasicLit)
			if !ok || lit.Kind != token.STRING {
				return true
			}
			text, err := strconv.Unquote(lit.Value)
			if err != nil {
				t.Error(err)
			}
			for _, m := range quotedCommand.FindAllStringSubmatch(text, -1) {
				found++
				if !have[m[1]] {
					t.Errorf("%v: there is no command `migrate %s`", set.Position(lit.Pos()), m[1])
				}
			}
			return true
		})
		return nil
	})
	if err != nil || found == 0 {
		t.Fatalf("%d commands found: %v", found, err)
	}
}

// TestHelp: a value's name in the text of a flag is a word (pflag takes it from backquotes), and nothing is offered that is refused.
func TestHelp(t *testing.T) {
	var visit func(*cobra.Command)
	visit = func(c *cobra.Command) {
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if name, _ := pflag.UnquoteUsage(f); strings.Contains(name, " ") {
				t.Errorf("%s --%s: its value is called %q", c.CommandPath(), f.Name, name)
			}
			if strings.Contains(f.Usage, "postcopy") || strings.Contains(f.Usage, "hybrid") {
				t.Errorf("%s --%s offers what is not built", c.CommandPath(), f.Name)
			}
		})
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit(newRootCommand())
}

// TestTimeWithoutUnit: the error says how to write it.
func TestTimeWithoutUnit(t *testing.T) {
	var said strings.Builder
	if code := run(t.Context(), []string{"move", "w", "--to", "host2", "--max-downtime", "50"}, strings.NewReader(""), io.Discard, &said); code != 1 || !strings.Contains(said.String(), "such as 50ms") {
		t.Errorf("exit code %d: %s", code, said.String())
	}
}

// TestTexts: what people read where nothing is known yet, and where there is one of a thing.
func TestTexts(t *testing.T) {
	var out strings.Builder
	if err := printWorkloads(&out, []workload{{Name: "w", Address: "10.77.0.50/24"}, {Name: "x", RSSBytes: 1024}}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"ADDRESS", "10.77.0.50/24  -  ", "-              1.0 KiB"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	if got := count(1, "process", "processes") + ", " + count(2, "process", "processes"); got != "1 process, 2 processes" {
		t.Error(got)
	}
	m := &clusterapi.Migration{Outcome: clusterapi.Outcome_OUTCOME_MOVED, DowntimeMs: 120, Options: &agentapi.MoveOptions{MaxDowntimeNs: 1e8}}
	for _, longer := range []bool{true, false} {
		out.Reset()
		if err := printMove(&out, m); err != nil || strings.Contains(out.String(), "longer than the 100ms") != longer {
			t.Errorf("%v ms: %q, %v", m.DowntimeMs, out.String(), err)
		}
		m.DowntimeMs = 99
	}
}

// TestFlagsThatCannotBe: a flag that makes no sense is refused, with its value, before an agent is asked.
func TestFlagsThatCannotBe(t *testing.T) {
	for _, c := range []struct {
		line string
		want string
	}{
		{"stop cache --grace -3s", "--grace -3s"},
		{"move cache --to host2 --timeout 0", "--timeout 0s"},
		{"move cache --to host2 --max-downtime -1s", "--max-downtime -1s"},
	} {
		root := newRootCommand()
		root.SetArgs(append(strings.Fields(c.line), "--socket", filepath.Join(t.TempDir(), "none")))
		root.SetOut(io.Discard)
		root.SetErr(io.Discard)
		if err := root.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.line, err, c.want)
		}
	}
	for _, given := range []string{"0", "-1"} {
		var target targetFlags
		cmd := &cobra.Command{}
		if target.add(cmd); cmd.ParseFlags([]string{"--pid", given}) != nil {
			t.Fatal("the flag is not taken")
		}
		if _, err := target.target(t.Context(), nil, nil); err == nil || !strings.Contains(err.Error(), "--pid "+given) {
			t.Errorf("--pid %s: %v", given, err)
		}
	}
}
