package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentapi "migrate/agent/api"
	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/client"
)

// moveFlags are the flags of `migrate move`, before they are checked.
type moveFlags struct {
	target      targetFlags
	to          string
	strategy    string
	onTimeout   string
	maxDowntime time.Duration
	hardLimit   time.Duration
	timeout     time.Duration
	bandwidth   rate
	throttleMax uint32
	streams     uint32
	compress    string
	closeTCP    bool
	files       filesFlags
	outside     outsideFlags
	detach      bool
	explain     bool
	progress    string
	output      string
}

var strategies = map[string]agentapi.Strategy{"precopy": agentapi.Strategy_STRATEGY_PRECOPY, "stop": agentapi.Strategy_STRATEGY_STOP}

var timeouts = map[string]agentapi.OnTimeout{"cancel": agentapi.OnTimeout_ON_TIMEOUT_CANCEL, "force": agentapi.OnTimeout_ON_TIMEOUT_FORCE}

// filesFlags say what becomes of the program's files.
type filesFlags struct {
	mode      string
	volumes   []string
	overwrite bool
}

var filesModes = map[string]agentapi.FilesMode{
	"check": agentapi.FilesMode_FILES_MODE_CHECK, "shared": agentapi.FilesMode_FILES_MODE_SHARED, "copy": agentapi.FilesMode_FILES_MODE_COPY,
}

func (v *filesFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&v.mode, "files", "check", "files that the program has open or mapped: check (refuse a difference), copy (bring what is missing or\ndiffers) or shared (both hosts see the same storage)")
	f.StringArrayVar(&v.volumes, "volume", nil, "directory to bring over with all that is in it, besides the workload's own; may be repeated")
	f.BoolVar(&v.overwrite, "overwrite", false, "let --files copy and --volume replace what is at the destination and came with no move")
}

// set checks the flags and writes them into the options.
func (v *filesFlags) set(o *agentapi.MoveOptions) error {
	mode, ok := filesModes[v.mode]
	if !ok {
		return fmt.Errorf("--files %q is not known: use check, copy or shared", v.mode)
	}
	volumes, err := volumePaths(v.volumes)
	if mode == agentapi.FilesMode_FILES_MODE_SHARED && len(volumes) > 0 {
		return errors.New("--volume brings a directory over, and with --files shared there is nothing to bring: leave one of them out")
	}
	o.Files, o.Volumes, o.Overwrite = mode, volumes, v.overwrite
	return err
}

// volumePaths checks directories that are to move, and writes them plainly.
func volumePaths(list []string) ([]string, error) {
	var out []string
	for _, v := range list {
		if !filepath.IsAbs(v) {
			return nil, fmt.Errorf("--volume %q is not an absolute path", v)
		}
		out = append(out, filepath.Clean(v))
	}
	return out, nil
}

var compressions = map[string]bool{"auto": true, "off": true, "s2": true, "zstd": true}

func newMoveCommand() *cobra.Command {
	var m moveFlags
	cmd := &cobra.Command{
		Use:   "move (NAME | --pid PID) --to HOST",
		Short: "Move a running program to another host",
		Long: "Moves a workload, or a process with all its descendants, while it runs and its clients stay connected. Ctrl-C\n" +
			"before the commit cancels the move, with the program running on at the source.",
		Example: "  migrate move cache --to host2\n  migrate move --pid 4711 --to host2 --max-downtime 50ms -o json",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("max-downtime") && m.maxDowntime <= 0 {
				return fmt.Errorf("--max-downtime %v is not a time above zero", m.maxDowntime)
			}
			opts, err := m.options()
			if err != nil {
				return err
			}
			return withAPI(cmd, func(ctx context.Context, a *api) error { return m.run(ctx, cmd, a, opts, args) })
		},
	}
	m.target.add(cmd)
	f := cmd.Flags()
	f.StringVar(&m.to, "to", "", "destination host")
	f.StringVar(&m.strategy, "strategy", "precopy", "precopy (rounds while the program runs) or stop (copy it all while it stands still)")
	f.DurationVar(&m.maxDowntime, "max-downtime", 0, "longest blackout, from the program's stop to the source's vote for the switch; the cluster's decision and the start\nat the destination come on top (default 100ms; 10m with --strategy stop)")
	f.DurationVar(&m.hardLimit, "hard-limit", 0, "longest blackout of a forced switch (default: ten times --max-downtime)")
	f.DurationVar(&m.timeout, "timeout", 5*time.Minute, "time for the whole move")
	f.StringVar(&m.onTimeout, "on-timeout", "cancel", "what to do at the timeout: cancel, or force (switch with a blackout of up to --hard-limit)")
	f.Var(&m.bandwidth, "bandwidth", "limit of the page stream, such as 100MiB (per second) or 1gbit")
	f.Uint32Var(&m.throttleMax, "throttle-max", 0, "by how many percent of the processor time that it uses the program may be slowed down, step by step, if it writes\nfaster than the link carries (0: never; at most 99)")
	f.Uint32Var(&m.streams, "streams", 0, "parallel connections of the page stream (default: chosen by the agent)")
	f.StringVar(&m.compress, "compress", "auto", "auto, off, s2 or zstd")
	f.BoolVar(&m.closeTCP, "close-tcp", false, "close connections that cannot move, instead of refusing the move")
	m.files.add(cmd)
	m.outside.add(cmd, "that of migrate attach")
	f.StringVar(&m.progress, "progress", "auto", "auto (live on a terminal, else lines, none with -o json), plain or none")
	f.BoolVar(&m.explain, "explain", false, "print what the blackout was spent on, step by step (-o json always has it)")
	f.BoolVar(&m.detach, "detach", false, "print the id of the move and return")
	_ = cmd.MarkFlagRequired("to") // fails for unknown flags only
	addOutputFlag(cmd, &m.output)
	return cmd
}

// options checks the flags.
func (m *moveFlags) options() (*agentapi.MoveOptions, error) {
	strategy, ok := strategies[m.strategy]
	if !ok {
		return nil, fmt.Errorf("--strategy %q is not known: use precopy or stop", m.strategy)
	}
	onTimeout, ok := timeouts[m.onTimeout]
	if !ok {
		return nil, fmt.Errorf("--on-timeout %q is not known: use cancel or force", m.onTimeout)
	}
	if !compressions[m.compress] {
		return nil, fmt.Errorf("--compress %q is not known: use auto, off, s2 or zstd", m.compress)
	}
	if m.timeout <= 0 {
		return nil, fmt.Errorf("--timeout %v is not a time above zero", m.timeout)
	}
	if m.progress != "auto" && m.progress != "plain" && m.progress != "none" {
		return nil, fmt.Errorf("--progress %q is not known: use auto, plain or none", m.progress)
	}
	if m.output != "text" && m.output != "json" {
		return nil, fmt.Errorf("output format %q is not known: use text or json", m.output)
	}
	o := &agentapi.MoveOptions{ThrottleMaxPercent: &m.throttleMax,
		Strategy: strategy, MaxDowntimeNs: m.maxDowntime.Nanoseconds(), TimeoutNs: m.timeout.Nanoseconds(), OnTimeout: onTimeout,
		HardLimitNs: m.hardLimit.Nanoseconds(), BandwidthBytesPerSecond: uint64(m.bandwidth), Streams: m.streams, Compress: m.compress, CloseTcp: m.closeTCP,
	}
	if err := m.files.set(o); err != nil {
		return nil, err
	}
	if err := m.outside.setMove(o); err != nil {
		return nil, err
	}
	return o, o.Check()
}

func (m *moveFlags) print(w io.Writer, last *clusterapi.Migration) error {
	err := printMove(w, last)
	if m.explain && err == nil && last.GetOutcome() == clusterapi.Outcome_OUTCOME_MOVED {
		err = printSteps(w, last)
	}
	return err
}

func (m *moveFlags) run(ctx context.Context, cmd *cobra.Command, a *api, opts *agentapi.MoveOptions, args []string) error {
	what, err := m.target.target(ctx, a, args)
	if err != nil {
		return err
	}
	r, err := m.begin(ctx, a, &clusterapi.MoveRequest{Target: what, Destination: m.to, Options: opts, RequestId: rand.Text()})
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	if list := obstaclesOf(r.GetObstacles()); len(list) > 0 {
		if m.output == "json" {
			return errors.Join(printAs(out, m.output, moveResult{Workload: r.GetWorkload(), Source: r.GetSource(), Destination: r.GetDestination(), Outcome: "source_running", State: "refused", Error: list[0].Reason, Obstacles: list}, nil), &exitError{code: 1})
		}
		if err := printObstacles(cmd.ErrOrStderr(), list); err != nil {
			return err
		}
		return fmt.Errorf("the move from %s to %s cannot go ahead: %s; the program was not touched", r.GetSource(), r.GetDestination(), count(len(list), "obstacle", "obstacles"))
	}
	if m.detach && ctx.Err() == nil {
		_, err := fmt.Fprintln(out, r.GetId())
		return err
	}
	last, err := m.watch(ctx, cmd, a, r.GetId())
	if err != nil {
		return err
	}
	if err := printAs(out, m.output, resultOf(last), func(w io.Writer) error { return m.print(w, last) }); err != nil {
		return err
	}
	return outcomeError(last)
}

// beginTime bounds the call that plans a move and begins it.
const beginTime = 2 * time.Minute

// begin begins the move. The end of ctx does not break the call: whether the move has begun would not be known then. It
// is cancelled by its id afterwards.
func (m *moveFlags) begin(ctx context.Context, a *api, req *clusterapi.MoveRequest) (*clusterapi.MoveReply, error) {
	call, cancel := context.WithTimeout(context.WithoutCancel(ctx), beginTime)
	defer cancel()
	r, err := a.cluster.Move(call, req)
	if c := status.Code(err); c == codes.DeadlineExceeded {
		return nil, &exitError{code: codeUndecided, err: fmt.Errorf("the cluster has not said within %v whether the move has begun; see `migrate status`", beginTime)}
	}
	return r, err
}

// watch shows the move until it is over. The end of ctx (Ctrl-C) asks for its cancellation and then waits for the end
// all the same: only the log can say what became of it. A second Ctrl-C ends this program.
func (m *moveFlags) watch(ctx context.Context, cmd *cobra.Command, a *api, id string) (*clusterapi.Migration, error) {
	mode := m.progress
	if mode == "auto" && m.output == "json" {
		mode = "none"
	}
	view := newProgress(cmd.ErrOrStderr(), mode)
	defer view.close()
	stay, over := context.WithCancel(context.WithoutCancel(ctx))
	refused := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() { refused <- cancelMove(stay, a, id) })
	last, err := watchMigration(stay, a, id, view)
	over()
	if !stop() {
		if cerr := <-refused; cerr != nil {
			view.close()
			_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "move %s was not cancelled: %v\n", id, plainError(cerr))
		}
	}
	if err != nil {
		return nil, &exitError{code: codeUndecided, err: fmt.Errorf("move %s: its end was not seen (%w); see `migrate status %s`", id, plainError(err), id)}
	}
	return last, nil
}

// cancelTime bounds one call that asks for a cancellation.
const cancelTime = 10 * time.Second

// cancelMove asks for a cancellation until the cluster has answered, or ctx ends because there is nothing left to
// cancel; a call that is on its way then is still answered. It returns a refusal.
func cancelMove(ctx context.Context, a *api, id string) error {
	for {
		call, done := context.WithTimeout(context.WithoutCancel(ctx), cancelTime)
		_, err := a.cluster.Cancel(call, &clusterapi.CancelRequest{Id: id, Reason: "interrupted by the operator"})
		done()
		if c := status.Code(err); c != codes.Unavailable && c != codes.DeadlineExceeded {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(watchPause):
		}
	}
}

// watchMigration follows a migration until nothing more will happen, and returns how it ended. A stream ends with its
// server or with that server's leadership; the migration does not, so the watch is taken up again, at whatever server
// answers.
func watchMigration(ctx context.Context, a *api, id string, view *progress) (*clusterapi.Migration, error) {
	var last *clusterapi.Migration
	for {
		err := watchOnce(ctx, a, id, func(ev *clusterapi.MigrationEvent) {
			last = ev.GetMigration()
			view.show(ev)
		})
		switch {
		case last.GetFinal():
			return last, nil
		case err != nil && status.Code(err) != codes.Unavailable:
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(watchPause):
		}
	}
}

// watchPause is how long a watch that was broken waits before it is taken up again: an election takes longer.
const watchPause = 100 * time.Millisecond

// watchOnce follows a migration until its stream ends.
func watchOnce(ctx context.Context, a *api, id string, show func(*clusterapi.MigrationEvent)) error {
	stream, err := a.cluster.WatchMigration(ctx, &clusterapi.WatchMigrationRequest{Id: id})
	if err != nil {
		return err
	}
	for {
		ev, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		show(ev)
	}
}

// codeUndecided is the exit code of a command that cannot tell what became of a move.
const codeUndecided = 4

// Exit codes of a move, by its outcome (docs/json.md).
var outcomeCodes = map[clusterapi.Outcome]int{
	clusterapi.Outcome_OUTCOME_MOVED: 0, clusterapi.Outcome_OUTCOME_SOURCE_RUNNING: 1, clusterapi.Outcome_OUTCOME_UNDECIDED: codeUndecided,
	clusterapi.Outcome_OUTCOME_NEEDS_OPERATOR: 5, clusterapi.Outcome_OUTCOME_LOST: 6,
}

func outcomeError(m *clusterapi.Migration) error {
	code, ok := outcomeCodes[m.GetOutcome()]
	switch {
	case ok && code == 0:
		return nil
	case !ok:
		code = codeUndecided
	}
	reason := client.OneLine(m.GetError())
	if reason == "" {
		reason = "no reason was given"
	}
	return &exitError{code: code, err: fmt.Errorf("move %s of %s from %s to %s: %s: %s", m.GetId(), m.GetWorkload(), m.GetSource(), m.GetDestination(), outcomeText(m.GetOutcome()), reason)}
}
