package arch

import "time"

// ServerParams say what a server needs to know of the thread that it borrows.
type ServerParams struct {
	Regs   Regs          // as the thread was stopped, with its interrupted call in them
	Mask   uint64        // its blocked signals
	TID    int           // of the thread, in the tracer's pid namespace; only for FindServers
	Lease  time.Duration // how long it waits for the next doorbell before it gives the program back
	Memory uint64        // bytes that it maps, a multiple of PageSize
}

// FoundServer is a server that is still, or was left, in a tracee's memory.
type FoundServer struct {
	Offset int
	TID    int
}
