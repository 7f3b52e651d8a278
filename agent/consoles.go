package agent

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"migrate/agent/console"
	"migrate/agent/workload"
	"migrate/engine/images"
)

// consoleBlob is where a checkpoint has the counts of a workload's terminal.
const consoleBlob = "agent-console"

// terminalsOf opens the master of the terminal that is held for a workload, for a dump, and returns what closes it.
func terminalsOf(env *workload.Env) (map[string]*os.File, func() error, error) {
	master, err := env.Terminal()
	if err != nil || master == nil {
		return nil, func() error { return nil }, err
	}
	return map[string]*os.File{workload.TerminalName: master}, master.Close, nil
}

// openConsole begins to read the terminal of a workload, if it has one and nobody does yet.
func (h *host) openConsole(env *workload.Env, paused bool) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.consoles[env.Instance()] != nil {
		return nil
	}
	master, err := env.Terminal()
	if err != nil || master == nil {
		return err
	}
	counts, err := env.Counts()
	if err == nil && counts == nil {
		counts = &workload.Counts{Generation: rand.Text()}
		err = env.SetCounts(*counts)
	}
	if err != nil {
		return errors.Join(err, master.Close())
	}
	log, err := env.Output()
	if err != nil {
		return errors.Join(err, master.Close())
	}
	taken := h.typed[env.Instance()]
	delete(h.typed, env.Instance())
	c, err := console.Open(master, log, counts.Generation, counts.Base, taken, paused)
	if err != nil {
		return fmt.Errorf("workload %s: %w", env.Name(), err)
	}
	h.consoles[env.Instance()] = c
	return nil
}

// console is that of a copy; nil if it has none.
func (h *host) console(instance uint64) *console.Console {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.consoles[instance]
}

// closeConsole ends it, once all that was printed has been read.
func (h *host) closeConsole(instance uint64) error {
	h.mu.Lock()
	c := h.consoles[instance]
	delete(h.consoles, instance)
	delete(h.typed, instance)
	h.mu.Unlock()
	if c == nil {
		return nil
	}
	return c.Close()
}

func (h *host) pauseConsole(instance uint64) {
	if c := h.console(instance); c != nil {
		c.Pause()
	}
}

func (h *host) resumeConsole(instance uint64) {
	if c := h.console(instance); c != nil {
		c.Resume()
	}
}

// saveConsole adds the counts of a paused terminal to a checkpoint.
func (h *host) saveConsole(instance uint64, cp *images.Checkpoint) error {
	c := h.console(instance)
	if c == nil {
		return nil
	}
	st, err := c.Snapshot()
	if err != nil {
		return err
	}
	cp.Blobs[consoleBlob], err = json.Marshal(st)
	return err
}

// loadConsole takes them from one, for the copy that arrives.
func (h *host) loadConsole(env *workload.Env, cp *images.Checkpoint) (err error) {
	b := cp.Blobs[consoleBlob]
	if b == nil {
		return nil
	}
	var st console.State
	if err := json.Unmarshal(b, &st); err != nil {
		return fmt.Errorf("blob %s: %w", consoleBlob, err)
	}
	if err := st.Validate(); err != nil {
		return err
	}
	log, err := env.Output()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	if _, err := log.Write(st.Tail); err != nil {
		return fmt.Errorf("the output of workload %s: %w", env.Name(), err)
	}
	h.mu.Lock()
	h.typed[env.Instance()] = st.Taken
	h.mu.Unlock()
	return env.SetCounts(workload.Counts{Generation: st.Generation, Base: st.Output - uint64(len(st.Tail))})
}

// closeConsoles ends all of them; their programs go on.
func (h *host) closeConsoles() error {
	h.mu.Lock()
	var all []uint64
	for instance := range h.consoles {
		all = append(all, instance)
	}
	h.mu.Unlock()
	var errs []error
	for _, instance := range all {
		errs = append(errs, h.closeConsole(instance))
	}
	return errors.Join(errs...)
}

// takeUp begins to read the terminal of a copy that an earlier run of the agent has left: one that stands still for a move has to be left alone.
func (a *Agent) takeUp(_ context.Context, env *workload.Env) error {
	cg, err := env.TreeCgroup()
	if err != nil {
		return err
	}
	frozen, err := cg.Frozen()
	if err != nil {
		return err
	}
	return a.host.openConsole(env, frozen)
}
