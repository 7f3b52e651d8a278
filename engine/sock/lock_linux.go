package sock

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"migrate/tcprepair"
)

// LockPrefix begins the name of every nftables table (of family inet) that locks connections.
const LockPrefix = "migrate-dump-"

// A Pair names a connection by its two ends, as the socket sees them.
type Pair struct{ Local, Remote netip.AddrPort }

// A Lock keeps the segments of connections from arriving at and leaving their ends, so that a peer on the same host hears nothing
// from a kernel that has the connection no more. It is a table of nftables with the name of the lock, in the network
// namespace of the connections, and outlives this program. What carries tcprepair.Mark passes.
type Lock struct {
	name string
	nft  *nftables.Conn
	sets map[bool][2]*nftables.Set // by IPv6: of what comes in and of what goes out
}

// NewLock installs a lock without connections, in the network namespace of the calling thread; see In.
func NewLock() (*Lock, error) {
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails (crypto/rand)
	l := &Lock{name: LockPrefix + hex.EncodeToString(id[:]), sets: map[bool][2]*nftables.Set{}}
	var err error
	if l.nft, err = nftables.New(nftables.AsLasting()); err != nil {
		return nil, fmt.Errorf("open a netlink socket to nftables: %w", err)
	}
	t := l.nft.AddTable(lockTable(l.name))
	for i, h := range []*nftables.ChainHook{nftables.ChainHookInput, nftables.ChainHookOutput} {
		accept := nftables.ChainPolicyAccept
		c := l.nft.AddChain(&nftables.Chain{Name: []string{"input", "output"}[i], Table: t, Type: nftables.ChainTypeFilter, Hooknum: h,
			Priority: nftables.ChainPriorityFirst, Policy: &accept})
		l.nft.AddRule(&nftables.Rule{Table: t, Chain: c, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, tcprepair.Mark)},
			&expr.Verdict{Kind: expr.VerdictAccept},
		}})
		for _, v6 := range []bool{false, true} {
			if err := l.addSet(t, c, i, v6); err != nil {
				return nil, errors.Join(err, l.nft.CloseLasting())
			}
		}
	}
	if err := l.nft.Flush(); err != nil {
		return nil, errors.Join(fmt.Errorf("lock connections by nftables table %s (CONFIG_NF_TABLES_INET is needed): %w", l.name, err), l.nft.CloseLasting())
	}
	return l, nil
}

// addSet adds a set of connections, and the rule that drops what belongs to one of them.
func (l *Lock) addSet(t *nftables.Table, c *nftables.Chain, dir int, v6 bool) error {
	addr, family, size, at := nftables.TypeIPAddr, byte(unix.NFPROTO_IPV4), uint32(4), uint32(12)
	if v6 {
		addr, family, size, at = nftables.TypeIP6Addr, unix.NFPROTO_IPV6, 16, 8
	}
	typ, err := nftables.ConcatSetType(addr, nftables.TypeInetService, addr, nftables.TypeInetService)
	if err != nil {
		return fmt.Errorf("set of connections: %w", err)
	}
	set := &nftables.Set{Table: t, Name: fmt.Sprintf("%s%d", c.Name, 4+2*btoi(v6)), KeyType: typ, Concatenation: true}
	if err := l.nft.AddSet(set, nil); err != nil {
		return fmt.Errorf("set of connections: %w", err)
	}
	sets := l.sets[v6]
	sets[dir] = set
	l.sets[v6] = sets
	// A concatenation stands in 32-bit registers, which begin with number 8: source, its port, destination, its port.
	const first = 8
	words := size / 4
	l.nft.AddRule(&nftables.Rule{Table: t, Chain: c, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: first, Base: expr.PayloadBaseNetworkHeader, Offset: at, Len: size},
		&expr.Payload{DestRegister: first + words, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 2},
		&expr.Payload{DestRegister: first + words + 1, Base: expr.PayloadBaseNetworkHeader, Offset: at + size, Len: size},
		&expr.Payload{DestRegister: first + 2*words + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: first, SetName: set.Name, SetID: set.ID},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}})
	return nil
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func lockTable(name string) *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: name}
}

// Name is the name of the table.
func (l *Lock) Name() string { return l.name }

// Add locks more connections. They are locked when it returns.
func (l *Lock) Add(pairs []Pair) error {
	const chunk = 200 // elements in one message, which has 64 KiB at the most
	for len(pairs) > 0 {
		n := min(chunk, len(pairs))
		elements := map[*nftables.Set][]nftables.SetElement{}
		for _, p := range pairs[:n] {
			local, remote := p.Local.Addr().Unmap(), p.Remote.Addr().Unmap()
			sets := l.sets[local.Is6()]
			in, out := lockKey(remote, p.Remote.Port(), local, p.Local.Port()), lockKey(local, p.Local.Port(), remote, p.Remote.Port())
			elements[sets[0]] = append(elements[sets[0]], nftables.SetElement{Key: in})
			elements[sets[1]] = append(elements[sets[1]], nftables.SetElement{Key: out})
		}
		for set, list := range elements {
			if err := l.nft.SetAddElements(set, list); err != nil {
				return fmt.Errorf("lock connections: %w", err)
			}
		}
		if err := l.nft.Flush(); err != nil {
			return fmt.Errorf("lock %d connections by nftables table %s: %w", n, l.name, err)
		}
		pairs = pairs[n:]
	}
	return nil
}

// lockKey is the concatenation of two ends as a set holds it: each part fills 32-bit words.
func lockKey(src netip.Addr, sport uint16, dst netip.Addr, dport uint16) []byte {
	b := append([]byte{}, src.AsSlice()...)
	b = append(binary.BigEndian.AppendUint16(b, sport), 0, 0)
	b = append(b, dst.AsSlice()...)
	return append(binary.BigEndian.AppendUint16(b, dport), 0, 0)
}

// Close gives back what this program holds of the lock, which stays.
func (l *Lock) Close() error { return l.nft.CloseLasting() }

// Unlock removes a lock by its name, in the network namespace of the calling thread; see In. If there is none, nothing happens.
func Unlock(name string) error {
	if len(name) > 64 || !strings.HasPrefix(name, LockPrefix) {
		return fmt.Errorf("%.80q is not the name of a lock of connections", name)
	}
	nft, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open a netlink socket to nftables: %w", err)
	}
	nft.DelTable(lockTable(name))
	if err := nft.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unlock connections (nftables table %s): %w", name, err)
	}
	return nil
}
