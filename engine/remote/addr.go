package remote

import "migrate/engine/ptrace"

// Addr is an address in a tracee. It is never an address of this process, so it has a type of its own
// and does not convert to a pointer.
type Addr = ptrace.Addr
