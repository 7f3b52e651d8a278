package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/client"
)

func newStatusCommand() *cobra.Command {
	var output string
	var explain bool
	cmd := &cobra.Command{
		Use:     "status [ID]",
		Short:   "Show migrations that are under way, or one of any time",
		Example: "  migrate status\n  migrate status m-17 --explain",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withAPI(cmd, func(ctx context.Context, a *api) error {
				if len(args) == 0 {
					return listMigrations(ctx, cmd, a, false, output)
				}
				m, err := a.cluster.GetMigration(ctx, &clusterapi.GetMigrationRequest{Id: args[0]})
				if err != nil {
					return err
				}
				return printAs(cmd.OutOrStdout(), output, resultOf(m), func(w io.Writer) error {
					err := printMigrations(w, []*clusterapi.Migration{m})
					if explain && err == nil {
						err = printSteps(w, m)
					}
					return err
				})
			})
		},
	}
	cmd.Flags().BoolVar(&explain, "explain", false, "with ID: print what the blackout was spent on, step by step")
	addOutputFlag(cmd, &output)
	return cmd
}

func newHistoryCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:     "history",
		Short:   "Show all migrations, ended ones too",
		Example: "  migrate history -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withAPI(cmd, func(ctx context.Context, a *api) error { return listMigrations(ctx, cmd, a, true, output) })
		},
	}
	addOutputFlag(cmd, &output)
	return cmd
}

func listMigrations(ctx context.Context, cmd *cobra.Command, a *api, all bool, output string) error {
	r, err := a.cluster.ListMigrations(ctx, &clusterapi.ListMigrationsRequest{All: all})
	if err != nil {
		return err
	}
	list := make([]moveResult, 0, len(r.GetMigrations()))
	for _, m := range r.GetMigrations() {
		list = append(list, resultOf(m))
	}
	return printAs(cmd.OutOrStdout(), output, list, func(w io.Writer) error { return printMigrations(w, r.GetMigrations()) })
}

func printMigrations(w io.Writer, list []*clusterapi.Migration) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "ID\tWORKLOAD\tFROM\tTO\tSTATE\tSINCE\tBLACKOUT\tWAITING FOR")
	for _, m := range list {
		state, waiting := enumText(m.GetPhase().String(), "PHASE_"), m.GetWaitingFor()
		if m.GetFinal() {
			state, waiting = outcomeText(m.GetOutcome()), m.GetError()
		} else if waiting == "" && m.GetPhase() == clusterapi.Phase_PHASE_COPYING {
			waiting = m.GetProgress().GetReason()
		}
		blackout := "-"
		if m.GetDowntimeMs() > 0 {
			blackout = fmt.Sprintf("%.1f ms", m.GetDowntimeMs())
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", m.GetId(), m.GetWorkload(), m.GetSource(), m.GetDestination(), state, since(m.GetPhaseUnixNs()), blackout, client.OneLine(waiting))
	}
	return t.Flush()
}

func newWatchCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "watch ID",
		Short:   "Follow a migration until it ends",
		Long:    "Follows a migration until it ends. Leaving with Ctrl-C does not cancel it.",
		Example: "  migrate watch m-17",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withAPI(cmd, func(ctx context.Context, a *api) error {
				view := newProgress(cmd.ErrOrStderr(), "auto")
				m, err := watchMigration(ctx, a, args[0], view)
				view.close()
				if err != nil {
					return err
				}
				if err := printMove(cmd.OutOrStdout(), m); err != nil {
					return err
				}
				return outcomeError(m)
			})
		},
	}
}

func newCancelCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "cancel ID",
		Short:   "End a migration with the program running at the source",
		Long:    "Asks for the end of a migration, with the program running on at the source. Once ownership has moved it is\nrefused: then move the program back.",
		Example: "  migrate cancel m-17",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withAPI(cmd, func(ctx context.Context, a *api) error {
				if _, err := a.cluster.Cancel(ctx, &clusterapi.CancelRequest{Id: args[0], Reason: "cancelled by the operator"}); err != nil {
					return err
				}
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: cancellation asked for; `migrate watch %s` shows its end\n", args[0], args[0])
				return err
			})
		},
	}
}
