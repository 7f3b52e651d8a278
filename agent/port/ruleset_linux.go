package port

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/google/nftables"
	mdnetlink "github.com/mdlayher/netlink"
)

// ruleset is the connection to nftables of a network namespace, which all gates of a host share. The library's connection is
// not made for that: what one goroutine queues leaves with the Flush of another, and of two that wait at once each may get the
// other's answers, and then waits for ever. So one has it at a time.
type ruleset struct {
	ns *os.File

	mu     sync.Mutex
	conn   *nftables.Conn // nil: none is open
	socket *mdnetlink.Conn
}

// rulesTime bounds the kernel's answer to one question or transaction; it takes milliseconds.
const rulesTime = 10 * time.Second

// use gives f the connection. What f queues, it also flushes. After an error the connection is given up: answers may still come on it.
func (r *ruleset) use(f func(c *nftables.Conn) error) (err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn == nil {
		r.conn, err = nftables.New(nftables.AsLasting(), nftables.WithNetNSFd(int(r.ns.Fd())),
			nftables.WithSockOptions(func(c *mdnetlink.Conn) error { r.socket = c; return nil }))
		if err != nil {
			r.conn = nil
			return fmt.Errorf("nftables: %w", err)
		}
	}
	if err := r.socket.SetDeadline(time.Now().Add(rulesTime)); err != nil {
		return errors.Join(fmt.Errorf("nftables: %w", err), r.drop())
	}
	if err := f(r.conn); err != nil {
		return errors.Join(err, r.drop())
	}
	return nil
}

// drop closes the connection. The lock must be held.
func (r *ruleset) drop() error {
	if r.conn == nil {
		return nil
	}
	err := r.conn.CloseLasting()
	r.conn, r.socket = nil, nil
	return err
}

func (r *ruleset) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.drop()
}
