package agent

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"migrate/agent/move"
	"migrate/agent/port"
	"migrate/engine"
	"migrate/engine/procfs"
)

// A bare process lives in the host's own network. Its connections can move if their addresses can: if each is an address
// that the host can do without. This file finds out, and makes such addresses move.

// tcpSocket is a TCP socket of a process.
type tcpSocket struct {
	pid, fd       int
	local, remote netip.AddrPort
	listens       bool
}

func (s tcpSocket) String() string {
	if s.listens {
		return "listener on " + s.local.String()
	}
	return "connection " + s.local.String() + "-" + s.remote.String()
}

// tcpSockets lists those of a tree.
func tcpSockets(tree []*engine.Process) ([]tcpSocket, error) {
	var out []tcpSocket
	tables := map[uint64]tcpSocket{}
	for i, p := range tree {
		if i == 0 { // they share a network namespace
			for _, name := range []string{"tcp", "tcp6"} {
				text, err := procfs.Host.Bytes(p.PID, "net", name)
				if errors.Is(err, os.ErrNotExist) {
					continue // no IPv6
				}
				if err != nil {
					return nil, err
				}
				if err := parseTCP(text, tables); err != nil {
					return nil, fmt.Errorf("/proc/%d/net/%s: %w", p.PID, name, err)
				}
			}
		}
		fds, err := procfs.Host.FDs(p.PID)
		if errors.Is(err, procfs.ErrGone) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, fd := range fds {
			link, err := procfs.Host.Link(p.PID, "fd", fd)
			if err != nil {
				continue // closed meanwhile
			}
			inode, ok := strings.CutPrefix(link, "socket:[")
			if !ok {
				continue
			}
			n, err := strconv.ParseUint(strings.TrimSuffix(inode, "]"), 10, 64)
			if err != nil {
				return nil, fmt.Errorf("pid %d, fd %d: %q is no socket's name", p.PID, fd, link)
			}
			if s, ok := tables[n]; ok {
				s.pid, s.fd = p.PID, fd
				out = append(out, s)
			}
		}
	}
	return out, nil
}

// parseTCP reads a table of proc_pid_net(5) into a map by inode.
func parseTCP(text []byte, into map[uint64]tcpSocket) error {
	lines := bufio.NewScanner(bytes.NewReader(text))
	for first := true; lines.Scan(); first = false {
		f := strings.Fields(lines.Text())
		if first || len(f) < 10 {
			continue
		}
		local, err1 := parseEndpoint(f[1])
		remote, err2 := parseEndpoint(f[2])
		inode, err3 := strconv.ParseUint(f[9], 10, 64)
		if err := errors.Join(err1, err2, err3); err != nil {
			return err
		}
		if inode != 0 {
			into[inode] = tcpSocket{local: local, remote: remote, listens: f[3] == "0A"} // TCP_LISTEN
		}
	}
	return lines.Err()
}

// parseEndpoint reads "0100007F:1F90": the address in words of 32 bits of the host's order, then the port.
func parseEndpoint(s string) (netip.AddrPort, error) {
	addr, portText, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(addr)
	if err != nil || len(b) != 4 && len(b) != 16 {
		return netip.AddrPort{}, fmt.Errorf("%q is no endpoint", s)
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	p, err := strconv.ParseUint(portText, 16, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q is no endpoint: %w", s, err)
	}
	a, _ := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a.Unmap(), uint16(p)), nil
}

// floatingOf lists the addresses that have to move with a bare tree, and what stands against that.
func (h *host) floatingOf(ctx context.Context, tree []*engine.Process) (addrs []netip.Prefix, obstacles []engine.Obstacle, err error) {
	sockets, err := tcpSockets(tree)
	if err != nil {
		return nil, nil, err
	}
	inside := map[netip.AddrPort]bool{}
	for _, s := range sockets {
		inside[s.local] = true
	}
	for _, s := range sockets {
		a := s.local.Addr()
		if a.IsUnspecified() || a.IsLoopback() && (s.listens || inside[s.remote]) {
			continue // it is as good there; both ends of the connection move
		}
		reason := ""
		switch {
		case a.IsLoopback():
			reason = "the other end of the " + s.String() + " stays on this host"
		case slices.ContainsFunc(addrs, func(p netip.Prefix) bool { return p.Addr() == a }):
			continue
		case h.ports == nil:
			reason = "the address of the " + s.String() + " cannot be moved: this host's network cannot be changed"
		default:
			_, prefix, err := h.ports.FindFloating(ctx, a, h.own)
			if err == nil {
				addrs = append(addrs, prefix)
				continue
			}
			reason = fmt.Sprintf("%v: %v", s, err)
		}
		obstacles = append(obstacles, engine.Obstacle{PID: s.pid, Kind: "address", Where: "fd " + strconv.Itoa(s.fd), Reason: reason,
			Remedy: "let it listen on a floating address, or start it with `migrate run --addr`"})
	}
	return addrs, obstacles, nil
}

// deviceFor is the device of this host that is in the network of an address.
func deviceFor(p netip.Prefix) (string, error) {
	devices, err := net.Interfaces()
	if err != nil {
		return "", fmt.Errorf("devices of this host: %w", err)
	}
	for _, d := range devices {
		list, err := d.Addrs()
		if err != nil {
			return "", fmt.Errorf("addresses of %s: %w", d.Name, err)
		}
		for _, a := range list {
			own, err := netip.ParsePrefix(a.String())
			if err == nil && own.Masked() == p.Masked() {
				return d.Name, nil
			}
		}
	}
	return "", fmt.Errorf("no device of this host is in the network %v of the address that comes along", p.Masked())
}

// floatingPort puts a gate before the addresses of a bare tree. arrives: the addresses come to this host, shut.
func (h *host) floatingPort(ctx context.Context, name string, addrs []netip.Prefix, arrives bool) (_ move.Port, err error) {
	if len(addrs) == 0 {
		return nil, nil
	}
	if h.ports == nil {
		return nil, errors.New("the addresses of a bare process cannot come here: this host's network cannot be changed")
	}
	device, err := deviceFor(addrs[0])
	if err != nil {
		return nil, err
	}
	f, err := h.ports.OpenFloating(ctx, port.FloatingSpec{Name: name, Device: device, Addrs: addrs, Shut: arrives})
	if err != nil {
		return nil, err
	}
	if arrives {
		if err := f.AddAddrs(ctx); err != nil {
			return nil, errors.Join(err, f.RemoveAddrs(ctx), f.End(ctx))
		}
	}
	g := &gate{Gate: f.Gate, end: func(ctx context.Context, gone bool) error {
		if gone {
			return errors.Join(f.RemoveAddrs(ctx), f.End(ctx))
		}
		return f.End(ctx)
	}}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.open[name] = g
	return g, nil
}

// parsePrefixes reads a list of CIDRs.
func parsePrefixes(list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range list {
		if s == "" {
			continue
		}
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("address %q: %w", s, err)
		}
		out = append(out, p)
	}
	return out, nil
}

func prefixStrings(list []netip.Prefix) []string {
	out := make([]string, 0, len(list))
	for _, p := range list {
		out = append(out, p.String())
	}
	return out
}
