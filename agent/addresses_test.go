package agent

import (
	"strings"
	"testing"

	agentapi "migrate/agent/api"
	"migrate/agent/port"
)

func TestCheckAddress(t *testing.T) {
	a := &Agent{host: &host{ports: &port.Host{}, bridge: "lo"}, node: &agentapi.NodeInfo{Addresses: []string{"198.51.100.1/24"}}}
	for addr, says := range map[string]string{
		"":                "",
		"127.0.0.77/8":    "",
		"127.0.0.1/8":     "belongs to this host",
		"198.51.100.7/24": "the bridge lo has no address in the network 198.51.100.0/24",
		"203.0.113.7/24":  "no address in the network 203.0.113.0/24",
		"nonsense":        "nonsense",
	} {
		err := a.checkAddress(addr)
		if says == "" && err != nil || says != "" && (err == nil || !strings.Contains(err.Error(), says)) {
			t.Errorf("%q: %v, want %q", addr, err, says)
		}
	}
	a.host.bridge = "no-such-device"
	if err := a.checkAddress("198.51.100.7/24"); err == nil || !strings.Contains(err.Error(), "no-such-device") {
		t.Errorf("a bridge that is not there: %v", err)
	}
}
