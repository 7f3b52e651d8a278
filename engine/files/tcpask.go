//go:build linux

package files

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"migrate/engine/bpf"
	"migrate/engine/sock"
	"migrate/tcprepair"
)

// maxAsked is how many connections are asked about one by one: about as many take the time of a look through the whole table of
// this machine's connections (some 15 µs each, against 3 ms and more for each family).
const maxAsked = 256

// askTCP finds out what TCP sockets do not tell of themselves, if the tree has one.
func (r *dump) askTCP() error {
	var conns []*description
	found, listens, table := false, false, false
	for _, desc := range r.snap.list {
		if desc.kind != kindTCP {
			continue
		}
		found = true
		r.endOf(desc)
		switch state, err := tcpState(desc); {
		case err != nil:
			return fmt.Errorf("%s: %w", desc.where(), err)
		case state == tcprepair.Listen:
			listens = true
		case state == tcprepair.SynSent: // it does not tell where to
			table = true
		case state != tcprepair.Closed:
			conns = append(conns, desc)
		}
	}
	if !found {
		return nil
	}
	r.openRequests()
	r.tcpInfo = map[uint32]sock.TCPInfo{}
	if listens {
		if err := r.askStates(tcprepair.Listen); err != nil {
			return err
		}
	}
	if !table && len(conns) <= maxAsked {
		all, err := r.askEach(conns)
		if err != nil || all {
			return err
		}
	}
	return r.askStates(tcprepair.Established, tcprepair.SynSent, tcprepair.FinWait1, tcprepair.FinWait2, tcprepair.CloseWait,
		tcprepair.LastAck, tcprepair.Closing)
}

// askEach asks about connections one by one; all is false when that did not find one of them.
func (r *dump) askEach(conns []*description) (all bool, err error) {
	for _, desc := range conns {
		p, err := connEnds(desc)
		if errors.Is(err, unix.ENOTCONN) {
			continue // it has ended since
		}
		if err != nil {
			return false, fmt.Errorf("%s: %w", desc.where(), err)
		}
		i, err := r.diag.tcpOf(desc, p.Local, p.Remote)
		if errors.Is(err, sock.ErrNoSocket) || err == nil && i.Ino != uint32(desc.stat.Ino) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("%s: %w", desc.where(), err)
		}
		r.tcpInfo[i.Ino] = i
	}
	return true, nil
}

func (r *dump) askStates(states ...tcprepair.ConnState) error {
	list, err := r.diag.TCP(states...)
	if err != nil {
		return err
	}
	for _, i := range list {
		r.tcpInfo[i.Ino] = i
	}
	return nil
}

// endOf tells how the connection of a socket in CLOSE has ended; nil if it has none that has, or this kernel cannot be asked. Before
// endOf may be called from several goroutines, it must have been called for each socket once.
func (d *Dumper) endOf(desc *description) *tcprepair.End {
	if state, err := tcpState(desc); err != nil || state != tcprepair.Closed || !polled(desc.fd, unix.POLLRDHUP|unix.POLLERR) {
		return nil
	}
	if d.kernel == nil {
		d.kernel, _ = bpf.Sockets() // what it would have told is then refused, where it matters
		if d.kernel == nil {
			d.kernel = map[int]bpf.Socket{}
		}
	}
	k, ok := d.kernel[desc.fd]
	if !ok || int(k.Family) != desc.sock.domain || tcprepair.ConnState(k.State) != tcprepair.Closed {
		return nil
	}
	return &tcprepair.End{Remote: k.Remote, Shutdown: k.Shutdown, Finished: k.Done, Error: k.Error}
}
