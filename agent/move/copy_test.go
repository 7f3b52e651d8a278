package move

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"migrate/coordinator/handoff"
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
