package fsm

import (
	"errors"
	"strings"
	"testing"

	agentapi "migrate/agent/api"
	"migrate/coordinator/fsm/logpb"
)

func TestAddresses(t *testing.T) {
	l := &log{t: t, s: New()}
	for i, name := range []string{"host1", "host2"} {
		l.apply(&logpb.Command{Command: &logpb.Command_RegisterNode{RegisterNode: &logpb.RegisterNode{Node: &agentapi.NodeInfo{Name: name, BootId: name,
			Addresses: []string{[]string{"10.77.0.11/24", "10.77.0.12/24"}[i], "fd77::1" + name[4:] + "/64"}}}}})
	}
	create := func(name, addr string, bare bool) error {
		return l.apply(&logpb.Command{Command: &logpb.Command_CreateWorkload{CreateWorkload: &logpb.CreateWorkload{
			Spec: &agentapi.WorkloadSpec{Name: name, Addr: addr, Bare: bare}, Host: "host1"}}}).Err
	}
	for _, c := range []struct{ name, addr, says string }{
		{"first", "10.77.0.50/24", ""},
		{"none", "", ""},
		{"same", "10.77.0.50/24", `workload "first" on host1`},
		{"same, otherwise written", "10.77.0.50/16", `workload "first" on host1`},
		{"of another host", "10.77.0.12/24", "host host2"},
		{"of its host", "fd77::11/64", "host host1"},
		{"no network of the host", "10.99.0.11/24", "no address in the network 10.99.0.0/24"},
		{"a network of one", "10.77.0.51/32", "no address in the network 10.77.0.51/32"},
		{"second", "fd77::50/64", ""},
	} {
		err := create(c.name, c.addr, false)
		var refused *Conflict
		if c.says == "" && err != nil || c.says != "" && (!errors.As(err, &refused) || !strings.Contains(refused.Reason, c.says)) {
			t.Errorf("%s at %s: %v, want %q", c.name, c.addr, err, c.says)
		}
	}
	if err := create("bare", "10.77.0.11/24", true); err != nil {
		t.Errorf("a process that has its address: %v", err)
	}
	l.apply(&logpb.Command{Command: &logpb.Command_WorkloadEnded{WorkloadEnded: &logpb.WorkloadEnded{Name: "first", Instance: l.workload("first").Instance}}})
	if err := create("next", "10.77.0.50/24", false); err != nil {
		t.Errorf("after the end of who had it: %v", err)
	}
}
