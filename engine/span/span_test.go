package span

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"
)

func TestNesting(t *testing.T) {
	r := New(time.Now())
	ctx, end := Begin(With(context.Background(), r), "state")
	broken := errors.New("broken")
	if err := Do(ctx, "files", func(ctx context.Context) error {
		_, end := Begin(ctx, "tcp")
		end()
		return broken
	}); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	end()
	var names []string
	for _, s := range r.Spans() {
		names = append(names, s.Name)
		if s.Start < 0 || s.Took < 0 {
			t.Errorf("%s: %v, %v", s.Name, s.Start, s.Took)
		}
	}
	if want := []string{"state/files/tcp", "state/files", "state"}; !slices.Equal(names, want) {
		t.Errorf("%q, not %q", names, want)
	}
}

func TestWithoutRecorder(t *testing.T) {
	in, end := Begin(context.Background(), "x")
	end()
	if in != context.Background() {
		t.Error("the context was changed")
	}
}

func TestBounded(t *testing.T) {
	r := New(time.Now())
	ctx, _ := Begin(With(context.Background(), r), "state")
	for range 2 * maxSpans {
		_, end := Begin(ctx, "x")
		end()
	}
	_, end := Begin(With(context.Background(), r), "write")
	end()
	if list := r.Spans(); len(list) != maxSpans+1 || list[maxSpans].Name != "write" {
		t.Errorf("%d spans, the last of them %q", len(list), list[len(list)-1].Name)
	}
}
