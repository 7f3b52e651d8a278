// Package agent is the daemon of each host. It starts workloads, carries out the host's side of moves, and stands
// between the local command and the cluster.
//
//	listener               serves                                     who may call
//	control port, mTLS     Agent, Peer; on a server also Cluster      servers; nodes; all members
//	pages port, mTLS       the page stream (pagexfer)                 nodes
//	unix socket, 0600      LocalInfo of Agent; Cluster, passed on     the user that runs the agent
//
// The parts are in packages of their own: agent/workload (what surrounds a copy), agent/port (its network), agent/move
// (the moves), agent/policy (when to switch). This package joins them to the engine (host.go), the cluster
// (cluster.go) and the network (serve.go).
//
// # Start and end
//
// Start registers the host with the cluster before it starts anything, takes up what an earlier run left, and then
// serves. A host that came back under a new boot id holds no copies and says so. Close ends all goroutines; programs
// that run, and copies that stand still, go on without the agent.
//
// # Locks
//
// Agent.mu guards the table of program watchers; no call is made while it is held.
package agent
