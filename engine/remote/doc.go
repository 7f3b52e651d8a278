// Package remote runs system calls inside another process: batches of them, with their data, in one round trip.
// A Batch is laid out in scratch memory of the tracee and executed there by the interpreter of package arch.
//
// There are two ways to drive it, both of them a Caller. A Trap is for processes that are being built: a
// ptrace-stopped thread runs a batch and traps at its end; when the tracer dies, so does the process. A Session is
// for living programs: the interpreter runs as a server on a socket of its own, with a lease, and gives the program
// back unharmed by itself when its tracer is gone.
package remote
