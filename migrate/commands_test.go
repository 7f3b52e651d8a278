package main

import (
	"slices"
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
	want := strings.Fields("agent attach cancel check completion demo dump history lab logs move nodes plan ps restore run status stop version watch")
	for _, name := range want {
		if !slices.Contains(have, name) {
			t.Errorf("there is no command %q", name)
		}
	}
}
