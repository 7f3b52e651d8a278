package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	clusterapi "migrate/coordinator/api"
)

func newPsCommand() *cobra.Command {
	var all bool
	var output string
	cmd := &cobra.Command{
		Use:     "ps",
		Short:   "List workloads and where they run",
		Example: "  migrate ps -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withAPI(cmd, func(ctx context.Context, a *api) error {
				r, err := a.cluster.Workloads(ctx, &clusterapi.WorkloadsRequest{All: all})
				if err != nil {
					return err
				}
				list := make([]workload, 0, len(r.GetWorkloads()))
				for _, w := range r.GetWorkloads() {
					list = append(list, workloadOf(w))
				}
				return printAs(cmd.OutOrStdout(), output, list, func(w io.Writer) error { return printWorkloads(w, list) })
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "also those that have ended")
	addOutputFlag(cmd, &output)
	return cmd
}

func printWorkloads(w io.Writer, list []workload) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "NAME\tHOST\tPID\tEPOCH\tSTATE\tADDRESS\tRSS\tCONNECTIONS\tAGE\tCOMMAND")
	for _, x := range list {
		_, _ = fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%s\t%s\t%s\t%d\t%s\t%s\n", x.Name, x.Host, x.PID, x.Epoch, x.State, cmp.Or(x.Address, "-"), knownBytes(x.RSSBytes), x.Connections, since(x.CreatedNS), oneLine(x.Command))
	}
	return t.Flush()
}

// maxCommand is how much of a command line is printed.
const maxCommand = 60

// oneLine makes a command line fit into a table.
func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if r := []rune(s); len(r) > maxCommand {
		return string(r[:maxCommand-3]) + "..."
	}
	return s
}

// enumText prints a protobuf enumeration's name as people and scripts know it: without its prefix, in lower case.
func enumText(name, prefix string) string {
	return strings.ToLower(strings.TrimPrefix(name, prefix))
}

func newNodesCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:     "nodes",
		Short:   "List the hosts of the cluster",
		Example: "  migrate nodes -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withAPI(cmd, func(ctx context.Context, a *api) error {
				r, err := a.cluster.Nodes(ctx, &clusterapi.NodesRequest{})
				if err != nil {
					return err
				}
				list := make([]node, 0, len(r.GetNodes()))
				for _, n := range r.GetNodes() {
					list = append(list, nodeOf(n))
				}
				return printAs(cmd.OutOrStdout(), output, list, func(w io.Writer) error { return printNodes(w, list) })
			})
		},
	}
	addOutputFlag(cmd, &output)
	return cmd
}

// node is how a host is printed.
type node struct {
	Name            string `json:"name"`
	Up              bool   `json:"up"`
	Leader          bool   `json:"leader"`
	Voter           bool   `json:"voter"`
	Address         string `json:"address"`
	BootID          string `json:"boot_id"`
	CPUs            uint32 `json:"cpus"`
	MemoryBytes     uint64 `json:"memory_bytes"`
	MemoryFreeBytes uint64 `json:"memory_free_bytes"`
	Workloads       uint32 `json:"workloads"`
	Kernel          string `json:"kernel"`
	Version         string `json:"version"`
	LastHeardNS     int64  `json:"last_heard_unix_ns"`
	DrainNS         int64  `json:"drain_unix_ns"`
	DrainDeadlineNS int64  `json:"drain_deadline_unix_ns"`
}

func nodeOf(n *clusterapi.Node) node {
	i := n.GetInfo()
	return node{
		Name: i.GetName(), Up: n.GetUp(), Leader: n.GetLeader(), Voter: n.GetVoter(), Address: i.GetControlAddress(), BootID: i.GetBootId(),
		CPUs: i.GetCpus(), MemoryBytes: i.GetMemoryBytes(), MemoryFreeBytes: n.GetMemoryFreeBytes(), Workloads: n.GetWorkloads(),
		Kernel: i.GetKernel(), Version: i.GetVersion(), LastHeardNS: n.GetLastHeardUnixNs(),
		DrainNS: n.GetDrainUnixNs(), DrainDeadlineNS: n.GetDrainDeadlineUnixNs(),
	}
}

func printNodes(w io.Writer, list []node) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "NAME\tSTATE\tROLE\tADDRESS\tWORKLOADS\tMEMORY FREE\tHEARD")
	for _, n := range list {
		state, role := "down", "host"
		if n.Up {
			state = "up"
		}
		switch {
		case n.DrainNS != 0 && n.Workloads > 0:
			state += ", draining"
		case n.DrainNS != 0:
			state += ", drained"
		}
		switch {
		case n.Leader:
			role = "leader"
		case n.Voter:
			role = "server"
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n", n.Name, state, role, n.Address, n.Workloads, knownBytes(n.MemoryFreeBytes), since(n.LastHeardNS))
	}
	return t.Flush()
}
