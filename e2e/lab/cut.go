package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"migrate/e2e/lab/pid1"
)

// A Plane is a kind of traffic between agents, told by its port.
type Plane string

// The planes. PlaneAll is all traffic, also that of workloads.
const (
	PlaneAll     Plane = ""
	PlaneControl Plane = "control"
	PlanePages   Plane = "pages"
	PlaneRaft    Plane = "raft"
	PlaneGossip  Plane = "gossip"
)

var planePorts = map[Plane]uint16{PlaneControl: controlPort, PlanePages: pagesPort, PlaneRaft: raftPort, PlaneGossip: gossipPort}

// Cut is a kind of frames that the switch drops: those from the port From to the port To. An empty name stands for every port.
type Cut struct {
	From  string `json:"from,omitempty"`
	To    string `json:"to,omitempty"`
	Plane Plane  `json:"plane,omitempty"`
}

func (c Cut) String() string {
	text := orAll(c.From) + " -> " + orAll(c.To)
	if c.Plane != PlaneAll {
		text += " (" + string(c.Plane) + ")"
	}
	return text
}

func orAll(name string) string {
	if name == "" {
		return "*"
	}
	return name
}

// Cut makes the switch drop all frames to and from a host; those that are on their way are dropped too.
func (l *Lab) Cut(ctx context.Context, host string) error {
	return l.cut(ctx, Cut{From: host}, Cut{To: host})
}

// CutPair makes the switch drop the frames from host a to host b, and unless oneWay those from b to a, of one plane or of all.
// Frames of a workload count as its host's.
func (l *Lab) CutPair(ctx context.Context, a, b string, oneWay bool, plane Plane) error {
	if a == b {
		return fmt.Errorf("lab: a cut is between two hosts, not between %s and itself", a)
	}
	cuts := []Cut{{a, b, plane}}
	if !oneWay {
		cuts = append(cuts, Cut{b, a, plane})
	}
	return l.cut(ctx, cuts...)
}

func (l *Lab) cut(ctx context.Context, cuts ...Cut) error {
	for _, c := range cuts {
		if err := l.check(c); err != nil {
			return err
		}
	}
	return l.update(ctx, func(st *state) error {
		for _, c := range cuts {
			if !slices.Contains(st.Cuts, c) {
				st.Cuts = append(st.Cuts, c)
			}
		}
		return l.applyCuts(ctx, st)
	})
}

func (l *Lab) check(c Cut) error {
	for _, name := range []string{c.From, c.To} {
		if name != "" && l.Host(name) == nil {
			return l.noHost(name)
		}
	}
	if _, ok := planePorts[c.Plane]; c.Plane != PlaneAll && !ok {
		return fmt.Errorf("lab: no plane is called %q; there are control, pages, raft and gossip", c.Plane)
	}
	return nil
}

func (l *Lab) noHost(name string) error {
	return fmt.Errorf("lab: no host is called %q; there are host1 to host%d, and %s", name, len(l.hosts), ClientName)
}

// Heal ends cuts and stalls: all of them, or those of one host, or with two hosts those of the pair.
func (l *Lab) Heal(ctx context.Context, hosts ...string) error {
	for _, name := range hosts {
		if l.Host(name) == nil {
			return l.noHost(name)
		}
	}
	err := l.update(ctx, func(st *state) error {
		st.Cuts = slices.DeleteFunc(st.Cuts, func(c Cut) bool {
			for _, name := range hosts {
				if c.From != name && c.To != name {
					return false
				}
			}
			return true
		})
		return l.applyCuts(ctx, st)
	})
	if err != nil || len(hosts) > 1 {
		return err
	}
	for _, h := range l.hosts {
		if len(hosts) == 1 && hosts[0] != h.name {
			continue
		}
		if e := h.Unstall(ctx); e != nil && !errors.Is(e, ErrDown) && !errors.Is(e, pid1.ErrNotRunning) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// The table that holds the cuts, in the switch's namespace.
const (
	cutTable = "lab"
	cutChain = "cuts"
)

// applyCuts replaces the rules of the switch, in one transaction, by those for the cuts of st, and writes st.
func (l *Lab) applyCuts(ctx context.Context, st *state) error {
	if err := writeState(l.dir, st); err != nil {
		return err
	}
	return l.inSwitch(ctx, func(_ *netlink.Handle, ns netns.NsHandle) error {
		c, err := nftables.New(nftables.WithNetNSFd(int(ns)))
		if err != nil {
			return fmt.Errorf("lab: nftables: %w", err)
		}
		table := &nftables.Table{Name: cutTable, Family: nftables.TableFamilyBridge}
		c.AddTable(table) // so that there is one to delete
		c.DelTable(table)
		c.AddTable(table)
		accept := nftables.ChainPolicyAccept
		chain := c.AddChain(&nftables.Chain{
			Name: cutChain, Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &accept,
		})
		for _, cut := range st.Cuts {
			for _, exprs := range cut.rules() {
				c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: exprs})
			}
		}
		if err := c.Flush(); err != nil {
			return fmt.Errorf("lab: the switch's rules for %s: %w", cutList(st.Cuts), err)
		}
		return nil
	})
}

func cutList(cuts []Cut) string {
	var texts []string
	for _, c := range cuts {
		texts = append(texts, c.String())
	}
	return "[" + strings.Join(texts, ", ") + "]"
}

// rules returns what drops the frames of the cut: one rule, or for a plane one per protocol and end that may have its port.
func (c Cut) rules() [][]expr.Any {
	var ports []expr.Any
	if c.From != "" {
		ports = append(ports, isDevice(expr.MetaKeyIIFNAME, c.From)...)
	}
	if c.To != "" {
		ports = append(ports, isDevice(expr.MetaKeyOIFNAME, c.To)...)
	}
	drop := &expr.Verdict{Kind: expr.VerdictDrop}
	if c.Plane == PlaneAll {
		return [][]expr.Any{append(ports, drop)}
	}
	var rules [][]expr.Any
	for _, protocol := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		for _, offset := range []uint32{0, 2} { // the source and the destination port, in both headers
			r := slices.Clone(ports)
			r = append(r,
				&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{protocol}},
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, planePorts[c.Plane])},
				drop)
			rules = append(rules, r)
		}
	}
	return rules
}

// isDevice matches a port of the switch by name, so that a cut holds when its host reboots.
func isDevice(key expr.MetaKey, name string) []expr.Any {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: padded}}
}
