// Package engine checkpoints and restores process trees. The work is in its subpackages, ordered by resource;
// dump and restore put them in order. This package holds only what all of them speak of.
package engine

import "fmt"

// An Obstacle is something of a process that the engine does not carry. The plan lists all of them, and a move
// or dump is refused, before the process is touched, while there is one.
type Obstacle struct {
	PID    int    // as the caller sees the process
	Kind   string // a kind of docs/coverage.md, such as "inotify"
	Where  string // such as "fd 7", "mapping 0x7f12..-0x7f13..", "thread 12"
	Reason string // what it is and why it is not carried
	Remedy string // what the operator can do about it; may be empty
	// Passing says that it is, as a rule, over in a moment, so that it is worth another look.
	Passing bool
}

func (o Obstacle) String() string {
	s := fmt.Sprintf("pid %d, %s: %s (%s)", o.PID, o.Where, o.Reason, o.Kind)
	if o.Remedy != "" {
		s += "; " + o.Remedy
	}
	return s
}
