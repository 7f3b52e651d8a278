package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentapi "migrate/agent/api"
	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/client"
	"migrate/coordinator/web"
)

func newDashboardCommand() *cobra.Command {
	var listen, tokenFile string
	var readOnly bool
	cmd := &cobra.Command{
		Use:   "dashboard",
		Short: "Serve a page that shows the cluster and lets operators act",
		Long: "Serves a page on a loopback port of this host and prints a link to it, which is good for one browser, once. The page shows hosts,\n" +
			"workloads, moves with their rounds, the parts of each blackout, drains and events as they happen, and moves, drains and cancels.\n" +
			"It does so with the rights of who has started it, by the agent's socket; nothing is opened on the network. From elsewhere,\n" +
			"use ssh: `ssh -L 7410:127.0.0.1:7410 HOST migrate dashboard --listen 127.0.0.1:7410`. Ctrl-C ends it.\n\n" +
			"With --token-file, scripts may use the same by HTTP and JSON: docs/dashboard.md.",
		Example: "  migrate dashboard\n  migrate dashboard --read-only --listen 127.0.0.1:7410",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			return withAPI(cmd, func(ctx context.Context, a *api) error {
				if _, err := localHost(ctx, a); err != nil { // before a link is printed that leads to nothing
					return err
				}
				return serveDashboard(ctx, &dashboard{a}, dashboardOptions{listen, tokenFile, readOnly}, log, func(link string) error {
					_, err := fmt.Fprintln(cmd.OutOrStdout(), link)
					return err
				})
			})
		},
	}
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:0", "loopback address and port to serve on; port 0: a free one")
	cmd.Flags().StringVar(&tokenFile, "token-file", "", "write a bearer token for scripts into this file")
	cmd.Flags().BoolVar(&readOnly, "read-only", false, "show only, refuse to act")
	return cmd
}

type dashboardOptions struct {
	listen, tokenFile string
	readOnly          bool
}

// serveDashboard serves until ctx ends; ready gets the link once it is served.
func serveDashboard(ctx context.Context, b web.Backend, o dashboardOptions, log *slog.Logger, ready func(link string) error) (err error) {
	host, _, err := net.SplitHostPort(o.listen)
	if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
		return fmt.Errorf("--listen %s is not a loopback address with a port, such as 127.0.0.1:7410: the dashboard is for this host; use ssh -L from elsewhere", o.listen)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", o.listen)
	if err != nil {
		return err
	}
	h, err := web.New(web.Config{Backend: b, Host: l.Addr().String(), ReadOnly: o.readOnly, Log: log})
	if err != nil {
		return errors.Join(err, l.Close())
	}
	if o.tokenFile != "" {
		if err := writeToken(o.tokenFile, h.Bearer()); err != nil {
			return errors.Join(fmt.Errorf("--token-file: %w", err), l.Close())
		}
		defer func() { err = errors.Join(err, os.Remove(o.tokenFile)) }()
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 20 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx }, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }() // ends with the listener
	if err := ready(h.Link()); err != nil {
		return errors.Join(err, srv.Close())
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	err = srv.Close()
	<-done
	return err
}

// writeToken makes a file that only its owner can read; one that is there is not overwritten.
func writeToken(path, token string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(token + "\n")
	return errors.Join(err, f.Close())
}

// dashboard is the cluster as the page sees it.
type dashboard struct{ a *api }

// shownMove is a migration with what is only shown while it goes on.
type shownMove struct {
	moveResult
	BegunNS             int64   `json:"begun_unix_ns"`
	Round               uint32  `json:"round"`
	RoundFraction       float64 `json:"round_fraction"`
	BytesPerSecond      float64 `json:"bytes_per_second"`
	DirtyPagesPerSecond float64 `json:"dirty_pages_per_second"`
	WaitingFor          string  `json:"waiting_for"`
}

// shownHistory is how many migrations the page gets.
const shownHistory = 200

// webError is an error of the cluster as HTTP has it.
func webError(err error) error {
	if err == nil {
		return nil
	}
	code := map[codes.Code]int{codes.NotFound: http.StatusNotFound, codes.FailedPrecondition: http.StatusConflict, codes.AlreadyExists: http.StatusConflict,
		codes.InvalidArgument: http.StatusBadRequest, codes.PermissionDenied: http.StatusForbidden, codes.Unavailable: http.StatusServiceUnavailable}[status.Code(err)]
	if code == 0 {
		code = http.StatusBadGateway
	}
	return &web.Error{Status: code, Text: plainError(err).Error()}
}

// callTime bounds a request of the page.
const callTime = 20 * time.Second

func (d *dashboard) nodes(ctx context.Context) ([]*clusterapi.Node, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	r, err := d.a.cluster.Nodes(ctx, &clusterapi.NodesRequest{})
	return r.GetNodes(), webError(err)
}

// Hosts is web.Backend's.
func (d *dashboard) Hosts(ctx context.Context) (any, error) {
	nodes, err := d.nodes(ctx)
	list := make([]node, 0, len(nodes))
	for _, n := range nodes {
		list = append(list, nodeOf(n))
	}
	return list, err
}

// Workloads is web.Backend's.
func (d *dashboard) Workloads(ctx context.Context) (any, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	r, err := d.a.cluster.Workloads(ctx, &clusterapi.WorkloadsRequest{})
	list := make([]workload, 0, len(r.GetWorkloads()))
	for _, w := range r.GetWorkloads() {
		list = append(list, workloadOf(w))
	}
	return list, webError(err)
}

// Moves is web.Backend's.
func (d *dashboard) Moves(ctx context.Context, all bool) (any, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	r, err := d.a.cluster.ListMigrations(ctx, &clusterapi.ListMigrationsRequest{All: all})
	moves := r.GetMigrations()
	moves = moves[max(0, len(moves)-shownHistory):]
	list := make([]shownMove, 0, len(moves))
	for _, m := range moves {
		p := m.GetProgress()
		s := shownMove{moveResult: resultOf(m), BegunNS: m.GetBegunUnixNs(), Round: p.GetRound(), RoundFraction: p.GetRoundFraction(),
			BytesPerSecond: p.GetBytesPerSecond(), DirtyPagesPerSecond: p.GetDirtyPagesPerSecond(), WaitingFor: m.GetWaitingFor()}
		s.Connections = []connection{} // hundreds of them would be sent again and again
		if m.GetOutcome() == clusterapi.Outcome_OUTCOME_UNSPECIFIED {
			s.Outcome = ""
		}
		list = append(list, s)
	}
	return list, webError(err)
}

// Drains is web.Backend's.
func (d *dashboard) Drains(ctx context.Context) (any, error) {
	nodes, err := d.nodes(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	list := []drainResult{}
	for _, n := range nodes {
		if n.GetDrainUnixNs() == 0 {
			continue
		}
		st, err := d.a.cluster.WatchDrain(ctx, &clusterapi.WatchDrainRequest{Node: n.GetInfo().GetName()})
		var s *clusterapi.DrainStatus
		if err == nil {
			s, err = st.Recv() // the first message is the present state
		}
		if c := status.Code(err); c == codes.NotFound || c == codes.FailedPrecondition {
			continue // it was taken back this moment
		}
		if err != nil {
			return nil, webError(err)
		}
		list = append(list, drainResultOf(s))
	}
	return list, nil
}

// Events is web.Backend's.
func (d *dashboard) Events(ctx context.Context, after uint64, newOnly bool, f func(index uint64, event any) error) error {
	return client.Events(ctx, d.a.cluster, &clusterapi.EventsRequest{After: after, NewOnly: newOnly, Follow: true}, func(e *clusterapi.Event) error { return f(e.GetIndex(), eventOf(e)) })
}

// Move is web.Backend's.
func (d *dashboard) Move(ctx context.Context, req web.MoveRequest) (any, error) {
	if req.Workload == "" || req.To == "" || req.MaxDowntimeMS < 0 || req.MaxDowntimeMS > 3600e3 {
		return nil, &web.Error{Status: http.StatusBadRequest, Text: "a move needs a workload, a host in \"to\", and max_downtime_ms from 0 (the default) to an hour"}
	}
	r, err := d.a.cluster.Move(ctx, &clusterapi.MoveRequest{Target: &clusterapi.Target{What: &clusterapi.Target_Workload{Workload: req.Workload}}, Destination: req.To,
		Options: &agentapi.MoveOptions{MaxDowntimeNs: int64(req.MaxDowntimeMS * 1e6)}})
	if err != nil {
		return nil, webError(err)
	}
	if len(r.GetObstacles()) > 0 {
		return nil, &web.Error{Status: http.StatusConflict, Text: req.Workload + " cannot move to " + req.To + " as things are", Obstacles: obstaclesOf(r.GetObstacles())}
	}
	return map[string]string{"id": r.GetId(), "workload": r.GetWorkload(), "source": r.GetSource(), "destination": r.GetDestination()}, nil
}

// Cancel is web.Backend's.
func (d *dashboard) Cancel(ctx context.Context, req web.CancelRequest) (any, error) {
	r, err := d.a.cluster.Cancel(ctx, &clusterapi.CancelRequest{Id: req.ID, Reason: "cancelled by the operator, in the dashboard"})
	if err != nil {
		return nil, webError(err)
	}
	return resultOf(r.GetMigration()), nil
}

// Drain is web.Backend's.
func (d *dashboard) Drain(ctx context.Context, req web.DrainRequest) (any, error) {
	r, err := d.a.cluster.Drain(ctx, &clusterapi.DrainRequest{Node: req.Host, MaxParallel: req.MaxParallel})
	if err != nil {
		return nil, webError(err)
	}
	return drainResultOf(r.GetStatus()), nil
}

// Undrain is web.Backend's.
func (d *dashboard) Undrain(ctx context.Context, req web.DrainRequest) (any, error) {
	r, err := d.a.cluster.Undrain(ctx, &clusterapi.UndrainRequest{Node: req.Host})
	if err != nil {
		return nil, webError(err)
	}
	return map[string]any{"host": req.Host, "moving": append([]string{}, r.GetMoving()...)}, nil
}
