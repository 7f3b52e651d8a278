package main

import (
	"strings"
	"testing"
	"time"

	clusterapi "migrate/coordinator/api"
)

func TestSinceTime(t *testing.T) {
	now := time.Unix(1000, 0)
	for _, c := range []struct {
		in   string
		want int64
		ok   bool
	}{{"", 0, true}, {"10s", 990e9, true}, {"1970-01-01T00:00:05Z", 5e9, true}, {"-5s", 0, false}, {"5", 0, false}, {"yesterday", 0, false}} {
		if got, err := sinceTime(c.in, now); got != c.want || (err == nil) != c.ok {
			t.Errorf("%q: %d, %v", c.in, got, err)
		}
	}
}

func TestPrintEvents(t *testing.T) {
	e := &clusterapi.Event{Index: 7, LogIndex: 9, UnixNs: 5, Kind: clusterapi.EventKind_EVENT_KIND_MOVE_STEP, Host: "host1", Workload: "w", Migration: "m-1", Source: "host1",
		Destination: "host2", Phase: clusterapi.Phase_PHASE_COPYING, Text: "w: copying\nin two lines"}
	for format, want := range map[string]string{
		"json": `{"index":7,"log_index":9,"unix_ns":5,"kind":"move_step","host":"host1","workload":"w","migration":"m-1","source":"host1","destination":"host2","state":"copying","text":"w: copying\nin two lines"}`,
		"text": "move_step           w: copying; in two lines (m-1)",
	} {
		var b strings.Builder
		show, err := eventPrinter(&b, format)
		if err == nil {
			err = show(e)
		}
		if err != nil || !strings.Contains(b.String(), want) || strings.Count(b.String(), "\n") != 1 {
			t.Errorf("%s: %v\n%s", format, err, b.String())
		}
	}
	if _, err := eventPrinter(nil, "xml"); err == nil {
		t.Error("xml")
	}
	drained := eventOf(&clusterapi.Event{Kind: clusterapi.EventKind_EVENT_KIND_DRAIN_DONE})
	if drained.Remaining == nil {
		t.Error("a drain that is done does not say that nothing remains")
	}
}
