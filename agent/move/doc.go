// Package move carries out moves on one host: it runs the machines of coordinator/handoff for the source and for the
// destination, with real actions. What to do and in which order is decided there; here is only how.
//
// # Goroutines
//
// One loop per migration and role owns the machine's state. It takes events one by one, steps the machine, and
// carries out the actions in order. Actions that take long run beside it and come back as events:
//
//	      orders (leader)   peer's calls   results of tasks, orders read from the log
//	             \               |               /
//	              +---> inbox of the loop: Step, then the actions <---+
//	                             |                                     |
//	persist, freeze, thaw, resume, destroy: in the loop     build, copy, finish, ask: tasks
//	                             |
//	                 reports: an outbox, repeated until answered
//
// # Failure
//
// An action that fails ends the step. Before a vote that becomes a fault, and the machine ends it with the source
// running; a write that the log's word demands is repeated until it succeeds, because nothing else may happen. What
// has been written when is in coordinator/handoff; a record is one file with two slots (disk.go), so that a write is one
// flush and needs no new room on the disk.
//
// # Locks
//
// Manager.mu guards the table of migrations and nothing else; no call is made while it is held. A loop's own data are
// touched by its goroutine only; tasks get copies and answer by events. Counters for people to see are behind view.mu.
package move
