package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
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
	want := strings.Fields("agent attach cancel check completion demo dump history lab logs move nodes plan ps resolve restore run set status stop version watch")
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
