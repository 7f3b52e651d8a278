//go:build linux

package moves

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"go.yaml.in/yaml/v3"

	"migrate/e2e/cluster"
)

// scrape is the metrics of a host, as Prometheus reads them.
func (s *scope) scrape(host string) map[string]*dto.MetricFamily {
	s.Helper()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
		return cluster.Dialer(addr)(ctx)
	}}}
	req, err := http.NewRequestWithContext(s.Ctx, http.MethodGet, "http://"+cluster.Hosts.Host(host).Addr().String()+":7409/metrics", nil)
	if err != nil {
		s.Fatal(err)
	}
	r, err := c.Do(req)
	if err != nil {
		s.Fatal(err)
	}
	defer func() { _ = r.Body.Close() }()
	p := expfmt.NewTextParser(model.LegacyValidation)
	families, err := p.TextToMetricFamilies(r.Body)
	if err != nil || r.StatusCode != http.StatusOK {
		s.Fatalf("metrics of %s: %s, %v", host, r.Status, err)
	}
	return families
}

// sum is over the hosts and over all labels.
func sum(hosts []map[string]*dto.MetricFamily, name string) (v float64) {
	for _, h := range hosts {
		for _, m := range h[name].GetMetric() {
			v += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return v
}

// metricName is a metric in an expression of the dashboard or of an alert.
var metricName = regexp.MustCompile(`\b(migrate|process|go)_[a-z0-9_]+\b`)

// TestMetrics: a move shows in what the hosts tell Prometheus, and the dashboard and the alerts ask only for what is told.
func TestMetrics(t *testing.T) {
	s := begin(t, 2*time.Minute)
	all := func() (out []map[string]*dto.MetricFamily) {
		for _, h := range []string{"host1", "host2", "host3"} {
			out = append(out, s.scrape(h))
		}
		return out
	}
	before := all()
	s.Workload("measured", "", "sh", "-c", "while :; do sleep 0.1; done")
	s.On("host1", cluster.Migrate, "move", "measured", "--to", "host2")
	least := map[string]float64{"migrate_moves_total": 1, "migrate_move_blackout_seconds": 1, "migrate_move_rounds_total": 1,
		"migrate_move_sent_pages_total": 10, "migrate_move_sent_bytes_total": 1000, "migrate_cluster_events_total": 3}
	lacks := func(after []map[string]*dto.MetricFamily) (list []string) {
		for name, n := range least {
			if grown := sum(after, name) - sum(before, name); grown < n {
				list = append(list, fmt.Sprintf("%s has grown by %v, want at least %v", name, grown, n))
			}
		}
		return list
	}
	after := all()
	for end := time.Now().Add(5 * time.Second); len(lacks(after)) > 0 && time.Now().Before(end); after = all() {
		time.Sleep(20 * time.Millisecond) // the answer to the last report may still be on its way
	}
	if list := lacks(after); len(list) > 0 {
		t.Error(strings.Join(list, "\n"))
	}
	if n := sum(after, "migrate_raft_leader"); n != 1 {
		t.Errorf("%v servers lead", n)
	}
	for _, h := range after {
		if v := sum([]map[string]*dto.MetricFamily{h}, "migrate_workloads_resident_memory_bytes"); v < 0 || sum([]map[string]*dto.MetricFamily{h}, "process_resident_memory_bytes") == 0 {
			t.Errorf("memory: %v of workloads", v)
		}
	}

	asked := map[string]string{}
	for _, file := range []string{"../../deploy/grafana/dashboard.json", "../../deploy/prometheus/alerts.yaml"} {
		for _, expr := range expressions(t, file) {
			for _, name := range metricName.FindAllString(expr, -1) {
				asked[name] = file
			}
		}
	}
	if len(asked) < 20 {
		t.Errorf("the dashboard and the alerts ask for %d metrics only: %v", len(asked), asked)
	}
	for name, file := range asked {
		family := after[0][name]
		if family == nil {
			family = after[0][strings.TrimSuffix(name, "_bucket")]
		}
		if family == nil || strings.HasSuffix(name, "_bucket") != (family.GetType() == dto.MetricType_HISTOGRAM) {
			t.Errorf("%s asks for %s, which no host tells", file, name)
		}
	}
}

// expressions are all values under the key expr.
func expressions(t *testing.T, file string) (out []string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if strings.HasSuffix(file, ".json") {
		err = json.Unmarshal(text, &v)
	} else {
		err = yaml.Unmarshal(text, &v)
	}
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	var look func(v any)
	look = func(v any) {
		switch x := v.(type) {
		case map[string]any:
			if e, ok := x["expr"].(string); ok {
				out = append(out, e)
			}
			for _, y := range x {
				look(y)
			}
		case []any:
			for _, y := range x {
				look(y)
			}
		}
	}
	look(v)
	if len(out) == 0 {
		t.Fatalf("%s has no expressions", file)
	}
	return out
}
