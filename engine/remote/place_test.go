package remote

import (
	"testing"

	"golang.org/x/sys/unix"
)

// simulate does to a table of descriptors what the calls of a batch would.
func simulate(t *testing.T, b *Batch, table map[int]int) {
	t.Helper()
	arg := func(r *Result, i int) int {
		if r.refs&(1<<i) != 0 {
			return int(b.calls[r.args[i]].value)
		}
		return int(r.args[i])
	}
	for _, r := range b.calls {
		file, open := table[arg(r, 0)]
		if !open {
			t.Fatalf("call %d uses descriptor %d, which is closed", r.nr, arg(r, 0))
		}
		switch {
		case r.nr == unix.SYS_CLOSE:
			delete(table, arg(r, 0))
		case r.nr == unix.SYS_DUP3 && arg(r, 0) != arg(r, 1):
			table[arg(r, 1)] = file
		case r.nr == unix.SYS_FCNTL && arg(r, 1) == unix.F_DUPFD_CLOEXEC:
			free := arg(r, 2)
			for _, taken := table[free]; taken; _, taken = table[free] {
				free++
			}
			table[free], r.value = file, int64(free)
		case r.nr == unix.SYS_FCNTL && arg(r, 1) == unix.F_SETFD:
		default:
			t.Fatalf("call %d(%d, %d)", r.nr, arg(r, 0), arg(r, 1))
		}
	}
}
