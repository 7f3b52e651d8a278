package move

import (
	"context"
	"net"
	"time"

	"google.golang.org/grpc"

	agentapi "migrate/agent/api"
	"migrate/agent/volume"
	clusterapi "migrate/coordinator/api"
	"migrate/engine"
	"migrate/pagexfer"
)

// Handle is what has to be known of a copy to find it again after the agent was restarted. It is kept in the durable
// record.
type Handle struct {
	Instance uint64   `json:"instance"`
	PID      int      `json:"pid"`              // root of the tree, on this host
	VPID     int      `json:"vpid,omitzero"`    // the same as the tree knows it; 0 when not known
	PIDs     []int    `json:"pids"`             // all of it, when it was claimed
	Cgroup   string   `json:"cgroup"`           // that holds it, below the v2 mount
	Port     string   `json:"port"`             // empty for none
	Bare     bool     `json:"bare"`             // no environment of the agent's around it
	Addrs    []string `json:"addrs,omitempty"`  // CIDRs of the host's that move with a bare process
	Before   string   `json:"before,omitempty"` // cgroup of a bare process before it was held, below the v2 mount
	Spec     []byte   `json:"spec,omitzero"`    // protojson of the WorkloadSpec
}

// PageSink is where a source's pages go; *pagexfer.Sender is one.
type PageSink interface {
	Buffer() []byte
	Send(ctx context.Context, space uint32, runs []pagexfer.Run, data []byte) error
}

// RoundStats is what a round of copying did. Pages are handed to the sink by then, not necessarily written.
type RoundStats struct {
	Pages, ZeroPages uint64
	Skipped          uint64        // pages that were found, and written again before their turn: the next round sends them
	Scan             time.Duration // finding the dirty pages
}

// Timeouts are the retransmission time-outs of a connection in a switch.
type Timeouts struct {
	Local  string `json:"local"` // as in the report
	Remote string `json:"remote"`
	Count  uint16 `json:"count,omitempty"`
	Silent bool   `json:"silent,omitempty"` // its peer answered nothing before the switch: nothing is to be expected, nor the fault of the move
}

// Held is a copy that stands still, or may: what can be done to it without the engine's knowledge of it, so also
// after the agent was restarted. Both methods may be called again.
type Held interface {
	// Thaw lets the tree run; it does nothing to a tree that runs.
	Thaw(ctx context.Context) error
	// Destroy ends the tree and removes what surrounds it.
	Destroy(ctx context.Context) error
}

// Adopted is a Held that was found after a restart of the agent and has things around it that only the move needs.
type Adopted interface {
	Held
	// Leave takes them away from a tree that runs on here; a tree that stands still keeps them.
	Leave(ctx context.Context) error
}

// Source is a tree that is being moved away. Calls are made one at a time, except Close.
type Source interface {
	Held
	// Handle says how to find it again.
	Handle() Handle
	// Obstacles lists everything that stops a move, before the tree is touched.
	Obstacles(ctx context.Context) ([]engine.Obstacle, error)
	// Track starts to watch for writes. It is called once, before the first Layout and Round.
	Track(ctx context.Context) error
	// Layout is what the destination needs to know before the pages of the next round (images.Layout, marshalled).
	Layout(ctx context.Context) ([]byte, error)
	// Round sends what was written since the round before. A round that fails leaves its pages dirty.
	Round(ctx context.Context, sink PageSink) (RoundStats, error)
	// Contents describes the regular files that the tree has open or mapped, as of the last Obstacles, but those in the units.
	Contents(ctx context.Context, but []volume.Unit, content bool) ([]*agentapi.FileNeed, error)
	// Mapped lists the files that the tree maps shared and writable, by path.
	Mapped(ctx context.Context) (map[string]bool, error)
	// Pending counts connections that wait to be accepted or are being opened: a freeze cannot carry them.
	Pending(ctx context.Context) (int, error)
	// Timeouts tells of what connections have had between the last call of Pending and Final.
	Timeouts() []Timeouts
	// CPUTime is the processor time that the tree has used so far.
	CPUTime() (time.Duration, error)
	// Throttle lets the tree have at most so many processors' time, as long as it runs and until Unthrottle. Freeze and Close take the limit
	// away, too, and after the death of the agent so does the Thaw of what Host.Adopt has found.
	Throttle(processors float64) error
	// Unthrottle takes the limit away, and restores the one that there was before; without a limit it does nothing.
	Unthrottle() error
	// Freeze lifts what Throttle has set, for what waits for processor time cannot be stopped, and stops every thread.
	Freeze(ctx context.Context) error
	// Final sends the last pages and returns the state (images.Checkpoint, marshalled).
	Final(ctx context.Context, sink PageSink) ([]byte, RoundStats, error)
	// Hold closes the frozen cgroup and lets go of the tree, which from then on stays stopped without the agent.
	Hold(ctx context.Context) error
	// Digest is that of the whole memory, after Final.
	Digest(ctx context.Context) ([]byte, error)
	// Resident is about how many pages are in memory, for people to see.
	Resident() uint64
	// Tracker names how writes are found: uffd-wp, soft-dirty or hash.
	Tracker() string
	// Close stops tracking and lets go of the tree in whatever state it is.
	Close() error
}

// Skeleton is a tree that is being built. Sink's methods are called from several goroutines, the others one at a time.
type Skeleton interface {
	Held // Thaw is not called before Finish and Hold
	pagexfer.Sink
	Handle() Handle
	// Follow changes it to a newer layout. No pages arrive during the call.
	Follow(ctx context.Context, layout []byte) error
	// Finish gives it all state but its memory, flushes copied files, and closes the frozen cgroup around it.
	Finish(ctx context.Context, checkpoint []byte) error
	// Digest is that of the whole memory, after Finish.
	Digest(ctx context.Context) ([]byte, error)
	// Release lets the restored sockets leave repair, with the tree still stopped and the way out open. The packets that it
	// returns are delivered to the tree after the captured frames: each makes a socket acknowledge what it has.
	Release(ctx context.Context) (packets [][]byte, err error)
	// Settled waits, with the network connected, until everything is acknowledged that the restored connections have sent so far, or have
	// ended, or for as long as ctx allows. Then Connections has their retransmission time-outs, added to those at the source.
	Settled(ctx context.Context, before []Timeouts) error
	// Connections describes the sockets that it was given, for the report.
	Connections() []*clusterapi.Connection
}

// Port is the gate of a copy to the network, on the host's side; agent/port says what each call does and in which order
// they are made. A frame is a virtio_net_hdr with the Ethernet frame behind it. Shutting and opening are idempotent and
// outlive the agent.
type Port interface {
	Arm(ctx context.Context) error
	ShutNew() error
	ShutIngress() error
	ShutEgress() error
	// Take returns what was captured since the last call, in order; it does not wait.
	Take() (frames [][]byte, err error)
	// Dropped is how many frames the capture had no room for since Arm.
	Dropped() (uint64, error)
	Neighbours(ctx context.Context) ([]byte, error)
	InstallNeighbours(ctx context.Context, neighbours []byte) error
	OpenEgress() error
	Deliver(frames [][]byte) (int, error)
	DeliverPackets(packets [][]byte) error
	OpenIngress() error
	Announce(ctx context.Context, pauses ...time.Duration) error
	Disarm() error
}

// Build is what a skeleton is built from.
type Build struct {
	Instance, Epoch uint64
	Spec            *agentapi.WorkloadSpec
	Layout          []byte
	Addrs           []string // Handle.Addrs of the source
	// Clocks of the tree, as its own time namespace shows them, when this host's CLOCK_MONOTONIC was At.
	Clocks Clocks
}

// Clocks is a reading of the clocks that a tree sees, and when it was taken.
type Clocks struct {
	At        time.Duration `json:"at"` // CLOCK_MONOTONIC of the host that the value is for
	Monotonic time.Duration `json:"monotonic"`
	Boottime  time.Duration `json:"boottime"`
}

// Host is the engine and what surrounds copies on this host.
type Host interface {
	// Open finds the tree of a copy; for a bare process that no agent knows yet, spec.pid. It touches nothing. The port is nil
	// where the copy has none.
	Open(ctx context.Context, instance uint64, spec *agentapi.WorkloadSpec, opts *agentapi.MoveOptions) (Source, Port, error)
	// Clocks reads the clocks as the tree sees them.
	Clocks(ctx context.Context, h Handle) (Clocks, error)
	// Build makes the surroundings of a copy and a skeleton in them. Obstacles: nothing was built.
	Build(ctx context.Context, b Build) (Skeleton, Port, []engine.Obstacle, error)
	// Adopt finds a copy again. Frozen is true when its cgroup is, whole when the tree is there and complete.
	Adopt(ctx context.Context, h Handle) (held Held, port Port, frozen, whole bool, err error)
	// Owned tells that the copy runs here under this epoch, for good: after a move to this host, or back.
	Owned(ctx context.Context, h Handle, epoch uint64) error
}

// Cluster is the part of the servers' API that a move needs.
type Cluster interface {
	Report(ctx context.Context, in *clusterapi.ReportRequest, opts ...grpc.CallOption) (*clusterapi.ReportReply, error)
	RequestCommit(ctx context.Context, in *clusterapi.RequestCommitRequest, opts ...grpc.CallOption) (*clusterapi.RequestCommitReply, error)
	ReadMigration(ctx context.Context, in *clusterapi.ReadMigrationRequest, opts ...grpc.CallOption) (*clusterapi.ReadMigrationReply, error)
}

// Peers opens connections to other hosts' agents, authenticated by the name of the host.
type Peers interface {
	Dial(ctx context.Context, n *agentapi.NodeInfo) (agentapi.PeerClient, func() error, error)
	DialPages(ctx context.Context, n *agentapi.NodeInfo, address string) (net.Conn, error)
}
