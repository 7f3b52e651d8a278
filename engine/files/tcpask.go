//go:build linux

package files

import (
	"golang.org/x/sys/unix"

	"migrate/engine/bpf"
	"migrate/engine/sock"
	"migrate/tcprepair"
)

// askTCP finds out what TCP sockets do not tell of themselves, if the tree has one.
func (r *dump) askTCP() error {
	found := false
	for _, desc := range r.snap.list {
		if desc.kind == kindTCP {
			found = true
			r.endOf(desc)
		}
	}
	if !found {
		return nil
	}
	r.openRequests()
	list, err := r.diag.TCP(tcprepair.Established, tcprepair.SynSent, tcprepair.FinWait1, tcprepair.FinWait2, tcprepair.CloseWait, tcprepair.LastAck,
		tcprepair.Listen, tcprepair.Closing)
	if err != nil {
		return err
	}
	r.tcpInfo = make(map[uint32]sock.TCPInfo, len(list))
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
