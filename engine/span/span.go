// Package span records how long the steps of an operation take, such as those between the stop of a program and its first
// instruction elsewhere. Steps nest; a step of a step carries both names ("state/files").
package span

import (
	"context"
	"strings"
	"sync"
	"time"
)

// Span is one step.
type Span struct {
	Name  string        // of the step and those around it, joined by '/', the outermost first
	Start time.Duration // since the recorder's beginning
	Took  time.Duration
}

// maxSpans bounds a record: of a tree of a thousand processes only the first ones' steps are told one by one. Steps that are part of no
// other are few, and always told.
const maxSpans = 256

// Recorder collects steps, in the order of their ends. Several goroutines may use it at once.
type Recorder struct {
	begun time.Time
	mu    sync.Mutex
	spans []Span
}

// New returns an empty recorder. Steps tell their start relative to begun.
func New(begun time.Time) *Recorder { return &Recorder{begun: begun} }

// Spans returns the steps that have ended.
func (r *Recorder) Spans() []Span {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Span(nil), r.spans...)
}

func (r *Recorder) add(s Span) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.spans) < maxSpans || !strings.Contains(s.Name, "/") {
		r.spans = append(r.spans, s)
	}
}

// Add records a step that the caller has measured itself.
func (r *Recorder) Add(name string, start time.Time, took time.Duration) {
	r.add(Span{Name: name, Start: start.Sub(r.begun), Took: took})
}

type key struct{}

type place struct {
	recorder *Recorder
	prefix   string // with its '/'
}

// With returns a context whose steps r records.
func With(ctx context.Context, r *Recorder) context.Context {
	return context.WithValue(ctx, key{}, place{recorder: r})
}

// Begin starts a step, in whose context further ones are its parts. The step ends when end is called. Without a recorder in
// ctx nothing is measured.
func Begin(ctx context.Context, name string) (in context.Context, end func()) {
	p, ok := ctx.Value(key{}).(place)
	if !ok {
		return ctx, func() {}
	}
	start := time.Now()
	full := p.prefix + name
	return context.WithValue(ctx, key{}, place{p.recorder, full + "/"}), func() {
		p.recorder.Add(full, start, time.Since(start))
	}
}

// Do runs fn as a step.
func Do(ctx context.Context, name string, fn func(context.Context) error) error {
	ctx, end := Begin(ctx, name)
	defer end()
	return fn(ctx)
}
