package web

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// change is an event of the log, or the error that ended the reading of it.
type change struct {
	index uint64
	event any
	err   error
}

// stream tells a page, by server-sent events (WHATWG HTML, section 9.2), what there is and what changes: "event" is an event of the log with its
// index as the id, with which a browser resumes; "hosts", "workloads", "drains", "moves" and "history" are the whole of each, when it has changed.
func (h *Handler) stream(w http.ResponseWriter, r *http.Request) {
	select {
	case h.streams <- struct{}{}:
		defer func() { <-h.streams }()
	default:
		h.answer(w, nil, &Error{Status: http.StatusTooManyRequests, Text: "too many pages watch already"})
		return
	}
	var after uint64
	newOnly := false
	if s := r.Header.Get("Last-Event-ID"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			h.answer(w, nil, &Error{Status: http.StatusBadRequest, Text: "Last-Event-ID is the index of an event"})
			return
		}
		after = n
	} else if r.URL.Query().Get("events") == "new" {
		newOnly = true
	}
	ctx, cancel := context.WithCancel(r.Context())
	changes, ended := make(chan change), make(chan struct{})
	go func() { // ends with the request
		defer close(ended)
		err := h.c.Backend.Events(ctx, after, newOnly, func(index uint64, event any) error {
			select {
			case changes <- change{index: index, event: event}:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		select {
		case changes <- change{err: err}:
		case <-ctx.Done():
		}
	}()
	defer func() {
		cancel()
		<-ended
	}()
	w.Header().Set("Content-Type", "text/event-stream")
	s := &sender{w: w, c: http.NewResponseController(w), last: map[string][]byte{}}
	if err := h.send(ctx, s, changes); err != nil && ctx.Err() == nil {
		h.c.Log.Debug("a page is told no more", "error", err)
	}
}

func (h *Handler) send(ctx context.Context, s *sender, changes <-chan change) error {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	history := true
	for {
		s.state(ctx, "hosts", h.c.Backend.Hosts)
		s.state(ctx, "workloads", h.c.Backend.Workloads)
		s.state(ctx, "drains", h.c.Backend.Drains)
		s.state(ctx, "moves", func(ctx context.Context) (any, error) { return h.c.Backend.Moves(ctx, false) })
		if history {
			history = false
			s.state(ctx, "history", func(ctx context.Context) (any, error) { return h.c.Backend.Moves(ctx, true) })
		}
		if s.err == nil {
			s.err = s.c.Flush()
		}
		if s.err != nil {
			return s.err
		}
		for again := true; again; { // until it is time to look again, and something may have changed
			select {
			case c := <-changes:
				if c.err != nil {
					s.send("trouble", "", map[string]string{"error": c.err.Error()})
					return c.err
				}
				history = true
				s.send("event", strconv.FormatUint(c.index, 10), c.event)
			case <-tick.C:
				again = false
			case <-ctx.Done():
				return ctx.Err()
			}
			if s.err == nil && again {
				s.err = s.c.Flush()
			}
			if s.err != nil {
				return s.err
			}
		}
	}
}

// sender writes events until one cannot be written.
type sender struct {
	w    http.ResponseWriter
	c    *http.ResponseController
	last map[string][]byte
	err  error
}

// state sends the whole of something when it is not what was sent last. That the cluster does not answer is told, too.
func (s *sender) state(ctx context.Context, name string, get func(context.Context) (any, error)) {
	v, err := get(ctx)
	if err != nil {
		name, v = "trouble", map[string]string{"error": err.Error()}
	} else if s.last["trouble"] != nil {
		delete(s.last, "trouble")
	}
	b, err := json.Marshal(v)
	if err != nil || bytes.Equal(b, s.last[name]) {
		return
	}
	s.last[name] = b
	s.write(name, "", b)
}

func (s *sender) send(name, id string, v any) {
	b, err := json.Marshal(v)
	if err == nil {
		s.write(name, id, b)
	}
}

// write sends one event; JSON has no line breaks.
func (s *sender) write(name, id string, data []byte) {
	if s.err != nil {
		return
	}
	if s.err = s.c.SetWriteDeadline(time.Now().Add(20 * time.Second)); s.err != nil {
		return
	}
	if id != "" {
		id = "id: " + id + "\n"
	}
	_, s.err = fmt.Fprintf(s.w, "event: %s\n%sdata: %s\n\n", name, id, data)
}
