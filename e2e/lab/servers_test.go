package lab

import (
	"strings"
	"testing"
)

func TestServers(t *testing.T) {
	for _, c := range []struct {
		hosts, servers, number int
		want                   []string
	}{
		{5, 0, 3, []string{"server: true", "servers: [host1, host2, host3]", "bootstrap_expect: 3"}},
		{5, 0, 4, []string{"server: false", "servers: [host1, host2, host3]"}},
		{2, 0, 2, []string{"server: true", "servers: [host1, host2]", "bootstrap_expect: 2"}},
		{2, 1, 1, []string{"server: true", "servers: [host1]", "bootstrap_expect: 1"}},
		{2, 1, 2, []string{"server: false", "servers: [host1]"}},
	} {
		st, err := Options{Hosts: c.hosts, Servers: c.servers}.state()
		if err != nil {
			t.Fatal(err)
		}
		got := (&Host{number: c.number, name: hostName(c.number)}).config(st)
		for _, line := range c.want {
			if !strings.Contains(got, line+"\n") {
				t.Errorf("host %d of %d with %d servers: %q is not in\n%s", c.number, c.hosts, c.servers, line, got)
			}
		}
	}
	for _, bad := range []int{-1, 3} {
		if _, err := (Options{Hosts: 2, Servers: bad}).state(); err == nil {
			t.Errorf("2 hosts may have %d servers", bad)
		}
	}
}
