package policy

const (
	// firstStep and nextStep are the least by which a program is slowed down more, in percent of what it used by itself.
	firstStep, nextStep = 20, 10
)

// Throttle decides by how much a program is slowed down that writes faster than its pages can be sent. It goes step by step: each time the
// rounds since the last step have shown that they do not help either, half of the way that seems to be left, but no less than a step. It never
// goes back before the copy ends: what made rounds converge must hold until the switch. The zero value has slowed nothing down.
type Throttle struct{ percent int }

// Percent is by how much the program is to be slowed down.
func (t *Throttle) Percent() int { return t.percent }

// Next takes a forecast and the most that is allowed, in percent, and reports whether Percent has changed. Then Policy.Changed is due.
func (t *Throttle) Next(f Forecast, most int) bool {
	switch {
	case t.percent > most:
		t.percent = most
		return true
	case f.Decision != CannotConverge || f.Cause != CauseWrites || t.percent >= most:
		return false
	}
	least := nextStep
	if t.percent == 0 {
		least = firstStep
	}
	next := t.percent + least
	if f.DirtyPerSecond > 0 { // what a program writes goes at most like the time that it gets
		enough := 100 - float64(100-t.percent)*slower*f.PagesPerSecond/f.DirtyPerSecond
		next = max(next, t.percent+int(enough-float64(t.percent))/2)
	}
	t.percent = min(next, most)
	return true
}

// Changed tells that the program has been slowed down, or let go again: what rounds have shown of its writing so far holds no longer, nor
// what the one shows that runs, for it sends what was written before. What they have shown of the link does.
func (p *Policy) Changed() {
	p.run, p.changed = 0, true
	p.model.kept, p.model.estimates = nil, nil
}
