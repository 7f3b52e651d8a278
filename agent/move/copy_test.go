package move

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"migrate/agent/policy"
	"migrate/coordinator/handoff"
	"migrate/pagexfer"
)

// What copying has failed with must not get lost when a freeze waits for its last round already.
func TestAFreezeFindsWhatCopyingFailedWith(t *testing.T) {
	s := &source{m: &Manager{}, log: slog.New(slog.DiscardHandler), tree: &fakeSource{}, ctx: t.Context()}
	s.loop = newLoop(s.log, hands[handoff.Source, handoff.SourceEvent](s), nil)
	for range cap(s.loop.inbox) { // the loop is busy with the freeze
		s.loop.post(t.Context(), handoff.SourceEvent{})
	}
	c := &copier{halt: make(chan struct{}), progress: newProgress("hash")}
	s.copying = c
	s.work.start(t.Context(), func(ctx context.Context) {
		<-c.halt
		s.copyFault(ctx, c, errBroke)
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := s.freeze(ctx); !errors.Is(err, errBroke) {
		t.Errorf("the freeze says %v", err)
	}
}

// Between the offer and the order to switch a program may begin to write more. Then it is not stopped, for the bound could not be kept; what
// is forced has a bound of its own.
func TestAFreezeAboveTheBoundIsRefused(t *testing.T) {
	for _, c := range []struct {
		name     string
		forecast policy.Forecast
		forced   bool
		refused  bool
	}{
		{"below", policy.Forecast{Blackout: 90 * time.Millisecond}, false, false},
		{"above", policy.Forecast{Blackout: 110 * time.Millisecond, Reason: "it writes"}, false, true},
		{"forced", policy.Forecast{Blackout: 110 * time.Millisecond}, true, false},
		{"forced, above the hard limit", policy.Forecast{Blackout: 2 * time.Second}, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree, sender := &stillSource{}, pagexfer.NewSender(nil, pagexfer.Options{})
			defer func() { _ = sender.Close() }() // it has no connections
			s := &source{m: &Manager{}, log: slog.New(slog.DiscardHandler), tree: tree, ctx: t.Context(), sender: sender,
				options: options{maxDowntime: 100 * time.Millisecond, hardLimit: time.Second}}
			s.copying = &copier{halt: make(chan struct{}), progress: newProgress("hash")}
			s.copying.progress.set(c.forecast, c.forced)
			err := s.freeze(t.Context())
			if errors.Is(err, errBound) != c.refused || tree.stopped == c.refused || err != nil && !c.refused {
				t.Errorf("%v; stopped: %v", err, tree.stopped)
			}
		})
	}
}

// stillSource notes that it was stopped.
type stillSource struct {
	Source
	stopped bool
}

func (s *stillSource) Freeze(context.Context) error { s.stopped = true; return nil }
