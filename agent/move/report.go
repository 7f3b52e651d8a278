package move

import (
	"context"
	"log/slog"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	clusterapi "migrate/coordinator/api"
	"migrate/coordinator/handoff"
)

// A link to the cluster for one migration and role: what is said to it, and what is read from it. Orders that follow
// from the log, when it is read, are given to obey.
type link struct {
	cluster Cluster
	log     *slog.Logger
	node    string
	bootID  string
	role    handoff.Role
	epoch   uint64
	obey    func(ctx context.Context, order handoff.OrderKind, ref handoff.Ref)
	outbox  chan outgoing
	asked   task
}

type outgoing struct {
	key string // equal for reports that say the same
	req *clusterapi.ReportRequest
}

// outboxSize is more than the reports that a machine can have outstanding.
const outboxSize = 64

func newLink(cfg *Config, log *slog.Logger, role handoff.Role, epoch uint64, obey func(context.Context, handoff.OrderKind, handoff.Ref)) *link {
	return &link{cluster: cfg.Cluster, log: log, node: cfg.Node, bootID: cfg.BootID, role: role, epoch: epoch, obey: obey,
		outbox: make(chan outgoing, outboxSize)}
}

// request starts a report; the caller sets its event.
func (l *link) request(ref handoff.Ref) *clusterapi.ReportRequest {
	return &clusterapi.ReportRequest{Ref: refTo(ref, l.epoch), Role: roleTo(l.role), Node: l.node, BootId: l.bootID}
}

// say queues a report, which is repeated until the cluster has answered it. A full outbox drops it: the leader asks
// again by repeating its order.
func (l *link) say(key string, req *clusterapi.ReportRequest) {
	select {
	case l.outbox <- outgoing{key, req}:
	default:
		l.log.Warn("too many reports are waiting for an answer; one is left out", "report", key)
	}
}

// run sends what is in the outbox until ctx ends.
func (l *link) run(ctx context.Context) {
	for {
		select {
		case out := <-l.outbox:
			l.deliver(ctx, out)
		case <-ctx.Done():
			return
		}
	}
}

// answerTime bounds one try of a call to the cluster.
const answerTime = 10 * time.Second

func (l *link) deliver(ctx context.Context, out outgoing) {
	for wait := 20 * time.Millisecond; ctx.Err() == nil; wait = min(2*wait, time.Second) {
		reply, err := l.report(ctx, out.req)
		if err == nil {
			if reply.GetStale() {
				l.log.Info("a report is stale", "report", out.key, "reason", reply.GetReason())
			}
			// What follows from it comes as an order. Taking the answer's state for one as well would have the two sides
			// tell each other the same thing without end.
			return
		}
		if c := status.Code(err); c == codes.InvalidArgument || c == codes.PermissionDenied || c == codes.Unimplemented {
			l.log.Error("the cluster does not take a report", "report", out.key, "error", err)
			return
		}
		l.log.Debug("a report did not get through", "report", out.key, "error", err)
		if !pause(ctx, wait) {
			return
		}
	}
}

func (l *link) report(ctx context.Context, req *clusterapi.ReportRequest) (*clusterapi.ReportReply, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	return l.cluster.Report(ctx, req)
}

// once sends a report that need not arrive, such as progress.
func (l *link) once(ctx context.Context, req *clusterapi.ReportRequest) {
	if _, err := l.report(ctx, req); err != nil {
		l.log.Debug("progress did not get through", "error", err)
	}
}

// follow gives the order that the state of the log implies for this role.
func (l *link) follow(ctx context.Context, r *clusterapi.ReadMigrationReply) {
	rec, ok := recordOf(r)
	if !ok {
		return
	}
	if order, ref := handoff.OrderFor(l.role, rec); order != handoff.OrderNone {
		l.obey(ctx, order, ref)
	}
}

// ask reads the migration again and again, from whichever server answers, until more says that enough was heard. Only
// the loop's goroutine calls it.
func (l *link) ask(ctx context.Context, migration string, more func() bool) {
	l.asked.start(ctx, func(ctx context.Context) {
		// The leader's own order usually comes first; reading early would only load it.
		for wait := 150 * time.Millisecond; pause(ctx, wait) && more(); wait = min(wait*3/2, time.Second) {
			r, err := l.read(ctx, migration)
			if err != nil {
				l.log.Debug("the log could not be read", "error", err)
				continue
			}
			l.follow(ctx, r)
		}
	})
}

func (l *link) read(ctx context.Context, migration string) (*clusterapi.ReadMigrationReply, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	return l.cluster.ReadMigration(ctx, &clusterapi.ReadMigrationRequest{Id: migration})
}
