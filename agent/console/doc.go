//go:build linux

// Package console keeps the terminal of a workload: it reads what the program prints, into the file that is the workload's output, and passes
// on what those who are attached type. All who are attached see the same and may all type; the window has the size that the last of them
// has asked for.
//
// Output is counted from the start of the workload, over all hosts: the file has it from an offset on, the base. Input is counted for each
// session, a name that somebody attached has chosen. Both counts move with the workload (State), so that who attaches again, at
// another host, neither loses anything nor gets or types it twice. After an agent has ended without order, the counts of input are lost;
// then what was on its way may be lost, and is never typed twice.
//
// The master of the terminal is held by the pid 1 of the workload, so that it outlives the agent. While the workload is stopped for a move the
// console is paused: what waits in the terminal is recorded with it, and nobody may take or add anything.
//
// One goroutine reads, the callers of Write write; a mutex is over all counts. Close ends it.
package console
