package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func newManCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "man DIR",
		Short:   "Write the man pages of all commands into a directory",
		Example: "  migrate man build/man",
		Args:    cobra.ExactArgs(1),
		Hidden:  true, // for those who make packages
		RunE: func(cmd *cobra.Command, args []string) error {
			pages := map[string][]byte{}
			manPages(cmd.Root(), pages)
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			for name, page := range pages {
				if err := os.WriteFile(filepath.Join(args[0], name), page, 0o644); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// manPages makes one page for each command that people see, by the name of its file.
func manPages(c *cobra.Command, out map[string][]byte) {
	if c.Hidden || !c.IsAvailableCommand() && c.HasParent() {
		return
	}
	var subs []*cobra.Command
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() && sub.Name() != "help" {
			subs = append(subs, sub)
			manPages(sub, out)
		}
	}
	name := strings.ReplaceAll(c.CommandPath(), " ", "-")
	var b bytes.Buffer
	fmt.Fprintf(&b, ".TH %s 1 \"\" migrate \"User Commands\"\n.nh\n.ad l\n", roff(strings.ToUpper(name)))
	fmt.Fprintf(&b, ".SH NAME\n%s \\- %s\n.SH SYNOPSIS\n.B %s\n", roff(name), roff(c.Short), roff(c.UseLine()))
	if text := c.Long; text != "" {
		fmt.Fprintf(&b, ".SH DESCRIPTION\n%s\n", roff(text))
	}
	if len(subs) > 0 {
		b.WriteString(".SH COMMANDS\n")
		for _, sub := range subs {
			fmt.Fprintf(&b, ".TP\n.BR %s (1)\n%s\n", roff(strings.ReplaceAll(sub.CommandPath(), " ", "-")), roff(sub.Short))
		}
	}
	manFlags(&b, "OPTIONS", c.NonInheritedFlags())
	manFlags(&b, "OPTIONS OF ALL COMMANDS", c.InheritedFlags())
	if c.Example != "" {
		fmt.Fprintf(&b, ".SH EXAMPLES\n.nf\n%s\n.fi\n", roff(c.Example))
	}
	if c.HasParent() {
		fmt.Fprintf(&b, ".SH SEE ALSO\n.BR %s (1)\n", roff(strings.ReplaceAll(c.Parent().CommandPath(), " ", "-")))
	}
	out[name+".1"] = b.Bytes()
}

func manFlags(b *bytes.Buffer, title string, flags *pflag.FlagSet) {
	var list []*pflag.Flag
	flags.VisitAll(func(f *pflag.Flag) {
		if !f.Hidden && f.Name != "help" {
			list = append(list, f)
		}
	})
	if len(list) == 0 {
		return
	}
	fmt.Fprintf(b, ".SH %s\n", title)
	slices.SortFunc(list, func(x, y *pflag.Flag) int { return strings.Compare(x.Name, y.Name) })
	for _, f := range list {
		value, usage := pflag.UnquoteUsage(f)
		b.WriteString(".TP\n.B ")
		if f.Shorthand != "" {
			fmt.Fprintf(b, "%s, ", roff("-"+f.Shorthand))
		}
		b.WriteString(roff("--" + f.Name))
		if value != "" {
			fmt.Fprintf(b, " \\fI%s\\fB", roff(value))
		}
		fmt.Fprintf(b, "\n%s\n", roff(usage))
		if d := f.DefValue; d != "" && d != "false" && d != "0" && d != "0s" && d != "[]" && !strings.Contains(usage, "(default") {
			fmt.Fprintf(b, "(default %s)\n", roff(d))
		}
	}
}

// roff escapes text so that it stands as it is (groff_char(7)); a line that begins with a control character gets \& before it.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`, "`", `\(ga`, "'", `\(aq`).Replace(text)
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		switch {
		case strings.HasPrefix(line, "."):
			lines[i] = `\&` + line
		case line == "":
			lines[i] = ".PP"
		}
	}
	return strings.Join(lines, "\n")
}
