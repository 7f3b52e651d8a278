package agent

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"migrate/agent/console"
	"migrate/agent/workload"
	"migrate/engine/images"
)

// Where a checkpoint has the counts and the end of a workload's output: that of a terminal, or of a file.
const (
	consoleBlob = "agent-console"
	outputBlob  = "agent-output"
)

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

// saveOutput adds the end of a stopped program's output to a checkpoint, and the counts of its terminal if it has one.
func (h *host) saveOutput(env *workload.Env, cp *images.Checkpoint) error {
	if env == nil || env.Spec().GetBare() {
		return nil
	}
	blob, snapshot := outputBlob, func() (*console.State, error) { return outputState(env) }
	if c := h.console(env.Instance()); c != nil {
		blob, snapshot = consoleBlob, c.Snapshot
	}
	st, err := snapshot()
	if err != nil {
		return err
	}
	cp.Blobs[blob], err = json.Marshal(st)
	return err
}

// outputState is what of the output of a program without a terminal goes with it.
func outputState(env *workload.Env) (st *console.State, err error) {
	counts, err := env.OutputCounts()
	if err != nil {
		return nil, err
	}
	f, err := os.Open(env.OutputPath())
	if errors.Is(err, os.ErrNotExist) {
		return &console.State{Generation: counts.Generation, Output: counts.Base}, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	st = &console.State{Generation: counts.Generation, Output: counts.Base + uint64(size), Tail: make([]byte, min(size, console.MaxTail))}
	if _, err := f.ReadAt(st.Tail, size-int64(len(st.Tail))); err != nil {
		return nil, fmt.Errorf("the output of workload %s: %w", env.Name(), err)
	}
	return st, nil
}

// loadOutput takes them from one, for the copy that arrives: its file begins with the end of what it has written elsewhere.
func (h *host) loadOutput(env *workload.Env, cp *images.Checkpoint) (err error) {
	blob, terminal := consoleBlob, true
	if cp.Blobs[blob] == nil {
		blob, terminal = outputBlob, false
	}
	b := cp.Blobs[blob]
	if b == nil {
		return nil
	}
	var st console.State
	if err := json.Unmarshal(b, &st); err != nil {
		return fmt.Errorf("blob %s: %w", blob, err)
	}
	if err := st.Validate(); err != nil {
		return fmt.Errorf("blob %s: %w", blob, err)
	}
	log, err := env.Output()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	if err := log.Truncate(0); err != nil { // of an attempt before
		return fmt.Errorf("the output of workload %s: %w", env.Name(), err)
	}
	if _, err := log.Write(st.Tail); err != nil {
		return fmt.Errorf("the output of workload %s: %w", env.Name(), err)
	}
	counts := workload.Counts{Generation: st.Generation, Base: st.Output - uint64(len(st.Tail))}
	if !terminal {
		return env.SetOutputCounts(counts)
	}
	h.mu.Lock()
	h.typed[env.Instance()] = st.Taken
	h.mu.Unlock()
	return env.SetCounts(counts)
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
