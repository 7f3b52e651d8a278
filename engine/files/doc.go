// Package files carries the open descriptors of a process tree: what each number means, which numbers and
// processes share one open file description, and the state behind each description.
//
// Every kind of descriptor is one row of the table Kinds, and one file of this package holds both its halves: Dump,
// which reads a description through a duplicate of it (pidfd_getfd(2)), and Restore, which makes it anew. A kind that is not
// carried is a row too: it is found by the same rules and refused by name.
//
//	source:       NewDumper -> Check (any time; changes nothing) -> Dump (tree stopped) -> Resume | Drop -> Close
//	destination:  NewRestorer -> Open (makes every description once) -> Install (per process) -> Finish
//	              -> Release (at resume) | Drop -> Close
//
// The restoring program itself creates every description, keeps it, and gives it to each process at the right
// number; only what the kernel ties to the calling process (epoll registrations, timers on a clock of a time namespace, owners
// of signals) runs inside the process, one batch each.
//
// Dumping consumes nothing: queues and pipes are peeked. What it changes for the length of the freeze is TCP repair, which
// Resume takes back. A Dumper or Restorer is used by one goroutine at a time and takes no locks. When Dump fails, all
// that it changed is put back before it returns; when Open or Install fails, the caller calls Drop.
package files
