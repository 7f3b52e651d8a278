package volume

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"time"
)

// Options of a Sender.
type Options struct {
	Compress  bool
	Bandwidth int64 // bytes per second; 0: no limit
}

// Stats is what a round did.
type Stats struct {
	Entries int    // that the units have
	Changed int    // entries that were sent
	Sent    uint64 // bytes on the wire
	Read    uint64 // bytes of files that were read to find what has changed
	Scan    time.Duration
	Flush   time.Duration // until the destination had all of it on its disk
	Took    time.Duration
}

// Sender is the source's side of a move. It is used by one goroutine at a time.
type Sender struct {
	opts  Options
	units []*unitState
	wire  *wire // nil while there is no connection
	fresh bool  // what the destination has is not known
	round uint64
}

// unitState is a unit, and what the destination has of it.
type unitState struct {
	Unit
	index uint32
	root  *os.File
	known map[string]*known
}

// known is what the destination has of an entry.
type known struct {
	kind   Type
	links  uint32
	size   uint64
	ino    uint64 // of the source's, when it was sent; 0: it was there before
	ctime  int64
	first  string // the path that this is another name of; empty for none
	hashes []block
	asked  bool   // hashes are those that the destination has; false: it has to be asked
	racy   bool   // it was read so soon after its last change that another may have got the same time
	mapped bool   // it was mapped shared and writable in some round
	round  uint64 // in which it was seen last
}

// NewSender opens the units. Nothing is sent before Attach.
func NewSender(units []Unit, o Options) (*Sender, error) {
	s := &Sender{opts: o}
	for i, u := range units {
		root, err := openRoot(u.Dir)
		if err != nil {
			return nil, errors.Join(err, s.Close())
		}
		s.units = append(s.units, &unitState{Unit: u, index: uint32(i), root: root, known: map[string]*known{}})
	}
	return s, nil
}

// Attach gives the sender a connection, in the place of one that has broken. What has arrived over that one is asked for.
func (s *Sender) Attach(c net.Conn) error {
	err := s.detach()
	s.wire, s.fresh = newWire(c), true
	s.wire.limit.rate = float64(s.opts.Bandwidth)
	return err
}

func (s *Sender) detach() error {
	if s.wire == nil {
		return nil
	}
	err := s.wire.conn.Close()
	s.wire = nil
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Detached says that a round has lost its connection: another has to be attached.
func (s *Sender) Detached() bool { return s.wire == nil }

// SetBandwidth changes the limit; 0 is none.
func (s *Sender) SetBandwidth(bytesPerSecond int64) {
	s.opts.Bandwidth = bytesPerSecond
	if s.wire != nil {
		s.wire.limit.rate = float64(bytesPerSecond)
	}
}

// Close lets go of the connection and the units.
func (s *Sender) Close() error {
	errs := []error{s.detach()}
	for _, u := range s.units {
		errs = append(errs, u.root.Close())
	}
	s.units = nil
	return errors.Join(errs...)
}

// ErrDetached means that there is no connection.
var ErrDetached = errors.New("there is no connection for files")

// Round brings the destination up to the present state of the units, and returns when it is on the destination's disk. mapped
// tells the files (by their paths on this host) that a program maps shared and writable: their content is compared whatever
// their times say.
//
// All of the tree is walked each time. Watching it by inotify or fanotify was the other way: a walk of 10,000 files takes
// some tens of milliseconds, one of a database's 100 a fraction of one; a watch costs the same walk at the start, a watch for
// each directory out of a limit that belongs to the user, loses events when its queue is full, does not see writes through
// names outside of the tree, and tells as little as the time of change which part of a file was written. Of a file that
// has changed all blocks are read and hashed, by all processors: some 0.15 s for each GiB that is in memory. It is the one cost of
// a last round that grows with the size of a file.
func (s *Sender) Round(ctx context.Context, mapped func(path string) bool) (Stats, error) {
	if s.wire == nil {
		return Stats{}, ErrDetached
	}
	var st Stats
	start, before := time.Now(), s.wire.sent
	err := within(ctx, s.wire.conn, func() error {
		if s.fresh {
			if err := s.adopt(ctx); err != nil {
				return err
			}
		}
		s.round++
		for _, u := range s.units {
			r := unitRound{s: s, u: u, n: s.round, mapped: mapped, stats: &st, ctx: ctx}
			if err := r.run(); err != nil {
				return fmt.Errorf("%s: %w", u.Path(), err)
			}
		}
		flush := time.Now()
		err := s.wire.ask(ctx, kindSync, nil, kindSynced, func([]byte) (bool, error) { return true, nil })
		st.Flush = time.Since(flush)
		return err
	})
	if err != nil {
		return st, errors.Join(err, s.detach())
	}
	st.Sent, st.Took = s.wire.sent-before, time.Since(start)
	return st, nil
}

// adopt asks what the destination has.
func (s *Sender) adopt(ctx context.Context) error {
	for _, u := range s.units {
		u.known = map[string]*known{}
		err := s.wire.ask(ctx, kindList, encodeNames(u.index), kindListed, func(p []byte) (bool, error) {
			list, last, err := decodeListed(p)
			for _, l := range list {
				u.known[l.path] = &known{kind: l.kind, size: l.size, links: l.links}
			}
			if err == nil && len(u.known) > maxEntries {
				err = fmt.Errorf("%w: more than %d files are listed", ErrCorrupt, maxEntries)
			}
			return last, err
		})
		if err != nil {
			return fmt.Errorf("%s: what the destination has: %w", u.Path(), err)
		}
	}
	s.fresh = false
	return nil
}

// workers is how many goroutines read a large file.
func workers() int { return max(runtime.GOMAXPROCS(0), 1) }
