//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"migrate/engine/kernel"
)

func newCheckCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Say what this host's kernel offers",
		Long: "Tries each feature of the kernel that moves use, and says of each what it is for and what works without it. It needs\n" +
			"no agent and changes nothing. Run it with the agent's privileges: what a user may not do counts as missing.",
		Example: "  migrate check\n  migrate check -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list := probeFeatures(kernel.All())
			return printAs(cmd.OutOrStdout(), output, list, func(w io.Writer) error { return printFeatures(w, list) })
		},
	}
	addOutputFlag(cmd, &output)
	return cmd
}

// feature is how a feature of the kernel is printed.
type feature struct {
	Name         string `json:"name"`
	Have         bool   `json:"have"`
	Since        string `json:"since"`
	NeededFor    string `json:"needed_for"`
	WorksWithout string `json:"works_without"`
	Reason       string `json:"reason,omitempty"` // why it is missing
}

// worksWithout says for each feature what is still possible on a kernel that lacks it.
var worksWithout = map[*kernel.Feature]string{
	kernel.UserfaultWP:   "moves that track writes by soft-dirty bits, or else by comparing hashes of all memory, which costs the program more",
	kernel.PagemapScan:   "moves that track writes by soft-dirty bits, or else by comparing hashes of all memory, which costs the program more",
	kernel.SoftDirty:     "moves that track writes by userfaultfd, or else by comparing hashes of all memory",
	kernel.MapFiles:      "programs without shared anonymous memory",
	kernel.TimeNamespace: "dump and restore on the host itself, where the clocks are the same",
	kernel.SetTID:        "nothing",
	kernel.PidfdGetfd:    "nothing",
	kernel.Kcmp:          "nothing",
}

func probeFeatures(all []*kernel.Feature) []feature {
	list := make([]feature, 0, len(all))
	for _, f := range all {
		row := feature{Name: f.Name, Have: true, Since: f.Since, NeededFor: f.Need, WorksWithout: worksWithout[f]}
		if err := f.Probe(); err != nil {
			row.Have, row.Reason = false, err.Error()
			var missing *kernel.MissingError
			if errors.As(err, &missing) {
				row.Reason = missing.Err.Error()
			}
		}
		list = append(list, row)
	}
	return list
}

func printFeatures(w io.Writer, list []feature) error {
	for _, f := range list {
		have := "yes"
		if !f.Have {
			have = "no "
		}
		if _, err := fmt.Fprintf(w, "%s  %s, for %s\n", have, f.Name, f.NeededFor); err != nil {
			return err
		}
		if f.Have {
			continue
		}
		if _, err := fmt.Fprintf(w, "     in Linux since %s; here: %s\n     works without it: %s\n", f.Since, f.Reason, f.WorksWithout); err != nil {
			return err
		}
	}
	return nil
}
