package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"time"

	"github.com/spf13/cobra"

	clusterapi "migrate/coordinator/api"
)

func newResolveCommand() *cobra.Command {
	req := &clusterapi.ResolveRequest{}
	cmd := &cobra.Command{
		Use:   "resolve ID --run-at HOST --fenced HOST",
		Short: "Decide where a program runs when the cluster may not",
		Long: "Says that one host of a migration certainly does not run the program and never will again, because it was switched off\n" +
			"or cut off for good, so that the other one may. The cluster asks for this (needs_operator) when it cannot know it: if it is\n" +
			"not true, the program may run twice. The decision is in the log of the leader, with the name of who made it.",
		Example: "  migrate resolve m-17 --run-at host1 --fenced host2\n  migrate resolve m-17 --run-at host1 --fenced host2 --accept-loss",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Id, req.Operator = args[0], operator()
			return withAPI(cmd, func(ctx context.Context, a *api) error {
				r, err := a.cluster.Resolve(ctx, req)
				if err != nil {
					return err
				}
				m := r.GetMigration()
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %s is to run on %s; `migrate watch %s` shows its end\n", m.GetId(), m.GetWorkload(), req.GetRunAt(), m.GetId())
				return err
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&req.RunAt, "run-at", "", "host on which the program is to run: the source or the destination")
	f.StringVar(&req.Fenced, "fenced", "", "the other host, which is switched off or cut off for good")
	f.BoolVar(&req.AcceptLoss, "accept-loss", false, "even if what the program did after the switch is lost by it")
	_ = cmd.MarkFlagRequired("run-at") // fails for unknown flags only
	_ = cmd.MarkFlagRequired("fenced")
	return cmd
}

// operator names who uses this command, for the log.
func operator() string {
	name := fmt.Sprintf("uid %d", os.Getuid())
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if host, err := os.Hostname(); err == nil {
		name += "@" + host
	}
	return name
}

func newSetCommand() *cobra.Command {
	var maxDowntime time.Duration
	var bandwidth rate
	var throttleMax uint32
	cmd := &cobra.Command{
		Use:     "set ID [--max-downtime D] [--bandwidth RATE] [--throttle-max PERCENT]",
		Short:   "Change the limits of a migration that is under way",
		Example: "  migrate set m-17 --max-downtime 300ms\n  migrate set m-17 --bandwidth 1gbit\n  migrate set m-17 --throttle-max 60",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f := cmd.Flags()
			switch {
			case !f.Changed("max-downtime") && !f.Changed("bandwidth") && !f.Changed("throttle-max"):
				return errors.New("nothing to change: give --max-downtime, --bandwidth or --throttle-max")
			case f.Changed("max-downtime") && maxDowntime <= 0:
				return fmt.Errorf("--max-downtime %v is not a time above zero", maxDowntime)
			}
			return withAPI(cmd, func(ctx context.Context, a *api) error {
				req := &clusterapi.RetuneRequest{Id: args[0], MaxDowntimeNs: maxDowntime.Nanoseconds(), BandwidthBytesPerSecond: uint64(bandwidth)}
				if f.Changed("throttle-max") {
					req.ThrottleMaxPercent = &throttleMax
				}
				r, err := a.cluster.Retune(ctx, req)
				if err != nil {
					return err
				}
				o := r.GetMigration().GetOptions()
				limit := "unlimited"
				if b := o.GetBandwidthBytesPerSecond(); b > 0 {
					limit = bytesText(b) + "/s"
				}
				slow := "never slowed down"
				if p := o.GetThrottleMaxPercent(); p > 0 {
					slow = fmt.Sprintf("slowed down by up to %d %%", p)
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: longest blackout %v, page stream %s, program %s\n", r.GetMigration().GetId(), o.MaxDowntime(), limit, slow)
				return err
			})
		},
	}
	cmd.Flags().DurationVar(&maxDowntime, "max-downtime", 0, "longest blackout from now on")
	cmd.Flags().Uint32Var(&throttleMax, "throttle-max", 0, "by how many percent the program may be slowed down from now on; 0 lets it go")
	cmd.Flags().Var(&bandwidth, "bandwidth", "limit of the page stream from now on, such as 100MiB (per second) or 1gbit")
	return cmd
}
