package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentapi "migrate/agent/api"
	"migrate/agent/console"
	"migrate/agent/workload"
	clusterapi "migrate/coordinator/api"
)

// attachStream is what both services have in common.
type attachStream = grpc.BidiStreamingServer[agentapi.AttachInput, agentapi.AttachOutput]

// peerServer is service Peer: that of the moves, and Attach.
type peerServer struct {
	agentapi.PeerServer
	a *Agent
}

// Attach serves a workload that is on this host.
func (p peerServer) Attach(s attachStream) error {
	first, err := s.Recv()
	if err != nil {
		return err
	}
	return p.a.attachHere(s, first)
}

// Attach finds the host of a workload and connects the caller with it. Keys need not pass the leader of the cluster.
func (a *Agent) Attach(s attachStream) error {
	first, err := s.Recv()
	if err != nil {
		return err
	}
	if first.GetStart() == nil {
		return status.Error(codes.InvalidArgument, "the first message names no workload")
	}
	w, err := a.find(s.Context(), first.GetStart().GetWorkload())
	if err != nil {
		return err
	}
	if w.GetHost() == a.cfg.Name {
		err = a.attachHere(s, first)
	} else {
		err = a.attachThere(s, first, w.GetHost())
	}
	if over := w.GetState() == clusterapi.WorkloadState_WORKLOAD_STATE_ENDED; over && err != nil && s.Context().Err() == nil {
		return s.Send(&agentapi.AttachOutput{Ended: &agentapi.AttachEnded{WaitStatus: w.GetWaitStatus()}}) // its host has forgotten it
	}
	return err
}

// find asks the cluster about a workload.
func (a *Agent) find(ctx context.Context, name string) (*clusterapi.Workload, error) {
	list, err := a.api.Workloads(ctx, &clusterapi.WorkloadsRequest{All: true})
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(list.GetWorkloads(), func(w *clusterapi.Workload) bool { return w.GetName() == name })
	if i < 0 {
		return nil, status.Errorf(codes.NotFound, "no workload is named %q; see `migrate ps`", name)
	}
	w := list.GetWorkloads()[i]
	if w.GetState() == clusterapi.WorkloadState_WORKLOAD_STATE_LOST {
		return nil, status.Errorf(codes.NotFound, "workload %q was lost with its host %s", name, w.GetHost())
	}
	return w, nil
}

// attachThere passes everything on to the agent of another host.
func (a *Agent) attachThere(s attachStream, first *agentapi.AttachInput, host string) error {
	nodes, err := a.api.Nodes(s.Context(), &clusterapi.NodesRequest{})
	if err != nil {
		return err
	}
	i := slices.IndexFunc(nodes.GetNodes(), func(n *clusterapi.Node) bool { return n.GetInfo().GetName() == host })
	if i < 0 {
		return status.Errorf(codes.Unavailable, "host %s is not known", host)
	}
	if n := nodes.GetNodes()[i]; !n.GetUp() {
		code := codes.FailedPrecondition
		if first.GetStart().GetGeneration() != "" { // who was attached waits a while for the host to come back
			code = codes.Unavailable
		}
		return status.Errorf(code, "%s is down: it was last heard %v ago; attach again when it is back", host, time.Since(time.Unix(0, n.GetLastHeardUnixNs())).Round(time.Second))
	}
	peer, hangUp, err := peers{&a.cfg}.Dial(s.Context(), nodes.GetNodes()[i].GetInfo())
	if err != nil {
		return err
	}
	defer func() { _ = hangUp() }() // whatever became of it, the stream has said
	ctx, cancel := context.WithCancel(s.Context())
	defer cancel()
	up, err := peer.Attach(ctx)
	if err != nil {
		return err
	}
	if err := up.Send(first); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	go func() { // ends with the stream, which ends when this call returns
		for {
			in, err := s.Recv()
			if err == nil {
				err = up.Send(in)
			}
			if err != nil {
				_ = up.CloseSend() // the other direction says why
				return
			}
		}
	}()
	for {
		out, err := up.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.Send(out); err != nil {
			return err
		}
	}
}

// errLeft ends the stream of a copy that leaves this host.
var errLeft = status.Error(codes.Unavailable, "the copy is not on this host any more, or not yet")

// attachHere serves a copy on this host.
func (a *Agent) attachHere(s attachStream, first *agentapi.AttachInput) error {
	start := first.GetStart()
	envs := a.host.set.Named(start.GetWorkload())
	envs = slices.DeleteFunc(envs, func(e *workload.Env) bool { return e.Record().PID == 0 })
	if len(envs) == 0 {
		return errLeft
	}
	e := slices.MaxFunc(envs, func(x, y *workload.Env) int { return int(x.Record().Epoch) - int(y.Record().Epoch) })
	ctx, cancel := context.WithCancel(s.Context())
	defer cancel()
	defer context.AfterFunc(a.ctx, cancel)()
	log, err := e.Output()
	if err != nil {
		return errLeft
	}
	defer func() { _ = log.Close() }() // only read
	c := a.host.console(e.Instance())
	counts, err := e.Counts()
	if err != nil {
		return err
	}
	switch {
	case c != nil:
		err = a.attachTerminal(ctx, s, first, c, log)
	case counts != nil:
		err = a.attachEnded(s, start, counts, log, e)
	default:
		err = a.attachOutput(ctx, s, start, log, e)
	}
	if err != nil && !errors.Is(err, console.ErrClosed) {
		if a.ctx.Err() != nil {
			return errLeft
		}
		return err
	}
	code, ended, err := e.ExitStatus()
	if err != nil || !ended || !slices.Contains(a.settledCopies(), e) { // else it was ended on purpose: of a copy that has moved away this says nothing
		return errLeft
	}
	return s.Send(&agentapi.AttachOutput{Ended: &agentapi.AttachEnded{WaitStatus: code}})
}

// attachTerminal connects the caller with a terminal. It returns console.ErrClosed when that is gone and all was sent.
func (a *Agent) attachTerminal(ctx context.Context, s attachStream, first *agentapi.AttachInput, c *console.Console, log io.ReaderAt) error {
	start := first.GetStart()
	from, taken, known := c.Begin(start.GetSession(), start.GetGeneration(), start.GetOutput(), start.GetWhole())
	if err := s.Send(&agentapi.AttachOutput{Hello: &agentapi.AttachHello{Terminal: true, Generation: c.Generation(), Output: from, Taken: taken, Known: known}}); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() { // ends with the stream, which ends when this call returns
		cancel(a.typing(ctx, s, first, c))
	}()
	buf := make([]byte, 32<<10)
	for {
		n, err := c.Read(ctx, log, from, buf, start.GetSession(), taken)
		if err != nil {
			if cause := context.Cause(ctx); cause != nil && !errors.Is(err, console.ErrClosed) {
				return cause
			}
			return err
		}
		from, taken = from+uint64(n), c.Taken(start.GetSession())
		if err := s.Send(&agentapi.AttachOutput{Data: buf[:n], Offset: from, Taken: taken}); err != nil {
			return err
		}
	}
}

// errDetached ends a stream whose caller has nothing more to say.
var errDetached = errors.New("the caller has detached")

// typing does what the caller sends.
func (a *Agent) typing(ctx context.Context, s attachStream, in *agentapi.AttachInput, c *console.Console) error {
	session := in.GetStart().GetSession()
	for {
		if w := in.GetSize(); w != nil && w.GetRows() <= math.MaxUint16 && w.GetColumns() <= math.MaxUint16 {
			if err := c.Resize(w.GetRows(), w.GetColumns()); err != nil {
				return err
			}
		}
		if len(in.GetData()) > 0 {
			err := c.Write(ctx, session, in.GetOffset(), in.GetData())
			if errors.Is(err, console.ErrClosed) {
				<-ctx.Done() // the rest of the output comes first
				return nil
			}
			if err != nil {
				return err
			}
		}
		var err error
		if in, err = s.Recv(); errors.Is(err, io.EOF) {
			c.Leave(session)
			return errDetached
		} else if err != nil {
			return err
		}
	}
}

// attachEnded sends what is left of the output of a program that had a terminal.
func (a *Agent) attachEnded(s attachStream, start *agentapi.AttachStart, counts *workload.Counts, log *os.File, e *workload.Env) error {
	if _, ended, err := e.ExitStatus(); err != nil || !ended {
		return errLeft // it arrives
	}
	hello := &agentapi.AttachHello{Terminal: true, Generation: counts.Generation}
	st, err := log.Stat()
	if err != nil {
		return err
	}
	hello.Output = counts.Base + uint64(st.Size())
	if start.GetGeneration() == "" && start.GetWhole() {
		hello.Output = counts.Base
	}
	if start.GetGeneration() == counts.Generation && start.GetOutput() < hello.Output {
		hello.Output = max(start.GetOutput(), counts.Base)
	}
	if err := s.Send(&agentapi.AttachOutput{Hello: hello}); err != nil {
		return err
	}
	return sendFrom(s, log, int64(hello.Output-counts.Base), counts.Base)
}

// attachOutput follows the output of a program without a terminal, until it ends or its copy leaves this host.
func (a *Agent) attachOutput(ctx context.Context, s attachStream, start *agentapi.AttachStart, log *os.File, e *workload.Env) error {
	st, err := log.Stat()
	if err != nil {
		return err
	}
	counts, err := e.OutputCounts()
	if err != nil {
		return err
	}
	end := counts.Base + uint64(st.Size())
	hello := &agentapi.AttachHello{Generation: counts.Generation, Output: counts.Base}
	switch {
	case start.GetGeneration() == counts.Generation:
		hello.Output = max(counts.Base, min(start.GetOutput(), end))
	case start.GetGeneration() == "" && !start.GetWhole():
		hello.Output = end
	}
	if err := s.Send(&agentapi.AttachOutput{Hello: hello}); err != nil {
		return err
	}
	at := int64(hello.Output - counts.Base)
	return a.follow(ctx, e, func() error {
		err := sendFrom(s, log, at, counts.Base)
		if pos, serr := log.Seek(0, io.SeekCurrent); serr == nil {
			at = pos
		}
		return err
	})
}

// sendFrom sends what there is of a file from an offset on, and leaves the file's own offset at its end. base is where the file begins in
// the output.
func sendFrom(s attachStream, log *os.File, at int64, base uint64) error {
	if _, err := log.Seek(at, io.SeekStart); err != nil {
		return err
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := log.Read(buf)
		if n > 0 {
			at += int64(n)
			if err := s.Send(&agentapi.AttachOutput{Data: buf[:n], Offset: base + uint64(at)}); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("the kept output: %w", err)
		}
	}
}
