package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	clusterapi "migrate/coordinator/api"
)

func newLogsCommand() *cobra.Command {
	var stay bool
	cmd := &cobra.Command{
		Use:     "logs NAME",
		Short:   "Print the output of a workload",
		Long:    "Prints the output of a workload that is kept on its host: all since it came there, and the last 64 KiB from before. With -f it goes on, and\nfollows the workload from host to host.",
		Example: "  migrate logs -f cache",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withAPI(cmd, func(ctx context.Context, a *api) error {
				if stay {
					return followOutput(ctx, a, args[0], cmd.OutOrStdout())
				}
				return printOutput(ctx, a, args[0], cmd.OutOrStdout())
			})
		},
	}
	cmd.Flags().BoolVarP(&stay, "follow", "f", false, "go on printing what it writes")
	return cmd
}

// printOutput prints the kept output of a workload.
func printOutput(ctx context.Context, a *api, name string, w io.Writer) error {
	stream, err := a.cluster.Logs(ctx, &clusterapi.LogsRequest{Workload: name})
	if err != nil {
		return err
	}
	for {
		chunk, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := w.Write(chunk.GetData()); err != nil {
			return err
		}
	}
}

// followOutput prints the kept output of a workload and what it goes on writing, from host to host, until it ends or ctx does.
func followOutput(ctx context.Context, a *api, name string, w io.Writer) error {
	s := &attachment{api: a, name: name, session: rand.Text(), out: w, errOut: io.Discard, typed: newTyped(nil), whole: true}
	if _, err := s.stay(ctx); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

func newStopCommand() *cobra.Command {
	var grace time.Duration
	cmd := &cobra.Command{
		Use:     "stop NAME",
		Short:   "End a workload",
		Long:    "Sends SIGTERM to the program, waits for its end, and after the time of grace ends all that is left of it.",
		Example: "  migrate stop cache --grace 30s",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if grace < 0 {
				return fmt.Errorf("--grace %v is no time: use 0 to end it at once", grace)
			}
			return withAPI(cmd, func(ctx context.Context, a *api) error {
				if _, err := a.cluster.Stop(ctx, &clusterapi.StopRequest{Workload: args[0], GraceNs: max(grace.Nanoseconds(), 1)}); err != nil {
					return err
				}
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s has ended\n", args[0])
				return err
			})
		},
	}
	cmd.Flags().DurationVar(&grace, "grace", 10*time.Second, "how long it may take to end by itself")
	return cmd
}
