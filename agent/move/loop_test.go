package move

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"migrate/coordinator/handoff"
)

var errBroke = errors.New("it broke")

// counter is a machine that counts its events and asks for one action each.
type counter struct{ n int }

func (c counter) String() string { return fmt.Sprint(c.n) }
func (c counter) Step(int) (counter, []handoff.Action, error) {
	return counter{c.n + 1}, []handoff.Action{{Kind: handoff.ActPersist}}, nil
}

// clumsy fails at everything.
type clumsy struct {
	verdict verdict
	tried   func()
}

func (h *clumsy) do(context.Context, handoff.Action, counter) error {
	if h.tried != nil {
		h.tried()
	}
	return errBroke
}
func (h *clumsy) failed(int, handoff.Action, counter, error) (int, verdict) { return -1, h.verdict }
func (h *clumsy) settled(counter)                                           {}

func TestFaultsThatFollowEachOtherAreBoundedAndLogged(t *testing.T) {
	var text strings.Builder
	l := newLoop(slog.New(slog.NewTextHandler(&text, &slog.HandlerOptions{Level: slog.LevelError})), hands[counter, int](&clumsy{verdict: feed}), nil)
	if err := l.step(t.Context(), 1); !errors.Is(err, errBroke) {
		t.Errorf("the error is %v", err)
	}
	if l.state.n != maxFaults || !strings.Contains(text.String(), "event=-1") {
		t.Errorf("%d steps, and the log says %q", l.state.n, text.String())
	}
}

// An agent that shuts down has met no fault: the machine must not hear of one, nor the disk.
func TestTheEndOfALoopIsNoFault(t *testing.T) {
	for name, v := range map[string]verdict{"again": again, "feed": feed} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			l := newLoop(slog.New(slog.DiscardHandler), hands[counter, int](&clumsy{verdict: v, tried: cancel}), nil)
			if err := l.step(ctx, 1); !errors.Is(err, errBroke) {
				t.Errorf("the error is %v", err)
			}
			if l.state.n != 1 {
				t.Errorf("%d steps were made, want that of the event alone", l.state.n)
			}
		})
	}
}
