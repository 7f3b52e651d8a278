package agent

import (
	"time"

	"migrate/engine/ns"
)

// CPUTime is the processor time that the tree has used since it is in its cgroup.
func (s *source) CPUTime() (time.Duration, error) { return s.tree.CPUTime() }

// Throttle lets the tree have at most so many processors' time.
func (s *source) Throttle(processors float64) (err error) {
	if s.limit == nil {
		if s.limit, err = ns.LimitCPU(s.tree); err != nil {
			return err
		}
	}
	return s.limit.Set(processors)
}

// Unthrottle takes that away again.
func (s *source) Unthrottle() error {
	if s.limit == nil {
		return nil
	}
	err := s.limit.Close()
	if err == nil {
		s.limit = nil
	}
	return err
}

// lift lets a limited tree run at full speed. What was made for the limit goes later: it would take time of the blackout.
func (s *source) lift() error {
	if s.limit == nil {
		return nil
	}
	return s.limit.Lift()
}

// unlimit takes away the limit of a tree whose agent has died. What cannot be done here is tried again before the tree is let go.
func (h *host) unlimit(cg *ns.Cgroup) {
	if err := ns.UnlimitCPU(cg); err != nil {
		h.log.Warn("a program may still be slowed down", "error", err)
	}
}
