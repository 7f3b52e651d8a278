package move

import (
	"fmt"
	"time"

	"migrate/agent/policy"
)

// throttle slows the program down while it is copied, when the policy says that no more rounds help and the operator allows it.
type throttle struct {
	steps   policy.Throttle
	used    time.Duration // processor time of the tree when it was last read
	at      time.Time     // then; zero before
	most    float64       // processors that it has used at most while nothing slowed it down
	refused error         // why this host cannot slow it down
}

// usageTime is the least time over which the use of processors is measured: the kernel counts in time slices.
const usageTime = 100 * time.Millisecond

// measure notes what the tree uses by itself. It is called after each round, so the highest figure is of the time of a round or longer.
func (t *throttle) measure(tree Source) error {
	if t.steps.Percent() > 0 || time.Since(t.at) < usageTime {
		return nil
	}
	used, err := tree.CPUTime()
	if err != nil {
		return err
	}
	now := time.Now()
	if !t.at.IsZero() {
		t.most = max(t.most, (used-t.used).Seconds()/now.Sub(t.at).Seconds())
	}
	t.used, t.at = used, now
	return nil
}

// step slows the tree down further if the forecast asks for it and most, in percent, allows it. It reports whether another round shows more.
func (s *source) step(c *copier, f policy.Forecast, most int) bool {
	t := &c.throttle
	if most == 0 && t.steps.Percent() == 0 || t.refused != nil {
		return false
	}
	err := t.measure(s.tree)
	if err == nil && t.steps.Percent() == 0 && t.most == 0 {
		return false // it writes by the hands of others, or not at all
	}
	if err == nil {
		if !t.steps.Next(f, most) {
			return false
		}
		err = s.slowDown(t)
	}
	c.progress.slowed(t.steps.Percent(), err)
	if err != nil {
		t.refused = err
		s.log.Warn("the program cannot be slowed down", "error", err)
		return false
	}
	s.log.Info("the program writes faster than its pages can be sent: its processor time is limited", "percent_less", t.steps.Percent(), "at_most", most, "processors_used", t.most)
	return true
}

// slowAgain slows the tree down as it was in the stretch of copying before this one, after an attempt that has ended.
func (s *source) slowAgain(c *copier) {
	t := &c.throttle
	if t.steps.Percent() == 0 || t.refused != nil {
		return
	}
	if err := s.slowDown(t); err != nil {
		t.refused = err
		c.progress.slowed(0, err)
		s.log.Warn("the program cannot be slowed down again", "error", err)
	}
}

func (s *source) slowDown(t *throttle) error {
	if t.steps.Percent() == 0 {
		return s.tree.Unthrottle()
	}
	return s.tree.Throttle(t.most * float64(100-t.steps.Percent()) / 100)
}

// letGo lets the tree have its processor time again. It is said again whenever the tree is let go for another reason.
func (s *source) letGo() error {
	if s.tree == nil {
		return nil
	}
	if err := s.tree.Unthrottle(); err != nil {
		return fmt.Errorf("taking the limit of the program's processor time away: %w", err)
	}
	return nil
}

// slowed notes by how much the program is slowed down, or why it is not; the policy begins anew.
func (p *progress) slowed(percent int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.throttled, p.unthrottled = percent, err
	if err != nil {
		p.throttled = 0
		return
	}
	p.policy.Changed()
}

// slowness is what a reason for people says of it.
func (p *progress) slowness() string {
	switch {
	case p.unthrottled != nil:
		return fmt.Sprintf("; the program cannot be slowed down: %v", p.unthrottled)
	case p.throttled > 0:
		return fmt.Sprintf("; the program is slowed down by %d %%", p.throttled)
	}
	return ""
}
