package main

import (
	"bytes"
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func TestServeMetrics(t *testing.T) {
	var said bytes.Buffer
	log := slog.New(slog.NewTextHandler(&said, nil))
	gauge := prometheus.NewGauge(prometheus.GaugeOpts{Name: "migrate_test"})
	end, err := serveMetrics(t.Context(), "127.0.0.1:0", log, []prometheus.Collector{gauge})
	if err != nil {
		t.Fatal(err)
	}
	url := regexp.MustCompile(`http://[0-9.:]+/metrics`).FindString(said.String())
	get := func(url string) (int, string) {
		t.Helper()
		r, err := http.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = r.Body.Close() }()
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return r.StatusCode, string(b)
	}
	if code, body := get(url); code != http.StatusOK || !strings.Contains(body, "\nmigrate_test 0\n") || !strings.Contains(body, "\nprocess_resident_memory_bytes ") {
		t.Errorf("%d\n%s", code, body)
	}
	if code, _ := get(strings.TrimSuffix(url, "metrics")); code != http.StatusNotFound {
		t.Errorf("another path: %d", code)
	}
	if strings.Contains(said.String(), "whoever") {
		t.Error("a warning of loopback")
	}
	if err := end(); err != nil {
		t.Error(err)
	}
	if _, err := http.Get(url); err == nil {
		t.Error("it is served on")
	}
	if _, err := serveMetrics(t.Context(), "7409", log, nil); err == nil || !strings.Contains(err.Error(), "127.0.0.1:7409") {
		t.Errorf("an address without a port: %v", err)
	}
	if end, err := serveMetrics(t.Context(), "", log, nil); err != nil || end() != nil {
		t.Errorf("no address: %v", err)
	}
	if end, err = serveMetrics(t.Context(), "0.0.0.0:0", log, nil); err != nil || end() != nil || !strings.Contains(said.String(), "whoever reaches this address") {
		t.Errorf("no warning: %v, %s", err, said.String())
	}
}
