//go:build linux

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	agentapi "migrate/agent/api"
)

// attachFlags are those of the verbs that attach.
type attachFlags struct {
	keys    string
	noStdin bool
}

func (f *attachFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.keys, "detach-keys", "ctrl-p,ctrl-q", "keys that detach, as a list of characters and ctrl-X; empty for none")
	cmd.Flags().BoolVar(&f.noStdin, "no-stdin", false, "only look on: nothing is typed")
}

func newAttachCommand() *cobra.Command {
	var f attachFlags
	cmd := &cobra.Command{
		Use:   "attach NAME",
		Short: "Connect this terminal to a workload",
		Long: "Connects this terminal to that of a workload that was started with `migrate run -t` or moved with --tty new, on whatever host it\n" +
			"is: keys go to the program, what it prints comes here, and the window has the size of this one. It follows the workload from host to host; nothing\n" +
			"that is typed or printed is lost on the way. Ctrl-P Ctrl-Q detaches, and the program runs on. When it ends, its exit code is passed on.\n\n" +
			"Several can be attached at once: all see the same and may all type, and the window has the size that the last of them has asked for.\n" +
			"What was printed before is in `migrate logs`. Of a workload without a terminal the output is followed; it reads nothing.",
		Example: "  migrate run -t --name shell -- bash\n  migrate attach shell",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withAPI(cmd, func(ctx context.Context, a *api) error { return f.attach(ctx, cmd, a, args[0], false) })
		},
	}
	f.add(cmd)
	return cmd
}

// attach stays until the program ends or the user detaches.
func (f *attachFlags) attach(ctx context.Context, cmd *cobra.Command, a *api, name string, whole bool) (err error) {
	keys, err := parseKeys(f.keys)
	if err != nil {
		return err
	}
	s := &attachment{api: a, name: name, session: rand.Text(), out: cmd.OutOrStdout(), errOut: cmd.ErrOrStderr(), typed: newTyped(keys), whole: whole}
	if in, ok := cmd.InOrStdin().(*os.File); ok && !f.noStdin {
		s.in = in
	}
	defer func() { err = errors.Join(err, s.close()) }()
	st, err := s.stay(ctx)
	switch {
	case errors.Is(err, errDetached), err != nil && ctx.Err() != nil:
		_, err := fmt.Fprintf(s.errOut, "detached from %s, which runs on\n", name)
		return errors.Join(s.close(), err)
	case err != nil:
		return err
	case st.Signaled():
		return &exitError{code: 128 + int(st.Signal()), err: fmt.Errorf("%s was ended by %s", name, unix.SignalName(st.Signal()))}
	case st.ExitStatus() != 0:
		return &exitError{code: st.ExitStatus()}
	}
	return nil
}

// attachment is one terminal's connection with a workload, over all hosts that this runs on.
type attachment struct {
	api     *api
	name    string
	session string
	in      *os.File // nil: nothing is typed
	out     io.Writer
	errOut  io.Writer
	whole   bool // from the beginning of what is kept
	typed   *typed

	generation string
	output     uint64 // so much was printed here
	begun      bool
	said       *agentapi.Terminal // the size of the window
	cooked     *unix.Termios      // of the own terminal, while it is raw
	stopInput  func()
}

var errDetached = errors.New("detached")

// How long an attachment tries to find its workload again, and how often: a host that comes back, or an election, takes some seconds.
const (
	attachPatience = time.Minute
	attachPause    = 100 * time.Millisecond
)

// stay attaches, and attaches again when the workload has moved on.
func (s *attachment) stay(ctx context.Context) (unix.WaitStatus, error) {
	heard := time.Now()
	for {
		met, ended, err := s.once(ctx)
		if ended != nil {
			return unix.WaitStatus(ended.GetWaitStatus()), nil
		}
		if met {
			heard = time.Now()
		}
		if c := status.Code(err); c != codes.Unavailable && !errors.Is(err, io.EOF) || time.Since(heard) > attachPatience || !s.begun && c == codes.NotFound {
			return 0, err
		}
		t := time.NewTimer(attachPause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return 0, ctx.Err()
		}
	}
}

// once is one stream. met tells whether the workload answered.
func (s *attachment) once(ctx context.Context) (met bool, ended *agentapi.AttachEnded, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stream, err := s.api.agent.Attach(ctx)
	if err != nil {
		return false, nil, err
	}
	first := &agentapi.AttachInput{Size: s.resized(), Start: &agentapi.AttachStart{Workload: s.name, Session: s.session, Generation: s.generation, Output: s.output, Whole: s.whole}}
	if err := stream.Send(first); err != nil && !errors.Is(err, io.EOF) {
		return false, nil, err
	}
	out, err := stream.Recv()
	if err != nil {
		return false, nil, err
	}
	if out.GetEnded() != nil {
		return true, out.GetEnded(), nil
	}
	if out.GetHello() == nil {
		return false, nil, errors.New("the agent does not say where the terminal stands")
	}
	if err := s.begin(out.GetHello()); err != nil {
		return true, nil, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		cancel(s.send(ctx, stream))
	}()
	defer func() { cancel(nil); <-done }()
	for {
		out, err := stream.Recv()
		if err != nil {
			if cause := context.Cause(ctx); errors.Is(cause, errDetached) {
				err = cause
			}
			return true, nil, err
		}
		if len(out.GetData()) > 0 {
			if _, err := s.out.Write(out.GetData()); err != nil {
				return true, nil, err
			}
			s.output = out.GetOffset()
		}
		s.typed.taken(out.GetTaken())
		if out.GetEnded() != nil {
			return true, out.GetEnded(), nil
		}
	}
}

// begin takes up what the agent knows. The first time, the own terminal gives up its line editing and its signals: the other one has them.
func (s *attachment) begin(h *agentapi.AttachHello) error {
	again := s.generation == h.GetGeneration()
	s.typed.resume(h.GetTaken(), again && h.GetKnown())
	s.generation, s.output = h.GetGeneration(), h.GetOutput()
	if s.begun {
		return nil
	}
	s.begun = true
	if !h.GetTerminal() {
		if s.in == nil {
			return nil
		}
		s.in = nil
		_, err := fmt.Fprintf(s.errOut, "%s was started without a terminal (migrate run -t) and reads nothing; this is its output. Ctrl-C detaches.\n", s.name)
		return err
	}
	if s.in == nil {
		return nil
	}
	var err error
	if s.cooked, err = makeRaw(s.in); err != nil {
		return err
	}
	stop, err := s.typed.readFrom(s.in)
	s.stopInput = stop
	return err
}

// close gives the own terminal back as it was. It may be called again.
func (s *attachment) close() error {
	if s.stopInput != nil {
		s.stopInput()
		s.stopInput = nil
	}
	if s.cooked == nil {
		return nil
	}
	old := s.cooked
	s.cooked = nil
	return unix.IoctlSetTermios(int(s.in.Fd()), unix.TCSETS2, old)
}

// window is the size of the own terminal; nil if it is none.
func (s *attachment) window() *agentapi.Terminal {
	if s.in == nil {
		return nil
	}
	w, err := unix.IoctlGetWinsize(int(s.in.Fd()), unix.TIOCGWINSZ)
	if err != nil || w.Row == 0 || w.Col == 0 {
		return nil
	}
	return &agentapi.Terminal{Rows: uint32(w.Row), Columns: uint32(w.Col)}
}

// resized is the size of the own terminal if it has not been said yet.
func (s *attachment) resized() *agentapi.Terminal {
	w := s.window()
	if proto.Equal(w, s.said) {
		return nil
	}
	s.said = w
	return w
}

// send sends what is typed, and the size of the window when it changes. It returns errDetached when the user has left and all was taken.
func (s *attachment) send(ctx context.Context, stream agentapi.Agent_AttachClient) error {
	sized := make(chan os.Signal, 1)
	signal.Notify(sized, unix.SIGWINCH)
	defer signal.Stop(sized)
	for {
		offset, data, changed, left := s.typed.next()
		switch {
		case len(data) > 0:
			if err := stream.Send(&agentapi.AttachInput{Offset: offset, Data: data}); err != nil {
				return err
			}
			continue
		case left:
			return errors.Join(stream.CloseSend(), errDetached)
		}
		select {
		case <-changed:
		case <-sized:
			if w := s.resized(); w != nil {
				if err := stream.Send(&agentapi.AttachInput{Size: w}); err != nil {
					return err
				}
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
