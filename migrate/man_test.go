package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// TestManPages: each command that people see has a page, with all its flags, and man(1) finds nothing wrong with it.
func TestManPages(t *testing.T) {
	dir := t.TempDir()
	var said strings.Builder
	if code := run(t.Context(), []string{"man", dir}, strings.NewReader(""), &said, &said); code != 0 {
		t.Fatal(said.String())
	}
	pages := 0
	var visit func(*cobra.Command)
	visit = func(c *cobra.Command) {
		if c.Hidden || c.Name() == "help" {
			return
		}
		name := strings.ReplaceAll(c.CommandPath(), " ", "-") + ".1"
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
		}
		pages++
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden && f.Name != "help" && !strings.Contains(string(text), roff("--"+f.Name)) {
				t.Errorf("%s does not know --%s", name, f.Name)
			}
		})
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit(newRootCommand())
	if pages < 30 {
		t.Errorf("%d pages", pages)
	}
	groff, err := exec.LookPath("groff")
	if err != nil {
		t.Log("no groff: the pages' syntax is not checked")
		return
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.1"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if out, err := exec.Command(groff, "-man", "-ww", "-z", "-Tutf8", f).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", filepath.Base(f), err, out)
		}
	}
}
