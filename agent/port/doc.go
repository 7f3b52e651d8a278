// Package port is the host's side of a workload's network, and what happens to it in a move.
//
// A managed workload has a network namespace of its own, and in it one end of a veth pair, with its own hardware and IP addresses. The
// other end is a port of the host's bridge:
//
//	workload's namespace │ host
//	               eth0 ─┼─ mgpXXXX ── br0 ── uplink
//	                     │     │ gate (nftables, netdev family, on mgpXXXX)
//	                     │     └─ dup ─> mgcXXXX ── mgxXXXX (capture, only while armed)
//
// A bare process has only a floating address of its host (Floating); its gate stands on the host's own device and
// matches the address, and the rest is the same.
//
// The gate shuts each direction by itself. Its rules are in the host's kernel: they are out of the workload's reach and stay
// when the agent dies. While incoming frames are shut out and the gate is armed they are copied to the capture device, and
// wait in a packet socket of bounded size until Take, with all that the kernel knew of them (GSO, partial checksums); one that finds no
// room is counted by Dropped. What is delivered by Deliver passes the shut gate by a mark.
//
// The order of a move that loses no frame and lets no client wait for a retransmission time-out:
//
//	source                                           destination
//	Arm                                              Create with Shut (both ways), Arm
//	ShutNew, until accept queues are empty (maybe)
//	ShutIngress: frames wait in the capture
//	freeze; pause the sockets, flush their acknowledgements, save them
//	ShutEgress: nothing had to be dropped until here
//	Neighbours                                       restore the sockets, still in repair
//	                            -- commit --
//	                                                 InstallNeighbours, release the sockets
//	Take, and go on taking                           OpenEgress, Deliver what comes, Announce
//	nothing comes any more                           OpenIngress: what was captured here goes in first
//	Destroy                                          Disarm
//
// Before OpenIngress nothing from the network overtakes what was captured at the source. On abort the source does as the destination
// would: resume the sockets, OpenEgress, and OpenIngress, which delivers what its capture holds.
//
// A Host and its ports may be used from several goroutines; each gate serialises its own changes. The package starts no goroutines
// that outlive a call. Names of devices and tables are derived from the port's name, so List and Remove find what a dead
// agent left behind.
package port
