package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	agentapi "migrate/agent/api"
	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/client"
)

// defaultSocket is where the agent of this host listens for the command.
const defaultSocket = "/run/migrate/agent.sock"

// socketPath is the agent's socket: --socket, MIGRATE_SOCKET, or the default.
func socketPath(cmd *cobra.Command) string {
	if f := cmd.Flags().Lookup("socket"); f != nil && f.Changed {
		return f.Value.String()
	}
	if s := os.Getenv("MIGRATE_SOCKET"); s != "" {
		return s
	}
	return defaultSocket
}

// api is a connection to the local agent, which passes on what is for the cluster.
type api struct {
	conn    *grpc.ClientConn
	cluster clusterapi.ClusterClient
	agent   agentapi.AgentClient
}

// withAPI calls fn with a connection to the local agent, and translates the errors of both for people.
func withAPI(cmd *cobra.Command, fn func(ctx context.Context, a *api) error) error {
	path := socketPath(cmd)
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("no agent listens on %s: start one with `migrate agent`, or name its socket with --socket", path)
	}
	// The socket's owner and mode say who may connect (unix(7)); there is nothing for TLS to add.
	conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("agent socket %s: %w", path, err)
	}
	err = fn(cmd.Context(), &api{conn, clusterapi.NewClusterClient(conn), agentapi.NewAgentClient(conn)})
	return plainError(errors.Join(err, conn.Close()))
}

// plainError takes the gRPC wrapping off an error, which says nothing to a user.
func plainError(err error) error {
	var exit *exitError
	if err == nil || errors.As(err, &exit) {
		return err
	}
	var s interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &s) {
		return err
	}
	text := client.Message(s.GRPCStatus().Err())
	switch s.GRPCStatus().Code() {
	case codes.Unavailable:
		return fmt.Errorf("the agent or the cluster cannot be reached: %s; see `migrate nodes`", text)
	case codes.Unimplemented:
		return fmt.Errorf("the agent is older than this command and does not know the request: %s", text)
	}
	return errors.New(text)
}

// localHost is the name of the host whose agent answers.
func localHost(ctx context.Context, a *api) (string, error) {
	info, err := a.agent.LocalInfo(ctx, &agentapi.LocalInfoRequest{})
	if err != nil {
		return "", err
	}
	return info.GetNode().GetName(), nil
}

// targetFlags are those of the verbs that take a workload's name or --pid.
type targetFlags struct {
	pid   int32
	host  string
	flags *pflag.FlagSet
}

func (t *targetFlags) add(cmd *cobra.Command) {
	t.flags = cmd.Flags()
	t.flags.Int32Var(&t.pid, "pid", 0, "process id of a program that no agent started, on the source host")
	t.flags.StringVar(&t.host, "host", "", "source host (default: this host for --pid, else where the workload runs)")
}

// target makes the API's target from the flags and the arguments.
func (t *targetFlags) target(ctx context.Context, a *api, args []string) (*clusterapi.Target, error) {
	byPID := t.flags.Changed("pid")
	switch {
	case !byPID && len(args) == 0:
		return nil, errors.New("name a workload, or a process with --pid")
	case byPID && len(args) > 0:
		return nil, fmt.Errorf("name either the workload %q or a process with --pid, not both", args[0])
	case byPID && t.pid <= 0:
		return nil, fmt.Errorf("--pid %d is no process id", t.pid)
	case !byPID:
		return &clusterapi.Target{What: &clusterapi.Target_Workload{Workload: args[0]}, Host: t.host}, nil
	}
	host := t.host
	if host == "" {
		var err error
		if host, err = localHost(ctx, a); err != nil {
			return nil, err
		}
	}
	return &clusterapi.Target{What: &clusterapi.Target_Pid{Pid: t.pid}, Host: host}, nil
}

// since prints how long ago an instant is, for people.
func since(unixNS int64) string {
	if unixNS == 0 {
		return "-"
	}
	d := time.Since(time.Unix(0, unixNS))
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd", int(d.Hours())/24)
}

// bytesText prints a number of bytes with a binary unit.
func bytesText(n uint64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/1024, 0
	for v >= 1024 && i < len(units)-1 {
		v, i = v/1024, i+1
	}
	return fmt.Sprintf("%.1f %ciB", v, units[i])
}

// knownBytes is bytesText of what cannot be zero where it is known.
func knownBytes(n uint64) string {
	if n == 0 {
		return "-"
	}
	return bytesText(n)
}

// count prints how many there are of something.
func count[N int | uint32](n N, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// isTerminal tells whether w is a terminal, which decides between a live view and plain lines.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0
}

// checkCIDR checks that an address has the form that `--addr` takes.
func checkCIDR(s string) error {
	if s == "" {
		return nil
	}
	if _, _, err := net.ParseCIDR(s); err != nil {
		return fmt.Errorf("--addr %q is not an address with a prefix length, such as 10.77.0.50/24", s)
	}
	return nil
}
