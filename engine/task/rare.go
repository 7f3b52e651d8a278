//go:build linux

package task

import (
	"encoding/binary"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"migrate/engine/procfs"
	"migrate/engine/remote"
)

// What few programs ever set, and what is not carried. Some of it can be read in /proc; the rest only the thread
// itself can tell, so it is asked in the leader's batch, and the move ends there without harm. Threads inherit all of
// it from their makers, so the leader stands for them.

// checkSpeculation names threads that asked the processor to speculate less (prctl(PR_SET_SPECULATION_CTRL)).
func checkSpeculation(c *checker) error {
	c.eachThread(func(where string, _ int, s *procfs.Status) {
		for name, state := range map[string]string{
			"speculative store bypass": s.SpeculationStoreBypass, "indirect branch speculation": s.SpeculationIndirectBranch,
		} {
			if strings.HasPrefix(state, "thread ") && strings.HasSuffix(state, "mitigated") ||
				strings.HasPrefix(state, "conditional ") && strings.HasSuffix(state, "disabled") {
				c.refuse(where, fmt.Sprintf("it has switched off %s for itself", name), "")
			}
		}
	})
	return nil
}

// checkLSM names a process that a security module confines by a profile of its own.
func checkLSM(c *checker) error {
	b, err := c.fs.Bytes(c.p.PID, "attr", "current")
	if err != nil {
		return nil //nolint:nilerr // no security module has contexts, or it does not tell
	}
	context := strings.TrimRight(string(b), "\x00\n")
	if context == "" || strings.HasPrefix(context, "unconfined") || strings.Contains(context, ":unconfined_t:") || context == "kernel" {
		return nil
	}
	c.refuse("the process", fmt.Sprintf("a security module confines it as %q", context), "run it unconfined")
	return nil
}

// rare is a question to the leader. Ask returns what to do with the answer: it reports whether the answer is not the
// one that a thread has from birth.
type rare struct {
	what string
	ask  func(b *remote.Batch) func() bool
}

// byValue asks by the result of a call; an error means that the kernel does not have it.
func byValue(usual uint64, nr int, args ...any) func(b *remote.Batch) func() bool {
	return func(b *remote.Batch) func() bool {
		r := b.Try(nr, args...)
		return func() bool { v, err := r.Value(); return err == nil && v != usual }
	}
}

// byWord asks by a call that writes a word of size bytes.
func byWord(usual uint64, size int, call func(b *remote.Batch, word *remote.Data) *remote.Result) func(b *remote.Batch) func() bool {
	return func(b *remote.Batch) func() bool {
		word := b.Buffer(8)
		r := call(b, word)
		return func() bool {
			v := binary.LittleEndian.Uint64(word.Bytes()) & (1<<(8*size) - 1)
			return r.Err() == nil && v != usual
		}
	}
}

var rares = []rare{
	{"machine-check policy (PR_MCE_KILL)", byValue(unix.PR_MCE_KILL_DEFAULT, unix.SYS_PRCTL, unix.PR_MCE_KILL_GET, 0, 0, 0, 0)},
	{"I/O flusher state (PR_SET_IO_FLUSHER)", byValue(0, unix.SYS_PRCTL, unix.PR_GET_IO_FLUSHER, 0, 0, 0, 0)},
	{"forbidden time stamp counter (PR_SET_TSC)", byWord(unix.PR_TSC_ENABLE, 4, func(b *remote.Batch, w *remote.Data) *remote.Result {
		return b.Try(unix.SYS_PRCTL, unix.PR_GET_TSC, w, 0, 0, 0)
	})},
	{"core scheduling cookie (PR_SCHED_CORE)", byWord(0, 4, func(b *remote.Batch, w *remote.Data) *remote.Result {
		return b.Try(unix.SYS_PRCTL, unix.PR_SCHED_CORE, unix.PR_SCHED_CORE_GET, 0, 0, w)
	})},
	{"NUMA memory policy (set_mempolicy)", byWord(0, 4, func(b *remote.Batch, w *remote.Data) *remote.Result {
		return b.Try(unix.SYS_GET_MEMPOLICY, w, 0, 0, 0, 0)
	})},
}

func dumpRare(d *dumper) error {
	for _, r := range rares {
		changed := r.ask(&d.batch)
		d.then(func() error {
			if changed() {
				return fmt.Errorf("its %s: %w", r.what, ErrNotCarried)
			}
			return nil
		})
	}
	return nil
}
