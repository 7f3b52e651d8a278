package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"migrate/e2e/lab/pid1"
	"migrate/engine/thread"
)

// Host is a virtual host, or the clients' namespace. Its methods fail with ErrDown while it is not up.
type Host struct {
	lab    *Lab
	number int // 0 for the client
	name   string
}

// Name is host1, host2, ..., or client.
func (h *Host) Name() string { return h.name }

func (h *Host) isClient() bool { return h.number == 0 }

// Addr is the host's IPv4 address on the switch.
func (h *Host) Addr() netip.Addr { v4, _ := addresses(h.number); return v4 }

// Addr6 is the host's IPv6 address on the switch.
func (h *Host) Addr6() netip.Addr { _, v6 := addresses(h.number); return v6 }

func (h *Host) cgroup() cgroup { return h.lab.cgroup.below(h.name) }

// PID returns the id of the host's pid 1 as this process sees it.
func (h *Host) PID(ctx context.Context) (int, error) {
	p, err := pid1.Find(ctx, h.lab.socket(h.name), "")
	if err != nil {
		return 0, fmt.Errorf("%s: %w", h.name, err)
	}
	defer p.Close()
	pid, err := pidOf(p.Pidfd)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", h.name, err)
	}
	return pid, nil
}

// Root opens the host's file system. Names in it are resolved as far as no absolute symbolic link is met on the way.
func (h *Host) Root(ctx context.Context) (*os.Root, error) {
	pid, err := h.PID(ctx)
	if err != nil {
		return nil, err
	}
	r, err := os.OpenRoot(fmt.Sprintf("/proc/%d/root", pid))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", h.name, err)
	}
	return r, nil
}

// WriteFile writes a file in the host, and the directories that it needs.
func (h *Host) WriteFile(ctx context.Context, path string, data []byte, mode os.FileMode) error {
	root, err := h.Root(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	path = strings.TrimPrefix(path, "/")
	if err := root.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("%s: %w", h.name, err)
	}
	if err := root.WriteFile(path, data, mode); err != nil {
		return fmt.Errorf("%s: %w", h.name, err)
	}
	return nil
}

// ReadFile reads a file in the host.
func (h *Host) ReadFile(ctx context.Context, path string) ([]byte, error) {
	root, err := h.Root(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }()
	data, err := root.ReadFile(strings.TrimPrefix(path, "/"))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", h.name, err)
	}
	return data, nil
}

// Dial connects from the host to an address ("host2:80", "10.77.0.50:6379", "[fd77::50]:6379"), or to a unix socket in
// the host's file system. The connection belongs to this process.
func (h *Host) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	var d net.Dialer
	if network == "unix" {
		pid, err := h.PID(ctx)
		if err != nil {
			return nil, err
		}
		return d.DialContext(ctx, network, fmt.Sprintf("/proc/%d/root%s", pid, address))
	}
	address, err := h.lab.resolve(network, address)
	if err != nil {
		return nil, err
	}
	var c net.Conn
	err = h.inNetns(ctx, func() (err error) {
		c, err = d.DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// Listen listens in the host, also on a unix socket in the host's file system. The listener belongs to this process.
func (h *Host) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	if network == "unix" {
		pid, err := h.PID(ctx)
		if err != nil {
			return nil, err
		}
		var lc net.ListenConfig
		return lc.Listen(ctx, network, fmt.Sprintf("/proc/%d/root%s", pid, address))
	}
	address, err := h.lab.resolve(network, address)
	if err != nil {
		return nil, err
	}
	var l net.Listener
	err = h.inNetns(ctx, func() (err error) {
		var lc net.ListenConfig
		l, err = lc.Listen(ctx, network, address)
		return err
	})
	return l, err
}

// resolve replaces a host's name by its address, so that nothing is asked of the machine's resolver.
func (l *Lab) resolve(network, address string) (string, error) {
	name, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", fmt.Errorf("lab: %w", err)
	}
	if h := l.Host(name); h != nil {
		name = h.Addr().String()
		if strings.HasSuffix(network, "6") {
			name = h.Addr6().String()
		}
	} else if _, err := netip.ParseAddr(name); name != "" && err != nil {
		return "", fmt.Errorf("lab: %q is neither a host of the lab nor an address", name)
	}
	return net.JoinHostPort(name, port), nil
}

// inNetns calls f on a thread that is in the host's network namespace. A socket made by f stays there.
func (h *Host) inNetns(ctx context.Context, f func() error) error {
	pid, err := h.PID(ctx)
	if err != nil {
		return err
	}
	ns, err := netnsOf(pid)
	if err != nil {
		return fmt.Errorf("%s: %w", h.name, err)
	}
	defer func() { _ = ns.Close() }()
	return thread.ThrowAway(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("%s: setns: %w", h.name, err)
		}
		return f()
	})
}

// Reboot ends everything that runs in the host, as a loss of power does, and starts it anew: with its disk, a new boot id, clocks
// that start from zero, an empty /run and /tmp, and its agent. It also starts a host that has ended by itself.
func (h *Host) Reboot(ctx context.Context) error {
	return h.change(ctx, func(st *state) error {
		if err := h.powerOff(ctx); err != nil {
			return err
		}
		st.Boots[h.number]++
		if err := writeState(h.lab.dir, st); err != nil {
			return err
		}
		if err := h.boot(ctx, st); err != nil {
			return errors.Join(err, h.powerOff(context.WithoutCancel(ctx)))
		}
		return h.startAgent(ctx, st)
	})
}

// Kill ends the host for good, as a loss of power does. Its disk is removed with the lab.
func (h *Host) Kill(ctx context.Context) error {
	return h.change(ctx, func(st *state) error {
		st.Killed = append(st.Killed, h.name)
		if err := writeState(h.lab.dir, st); err != nil {
			return err
		}
		if err := h.powerOff(ctx); err != nil {
			return err
		}
		_ = os.Remove(h.lab.socket(h.name)) // of use to nobody; Down removes it too
		return nil
	})
}

// change calls f under the lab's lock, if the host is one that can be changed.
func (h *Host) change(ctx context.Context, f func(*state) error) error {
	if h.isClient() {
		return fmt.Errorf("lab: %s is the machine's own side of the switch, not a host", h.name)
	}
	return h.lab.update(ctx, func(st *state) error {
		if st.killed(h.name) {
			return fmt.Errorf("lab: %s was killed for good; start a new lab with migrate lab up", h.name)
		}
		return f(st)
	})
}

// powerOff first takes the host off the switch, so that nobody hears from its kernel that its connections end.
func (h *Host) powerOff(ctx context.Context) error {
	if err := h.unplug(ctx); err != nil {
		return err
	}
	return h.cgroup().end(ctx)
}
