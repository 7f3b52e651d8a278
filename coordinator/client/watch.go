package client

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	clusterapi "migrate/coordinator/api"
)

// Watch calls f with each change of a migration until it is final, across changes of the leader. It returns the final
// state, or the last one seen with the error that ended it: the context's, f's, or the cluster's.
func Watch(ctx context.Context, cluster clusterapi.ClusterClient, id string, f func(*clusterapi.MigrationEvent) error) (last *clusterapi.Migration, err error) {
	err = follow(ctx, func() (grpc.ServerStreamingClient[clusterapi.MigrationEvent], error) {
		return cluster.WatchMigration(ctx, &clusterapi.WatchMigrationRequest{Id: id})
	}, func(ev *clusterapi.MigrationEvent) (bool, error) {
		last = ev.GetMigration()
		return last.GetFinal(), f(ev)
	})
	return last, err
}

// WatchDrain is the same for the drain of a host.
func WatchDrain(ctx context.Context, cluster clusterapi.ClusterClient, node string, f func(*clusterapi.DrainStatus) error) (last *clusterapi.DrainStatus, err error) {
	err = follow(ctx, func() (grpc.ServerStreamingClient[clusterapi.DrainStatus], error) {
		return cluster.WatchDrain(ctx, &clusterapi.WatchDrainRequest{Node: node})
	}, func(s *clusterapi.DrainStatus) (bool, error) {
		last = s
		return last.GetFinal(), f(s)
	})
	return last, err
}

// Events calls f with each event that req asks for, once, across changes of the leader. With req.Follow it ends with ctx or f's error only;
// without, also when no server answers. req.After is the last one that f has had.
func Events(ctx context.Context, cluster clusterapi.ClusterClient, req *clusterapi.EventsRequest, f func(*clusterapi.Event) error) error {
	for {
		got := false
		pass := func(e *clusterapi.Event) (bool, error) {
			if err := f(e); err != nil {
				return false, err
			}
			got, req.After, req.NewOnly = true, e.GetIndex(), false
			return false, nil
		}
		if req.GetFollow() {
			return follow(ctx, func() (grpc.ServerStreamingClient[clusterapi.Event], error) { return cluster.Events(ctx, req) }, pass)
		}
		st, err := cluster.Events(ctx, req)
		for err == nil {
			var e *clusterapi.Event
			if e, err = st.Recv(); err == nil {
				_, err = pass(e)
			}
		}
		switch {
		case errors.Is(err, io.EOF): // the server has sent all that there is
			return nil
		case !got || ctx.Err() != nil || status.Code(err) != codes.Unavailable:
			return err
		}
	}
}

// follow receives until f has seen the final message. A stream ends with its server or with that server's leadership; what it
// tells of does not, so it is opened again, at whatever server answers.
func follow[T any](ctx context.Context, open func() (grpc.ServerStreamingClient[T], error), f func(*T) (final bool, err error)) error {
	final, wait := false, pause
	for {
		st, err := open()
		for err == nil {
			var m *T
			if m, err = st.Recv(); err == nil {
				wait = pause
				final, err = f(m)
			}
		}
		switch {
		case final:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case status.Code(err) != codes.Unavailable:
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
			wait = min(2*wait, maxPause)
		}
	}
}
