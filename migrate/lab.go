package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"migrate/e2e/lab"
)

// labFlags are those of every verb of `migrate lab`.
type labFlags struct{ stateDir string }

func newLabCommand() *cobra.Command {
	var f labFlags
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "Virtual hosts on this machine, to try everything out",
		Long: "Virtual hosts on this one machine, named host1, host2, ..., each with its own network, processes, files, boot id and clocks,\n" +
			"and an agent; the first three are the servers of a cluster. Host N has the address 10.77.0.(10+N); workloads may take\n" +
			"10.77.0.50 to 10.77.0.250. \"client\" (10.77.0.1) is on the same network with this machine's own files.",
		Example: "  migrate lab up\n  migrate lab exec host1 -- migrate nodes\n  migrate lab cut host2\n  migrate lab down",
	}
	cmd.PersistentFlags().StringVar(&f.stateDir, "state-dir", lab.DefaultStateDir, "where the lab keeps its disks; labs in different directories are independent")
	cmd.AddCommand(
		newLabUpCommand(&f), newLabDownCommand(&f), newLabExecCommand(&f), newLabStatusCommand(&f),
		newLabCutCommand(&f), newLabHealCommand(&f),
		newLabHostCommand(&f, "stall", "Stop a host's agent without ending it; heal lets it go on", (*lab.Host).Stall),
		newLabHostCommand(&f, "reboot", "End all that runs in a host, as a loss of power does, and start it anew with its disk", (*lab.Host).Reboot),
		newLabHostCommand(&f, "kill", "End a host for good, as a loss of power does", (*lab.Host).Kill),
	)
	return cmd
}

// with calls fn with the lab that is up.
func (f *labFlags) with(ctx context.Context, fn func(*lab.Lab) error) error {
	l, err := lab.Open(ctx, f.stateDir)
	if err != nil {
		return err
	}
	return fn(l)
}

// withHost calls fn with a host of the lab that is up.
func (f *labFlags) withHost(ctx context.Context, name string, fn func(*lab.Host) error) error {
	return f.with(ctx, func(l *lab.Lab) error {
		h := l.Host(name)
		if h == nil {
			return fmt.Errorf("the lab has no host %q: there are %s", name, strings.Join(hostNames(l), ", "))
		}
		return fn(h)
	})
}

func hostNames(l *lab.Lab) []string {
	var names []string
	for _, h := range l.Hosts() {
		names = append(names, h.Name())
	}
	return append(names, l.Client().Name())
}

// completeHosts offers the names of the hosts to the shell, for at most n arguments.
func (f *labFlags) completeHosts(n int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		l, err := lab.Open(cmd.Context(), f.stateDir)
		if err != nil || len(args) >= n {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return hostNames(l), cobra.ShellCompDirectiveNoFileComp
	}
}

func newLabUpCommand(f *labFlags) *cobra.Command {
	o := lab.Options{Detach: true}
	var bandwidth rate
	var wait time.Duration
	cmd := &cobra.Command{
		Use:     "up",
		Short:   "Start a lab",
		Long:    "Starts a lab, which stays up until `migrate lab down`. What a crash has left of an earlier one is removed first.",
		Example: "  migrate lab up --hosts 4 --bandwidth 1gbit",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.StateDir, o.Bandwidth = f.stateDir, uint64(bandwidth)
			l, err := lab.Up(cmd.Context(), o)
			if err != nil {
				return err
			}
			if wait > 0 {
				ctx, cancel := context.WithTimeout(cmd.Context(), wait)
				defer cancel()
				err := l.AwaitAgents(ctx)
				if err == nil {
					err = l.AwaitCluster(ctx, len(l.Hosts()))
				}
				if err != nil {
					return fmt.Errorf("the hosts are up, but %w; see the log with: migrate lab exec host1 -- cat %s", err, lab.AgentLogPath)
				}
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d hosts are up; go on with: migrate lab exec host1 -- migrate nodes\n", len(l.Hosts()))
			return err
		},
	}
	fl := cmd.Flags()
	fl.IntVar(&o.Hosts, "hosts", 3, fmt.Sprintf("how many hosts, 1 to %d", lab.MaxHosts))
	fl.IntVar(&o.Servers, "servers", 0, "how many of them, from the first, vote in the cluster (default 3, or all if there are less)")
	fl.Var(&bandwidth, "bandwidth", "limit of each host's link, each way, such as 1gbit or 100MiB (default: none)")
	fl.StringSliceVar(&o.Share, "share", nil, "directories of this machine that the hosts see, read-only")
	fl.DurationVar(&wait, "wait", 20*time.Second, "how long to wait until every host has joined the cluster; 0 does not wait")
	return cmd
}

func newLabDownCommand(f *labFlags) *cobra.Command {
	return &cobra.Command{
		Use:     "down",
		Short:   "End the lab and remove all of it",
		Long:    "Ends the lab and removes all of it, also what an interrupted `up` has left. It is no error if there is none.",
		Example: "  migrate lab down",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return lab.Down(cmd.Context(), f.stateDir)
		},
	}
}

func newLabHostCommand(f *labFlags, verb, short string, do func(*lab.Host, context.Context) error) *cobra.Command {
	return &cobra.Command{
		Use:               verb + " HOST",
		Short:             short,
		Example:           "  migrate lab " + verb + " host2",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: f.completeHosts(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.withHost(cmd.Context(), args[0], func(h *lab.Host) error { return do(h, cmd.Context()) })
		},
	}
}

func newLabCutCommand(f *labFlags) *cobra.Command {
	var oneWay bool
	var plane string
	cmd := &cobra.Command{
		Use:   "cut HOST | cut A B",
		Short: "Cut a host off, or two hosts from each other",
		Long: "Makes the switch drop all frames to and from HOST; or those between A and B, with --one-way only those from A to B,\n" +
			"with --plane only one kind of the agents' traffic. Cuts add up, and last until they are healed.",
		Example:           "  migrate lab cut host2\n  migrate lab cut host1 host2 --one-way --plane pages",
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: f.completeHosts(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 && (oneWay || plane != "") {
				return errors.New("--one-way and --plane are about a pair: name the second host too")
			}
			return f.with(cmd.Context(), func(l *lab.Lab) error {
				if len(args) == 1 {
					return l.Cut(cmd.Context(), args[0])
				}
				return l.CutPair(cmd.Context(), args[0], args[1], oneWay, lab.Plane(plane))
			})
		},
	}
	cmd.Flags().BoolVar(&oneWay, "one-way", false, "drop only what goes from A to B")
	cmd.Flags().StringVar(&plane, "plane", "", "drop only control, pages, raft or gossip traffic")
	return cmd
}

func newLabHealCommand(f *labFlags) *cobra.Command {
	return &cobra.Command{
		Use:               "heal [HOST | A B]",
		Short:             "End cuts and stalls",
		Long:              "Ends all cuts and stalls; or those of one host; or the cuts between A and B.",
		Example:           "  migrate lab heal",
		Args:              cobra.MaximumNArgs(2),
		ValidArgsFunction: f.completeHosts(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.with(cmd.Context(), func(l *lab.Lab) error { return l.Heal(cmd.Context(), args...) })
		},
	}
}

func newLabStatusCommand(f *labFlags) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Show the hosts, their agents, and what is cut",
		Example: "  migrate lab status -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.with(cmd.Context(), func(l *lab.Lab) error {
				s, err := l.Status(cmd.Context())
				if err != nil {
					return err
				}
				return printAs(cmd.OutOrStdout(), output, s, func(w io.Writer) error { return printLab(w, s) })
			})
		},
	}
	addOutputFlag(cmd, &output)
	return cmd
}

func printLab(w io.Writer, s *lab.Status) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "NAME\tSTATE\tADDRESS\tPID\tUPTIME\tAGENT\tBOOT ID")
	for _, h := range s.Hosts {
		uptime := time.Duration(h.UptimeS * float64(time.Second)).Round(time.Second)
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\t%s\t%s\n", h.Name, h.State, h.Address, h.PID, uptime, h.Agent, h.BootID)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, c := range s.Cuts {
		if _, err := fmt.Fprintf(w, "cut: %s\n", c); err != nil {
			return err
		}
	}
	return nil
}
