package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	agentapi "migrate/agent/api"
	clusterapi "migrate/coordinator/api"
)

func newRunCommand() *cobra.Command {
	var spec agentapi.WorkloadSpec
	var host, output string
	var attach, terminal bool
	var af attachFlags
	var volumes []string
	cmd := &cobra.Command{
		Use:   "run [flags] -- CMD [ARG...]",
		Short: "Start a program as a managed workload",
		Long: "Starts CMD in pid, network, mount, UTS, IPC and time namespaces of its own, with its own address on the host's\n" +
			"bridge if --addr is given, and returns once it runs. Its output is kept by the agent: see `migrate logs`. With -t it has a\n" +
			"terminal, which the agent holds: `migrate attach` connects to it, now or later, from any host.",
		Example: "  migrate run --name cache --addr 10.77.0.50/24 -- redis-server --port 6379 --protected-mode no\n" +
			"  migrate run -t --attach --name shell -- bash",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("no command: write it after --, as in `migrate run --name cache -- redis-server`")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkCIDR(spec.Addr); err != nil {
				return err
			}
			var err error
			if spec.Volumes, err = volumePaths(volumes); err != nil {
				return err
			}
			spec.Argv = args
			if terminal {
				askTerminal(&spec, cmd.InOrStdin())
			}
			return withAPI(cmd, func(ctx context.Context, a *api) error {
				if host == "" {
					var err error
					if host, err = localHost(ctx, a); err != nil {
						return err
					}
				}
				r, err := a.cluster.Run(ctx, &clusterapi.RunRequest{Spec: &spec, Host: host, RequestId: rand.Text()})
				if err != nil {
					return err
				}
				w := workloadOf(r.GetWorkload())
				err = printAs(cmd.OutOrStdout(), output, w, func(out io.Writer) error {
					_, err := fmt.Fprintf(out, "%s runs on %s as pid %d\n", w.Name, w.Host, w.PID)
					return err
				})
				if err != nil || !attach {
					return err
				}
				return af.attach(ctx, cmd, a, w.Name, true)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&host, "host", "", "host to start it on (default: this host)")
	f.StringVar(&spec.Name, "name", "", "name of the workload (default: made from the command)")
	f.StringVar(&spec.Addr, "addr", "", "address of its own on the host's bridge, as CIDR")
	f.StringVar(&spec.Cwd, "cwd", "", "directory to start it in (default /)")
	f.StringArrayVar(&spec.Env, "env", nil, "environment variable K=V; may be repeated")
	f.StringArrayVar(&volumes, "volume", nil, "directory that moves with it, with all that is in it; may be repeated")
	f.StringVar(&spec.User, "user", "", "user to run it as, by name or uid[:gid] (default root)")
	f.BoolVar(&attach, "attach", false, "stay with it, as migrate attach does")
	f.BoolVarP(&terminal, "tty", "t", false, "give it a terminal, of the size and kind of this one")
	af.add(cmd)
	addOutputFlag(cmd, &output)
	return cmd
}

// askTerminal asks for a terminal like the one that in is.
func askTerminal(spec *agentapi.WorkloadSpec, in io.Reader) {
	s := &attachment{}
	s.in, _ = in.(*os.File)
	if spec.Terminal = s.window(); spec.Terminal == nil {
		spec.Terminal = &agentapi.Terminal{}
	}
	for _, kv := range spec.Env {
		if strings.HasPrefix(kv, "TERM=") {
			return
		}
	}
	term := os.Getenv("TERM")
	if term == "" {
		term = "xterm"
	}
	spec.Env = append(spec.Env, "TERM="+term)
}

// workload is how a workload is printed.
type workload struct {
	Name        string `json:"name"`
	Host        string `json:"host"`
	PID         int32  `json:"pid"`
	Epoch       uint64 `json:"epoch"`
	State       string `json:"state"`
	RSSBytes    uint64 `json:"rss_bytes"`
	Connections uint32 `json:"connections"`
	Address     string `json:"address"`
	Command     string `json:"command"`
	CreatedNS   int64  `json:"created_unix_ns"`
	WaitStatus  int32  `json:"wait_status"`
	Migration   string `json:"migration,omitempty"`
}

func workloadOf(w *clusterapi.Workload) workload {
	return workload{
		Name: w.GetName(), Host: w.GetHost(), PID: w.GetPid(), Epoch: w.GetEpoch(),
		State:    enumText(w.GetState().String(), "WORKLOAD_STATE_"),
		RSSBytes: w.GetRssBytes(), Connections: w.GetConnections(), Address: w.GetAddress(), Command: w.GetCommand(),
		CreatedNS: w.GetCreatedUnixNs(), WaitStatus: w.GetWaitStatus(), Migration: w.GetMigration(),
	}
}
