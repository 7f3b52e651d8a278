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

// A Phase is how far a thread inside a server has come.
type Phase uint8

const (
	// PhaseOutside: it is not in the server.
	PhaseOutside Phase = iota
	// PhaseEntering: it has not mapped its memory yet, or has just done so.
	PhaseEntering
	// PhaseServing: it has memory, and serves, or is on its way out.
	PhaseServing
	// PhaseLeft: its memory is unmapped, and only the registers are still to be loaded, and maybe the mask.
	PhaseLeft
)
