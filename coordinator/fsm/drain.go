package fsm

import (
	"google.golang.org/protobuf/proto"

	"migrate/coordinator/fsm/logpb"
)

// Drained is why a host that is being emptied, or is empty and out of use, gets nothing.
func Drained(host string) error {
	return conflict(Refused, "%s is drained and takes no workloads; `migrate undrain %s` puts it back into use", host, host)
}

// setDrain keeps the beginning of a drain that is there already: only its limits change.
func (s *State) setDrain(c *logpb.SetDrain) Result {
	n := s.Nodes[c.GetNode()]
	if n == nil {
		return Result{Err: conflict(NotFound, "no host is named %q", c.GetNode())}
	}
	drain := proto.CloneOf(c.GetDrain())
	if drain != nil && n.GetDrain() != nil {
		drain.BegunUnixNs = n.GetDrain().GetBegunUnixNs()
	}
	n = proto.CloneOf(n)
	n.Drain = drain
	s.Nodes[c.GetNode()] = n
	return Result{}
}
