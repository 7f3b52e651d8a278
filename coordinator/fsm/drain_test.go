package fsm

import (
	"errors"
	"testing"

	agentapi "migrate/agent/api"
	"migrate/coordinator/fsm/logpb"
)

func (l *log) drain(node string, d *logpb.Drain) Result {
	return l.apply(&logpb.Command{Command: &logpb.Command_SetDrain{SetDrain: &logpb.SetDrain{Node: node, Drain: d}}})
}

func (l *log) drained(node string) (d *logpb.Drain) {
	l.s.Read(func(s *State) { d = s.Nodes[node].GetDrain() })
	return d
}

func isRefused(err error) bool {
	var c *Conflict
	return errors.As(err, &c) && c.Kind == Refused
}

// TestDrain: a drained host is given nothing, through a reboot of it and a snapshot, until it is put back.
func TestDrain(t *testing.T) {
	l := cluster(t)
	if res := l.drain("host2", &logpb.Drain{BegunUnixNs: 5, MaxParallel: 1}); res.Err != nil {
		t.Fatal(res.Err)
	}
	if res := l.drain("host2", &logpb.Drain{BegunUnixNs: 9, MaxParallel: 3}); res.Err != nil {
		t.Fatal(res.Err)
	}
	l.node("host2", "b3")
	if d := l.drained("host2"); d.GetBegunUnixNs() != 5 || d.GetMaxParallel() != 3 {
		t.Errorf("the drain is %v", d)
	}
	l.s.Read(func(s *State) {
		if d := stateOf(s.snapshot()).Nodes["host2"].GetDrain(); d.GetBegunUnixNs() != 5 {
			t.Errorf("in a snapshot it is %v", d)
		}
	})
	if res := l.begin("m1", "w", "host2", 1); !isRefused(res.Err) {
		t.Errorf("a move there: %v", res.Err)
	}
	if res := l.create("new", "host2"); !isRefused(res.Err) {
		t.Errorf("a workload there: %v", res.Err)
	}
	adopt := &logpb.CreateWorkload{Spec: &agentapi.WorkloadSpec{Name: "bare", Bare: true, Pid: 7}, Host: "host2"}
	if res := l.apply(&logpb.Command{Command: &logpb.Command_CreateWorkload{CreateWorkload: adopt}}); res.Err != nil {
		t.Errorf("a process that is there already: %v", res.Err)
	}
	if res := l.drain("host2", nil); res.Err != nil || l.drained("host2") != nil {
		t.Errorf("put back: %v, %v", res.Err, l.drained("host2"))
	}
	if res := l.begin("m1", "w", "host2", 1); res.Err != nil {
		t.Errorf("a move there afterwards: %v", res.Err)
	}
	if res := l.drain("host9", nil); res.Err == nil {
		t.Error("a host that is not there was put back")
	}
}

// TestDrainWhileCreated: a request that was answered once is answered so again.
func TestDrainWhileCreated(t *testing.T) {
	l := cluster(t)
	l.drain("host1", &logpb.Drain{BegunUnixNs: 5})
	if res := l.create("w", "host1"); res.Err != nil || res.Workload.GetPid() != 42 {
		t.Errorf("%v, %v", res.Workload, res.Err)
	}
}
