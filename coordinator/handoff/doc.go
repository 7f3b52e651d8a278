// Package handoff is the protocol by which a workload changes hosts: who may run, and what has to be durable before
// what. It is pure: three state machines and the record that the replicated log keeps, with no I/O, no clock and no
// goroutines. The callers (coordinator, agent) feed events, carry out the actions in the order given, one after the
// other, and stop at the first that fails. The very same code is explored exhaustively in this package's tests.
//
// # The record: what the log says (Record.Apply)
//
//	Begin
//	  |
//	  v
//	preparing --StartCopy--> copying --StartSwitch(k)--> switching(k) --Commit(k)--> committed --Resumed--> resumed --Released--> released
//	  |                       |   ^                       |   |                        |  |
//	  |                       |   +------EndAttempt(k)----+   |                        |  +--DestinationRan--> needs-operator
//	  +------------Abort------+---------------Abort-----------+                        |
//	                          v                                                     Revert
//	                       aborted --Confirmed--> confirmed <--Confirmed-- reverted <--+
//
// SourceLost (the source's host rebooted) leads to lost from any phase before the commit, and from reverted. But if it
// may have voted in the attempt that runs or that an Abort cut off, and has not run since, it leads to committed: the
// destination's copy is the last state there is, and it resumes it if it is whole or declines. DestinationGone is the
// destination's acknowledgement of the end. A record is closed when both sides have acknowledged its end. Resolve is
// an operator's word that one host is fenced; it ends what would wait for that host for ever.
//
// # The leader (Leader.Step)
//
// Holds the votes in memory and turns reports into entries, and entries into orders. Between the source's freeze and
// the destination's resume there is exactly one entry, Commit, proposed only while the destination's own request
// waits, with both votes in hand and their hashes equal. A new leader starts from the record alone: votes are asked
// again, orders are sent again.
//
// # The source (Source.Step)
//
//	idle -PrepareSource-> preparing -skeleton-> prepared -Copy-> copying <-----------------+
//	                          |                     |              | Switch(k)             | EndAttempt(k), or a
//	                          | fault               | fault        v                       | fault before the vote
//	                          +------> failed <-----+--fault-- switching(k) --------------+
//	                                     |                         | finished: vote        |
//	                                     |                         v                       |
//	                                     | Abort                 voted(k) -----------------+
//	                                     v                         | Abort, Revert: running
//	                                  running <--------------------+ Commit: held --Release--> released
//	                                                                              --Revert---> running
//
// undecided stands for voted after the agent's restart: frozen, silent, waiting for the log. lost: the host rebooted.
//
// # The destination (Destination.Step)
//
//	idle -PrepareDestination-> expecting -peer-> skeleton -finished(k)-> prepared(k) -Commit-> resuming -ran-> running
//	                               |                ^                      |  |
//	                               |                +------EndAttempt(k)---+  +--Abort--> aborted --DestroyCopy--> gone
//	                               +---- broken, rebooted (before Commit or after): declined --DestroyCopy--> gone
//
// # Names
//
// Every order, vote and report carries a Ref. What does not match is refused with a *Refusal and changes nothing.
// Post-copy is not built: its order is refused with Unsupported.
package handoff
