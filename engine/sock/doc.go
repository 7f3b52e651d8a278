// Package sock reads and rebuilds single sockets: their options, their names, their peers and what waits in their
// queues. It works on a duplicate of a socket's descriptor (pidfd_getfd(2)) and knows nothing of processes; package
// files says which process holds which socket. The state of TCP connections and listeners is the matter of package
// tcprepair; here it is only encoded.
//
// What is read is peeked, never consumed, and every option that peeking needs is put back. Sockets must be created
// inside the right network namespace and named inside the right file system: In runs a function on a thread that
// is there. The package takes no locks; a failed call leaves the socket for the caller to close.
package sock
