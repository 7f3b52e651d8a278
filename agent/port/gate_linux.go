package port

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// mark lets a frame pass a shut gate. The kernel clears marks of what comes from another network namespace.
const mark = 0x6d696772

// hook is where the kernel runs a chain of the netdev family: when a device receives or when it sends.
type hook uint8

const (
	hookIngress hook = iota
	hookEgress
)

// mode says what a direction of a gate lets pass.
//
//	       ShutNew           ShutIngress, ShutEgress
//	open ----------> newShut ----------------------> shut
//	  ^-----------------+------ Open... -------------'
type mode uint8

const (
	open    mode = iota
	newShut      // no new TCP connections
	shut
)

// direction is one of a gate's two: a chain on a device.
type direction struct {
	chain   string
	device  string
	hook    hook
	matches [][]expr.Any // what it is about, each a rule of its own; none means all
	mode    mode
}

// Gate stands between the network and a workload, or an address of the host. See the package comment for the order
// of its use. Its methods may be called from several goroutines.
type Gate struct {
	host     *Host
	id       string
	name     string
	mac      net.HardwareAddr // of the device that receives what is let in
	ns       *os.File         // of that device
	dev      string           // that device
	into     string           // the host's device that Deliver sends on
	redirect int              // device that receives what Deliver sends on into, if another than into's other end; else 0
	addrs    []netip.Addr     // what it stands for; nil for all of the device's

	mu      sync.Mutex
	in, out direction
	capture *capture
	// Packet sockets that send: to the device behind the gate, and as that device. Closing one takes the kernel tens of
	// milliseconds, so they stay open from Arm to Disarm.
	deliverer, announcer *sender
	markers              *markers
}

func (g *Gate) table() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyNetdev, Name: tablePrefix + g.id}
}

func (d *direction) nftChain(t *nftables.Table) *nftables.Chain {
	accept := nftables.ChainPolicyAccept
	h := nftables.ChainHookIngress
	if d.hook == hookEgress {
		h = nftables.ChainHookEgress
	}
	return &nftables.Chain{Name: d.chain, Table: t, Type: nftables.ChainTypeFilter, Hooknum: h,
		Priority: nftables.ChainPriorityFirst, Policy: &accept, Device: d.device}
}

// install makes the gate's table and chains, shut or open.
func (g *Gate) install(closed bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if closed {
		g.in.mode, g.out.mode = shut, shut
	}
	return g.transact("install the gate", func(c *nftables.Conn) {
		t := c.AddTable(g.table())
		for _, d := range []*direction{&g.in, &g.out} {
			c.AddChain(d.nftChain(t))
			g.addRules(c, t, d)
		}
	})
}

// adopt reads the modes of a gate that exists.
func (g *Gate) adopt() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, d := range []*direction{&g.in, &g.out} {
		var rules []*nftables.Rule
		err := g.host.nft.use(func(c *nftables.Conn) (err error) {
			rules, err = c.GetRules(g.table(), d.nftChain(g.table()))
			return err
		})
		if err != nil {
			return fmt.Errorf("read the gate's chain %q: %w", d.chain, err)
		}
		d.mode = open
		for _, r := range rules {
			if m := mode(firstByte(r.UserData)); m > d.mode && m <= shut {
				d.mode = m
			}
		}
	}
	return nil
}

func firstByte(b []byte) byte {
	if len(b) == 0 {
		return 0
	}
	return b[0]
}

// transact changes rules by what f queues, all of it at once or nothing.
func (g *Gate) transact(what string, f func(c *nftables.Conn)) error {
	err := g.host.nft.use(func(c *nftables.Conn) error {
		f(c)
		return c.Flush()
	})
	if err != nil {
		return fmt.Errorf("%s of %q: %w", what, g.name, err)
	}
	return nil
}

// set changes one direction, in one transaction: the kernel goes from the old rules to the new ones at once.
func (g *Gate) set(d *direction, m mode) error {
	old := d.mode
	d.mode = m
	err := g.transact("change the gate", func(c *nftables.Conn) {
		t := g.table()
		c.FlushChain(d.nftChain(t))
		g.addRules(c, t, d)
	})
	if err != nil {
		d.mode = old
	}
	return err
}

// addRules appends the rules of a direction's mode to the batch. The mode is kept with each rule for adopt.
func (g *Gate) addRules(c *nftables.Conn, t *nftables.Table, d *direction) {
	if d.mode == open {
		return
	}
	add := func(exprs ...expr.Any) {
		c.AddRule(&nftables.Rule{Table: t, Chain: d.nftChain(t), Exprs: exprs, UserData: []byte{byte(d.mode)}})
	}
	add(&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, mark)},
		&expr.Verdict{Kind: expr.VerdictAccept})
	matches := d.matches
	if len(matches) == 0 {
		matches = [][]expr.Any{nil}
	}
	for _, match := range matches {
		rule := append([]expr.Any{}, match...)
		if d.mode == newShut {
			rule = append(rule, opensConnection()...)
		}
		if d == &g.in && g.capture != nil {
			rule = append(rule,
				&expr.Immediate{Register: 1, Data: binary.NativeEndian.AppendUint32(nil, uint32(g.capture.index))},
				&expr.Dup{RegDev: 1, IsRegDevSet: true})
		}
		add(append(rule, &expr.Verdict{Kind: expr.VerdictDrop})...)
	}
}

// opensConnection matches a TCP segment with SYN and without ACK.
func opensConnection() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{0x12}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0x02}},
	}
}

// hasTable tells whether a gate stands under this id.
func (h *Host) hasTable(id string) (bool, error) {
	var tables []*nftables.Table
	err := h.nft.use(func(c *nftables.Conn) (err error) {
		tables, err = c.ListTablesOfFamily(nftables.TableFamilyNetdev)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("list nftables: %w", err)
	}
	for _, t := range tables {
		if t.Name == tablePrefix+id {
			return true, nil
		}
	}
	return false, nil
}

// removeTable removes a gate's rules; it succeeds when there are none.
func (h *Host) removeTable(id string) error {
	exists, err := h.hasTable(id)
	if err != nil || !exists {
		return err
	}
	err = h.nft.use(func(c *nftables.Conn) error {
		c.DelTable(&nftables.Table{Family: nftables.TableFamilyNetdev, Name: tablePrefix + id})
		return c.Flush()
	})
	if err != nil {
		return fmt.Errorf("remove nftables table %s: %w", tablePrefix+id, err)
	}
	return nil
}

// ShutNew keeps new TCP connections out, so that queues of connections that are not yet accepted can run empty. If
// armed, their first segments are captured.
func (g *Gate) ShutNew() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.in.mode == shut {
		return nil
	}
	return g.set(&g.in, newShut)
}

// ShutIngress lets nothing more in. If armed, what comes is captured, and what had passed before has been received when it
// returns; if that takes too long, the error matches ErrNotSettled and the gate is shut all the same.
func (g *Gate) ShutIngress() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.set(&g.in, shut); err != nil {
		return err
	}
	return g.settle()
}

// ShutEgress lets nothing more out; what comes is dropped.
func (g *Gate) ShutEgress() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.set(&g.out, shut)
}

// OpenEgress lets everything out.
func (g *Gate) OpenEgress() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.set(&g.out, open)
}

// OpenIngress delivers what was captured and not taken, then lets everything in. While a peer floods the workload, frames keep
// coming in this way, in their order, until a moment is found in which none waits; after some time the gate opens without one, and the
// last ones captured can be overtaken. Run the workload before this call.
func (g *Gate) OpenIngress() error {
	const patience = time.Second
	g.mu.Lock()
	defer g.mu.Unlock()
	// What arrives during one delivery is captured, and follows with the next.
	err := g.deliverCaptured(time.Now().Add(patience))
	err = errors.Join(err, g.set(&g.in, open))
	return errors.Join(err, g.deliverCaptured(time.Time{}))
}

// Shut tells which directions let nothing pass.
func (g *Gate) Shut() (ingress, egress bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.in.mode == shut, g.out.mode == shut
}

// deliverCaptured delivers what waits, and what comes meanwhile until the deadline.
func (g *Gate) deliverCaptured(deadline time.Time) error {
	if g.capture == nil {
		return nil
	}
	for {
		frames, err := g.capture.take(g.mac, 16)
		if err != nil || len(frames) == 0 {
			return err
		}
		if _, err := g.deliver(frames); err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return nil
		}
	}
}

// Close disarms and lets go of the gate; its rules stay as they are.
func (g *Gate) Close() error {
	err := g.Disarm()
	return errors.Join(err, g.ns.Close())
}
