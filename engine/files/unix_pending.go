//go:build linux

package files

import (
	"context"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"migrate/engine/remote"
	"migrate/engine/sock"
)

// accepting tells whether a connecting socket waits at a listener of the tree.
func (r *dump) accepting(ino uint32) bool {
	if r.waiting == nil {
		r.waiting = map[uint32]bool{}
		for _, d := range r.snap.list {
			if s := d.socket(); s == nil || s.domain != unix.AF_UNIX {
				continue
			}
			if u, err := r.diag.Unix(uint32(d.stat.Ino)); err == nil && uint32(u.State) == unixListening {
				for _, w := range u.Waiting {
					r.waiting[w] = true
				}
			}
		}
	}
	return ino != 0 && r.waiting[ino]
}

// unixPending records the connections that wait at a listener. What their clients have sent is in the kernel's hands alone.
func (r *dump) unixPending(d *description, u *sock.UnixInfo, s *sock.UnixState) error {
	unread := false
	for _, ino := range u.Waiting {
		client := r.snap.bySocket(ino)
		if ino != 0 && client == nil {
			return fmt.Errorf("a connection from outside of the tree waits to be accepted: %w", ErrBusy)
		}
		p := sock.Pending{}
		if client == nil {
			unread = true // nobody tells whether it has sent anything
		} else {
			p.Client = client.id
			c, err := r.diag.Unix(ino)
			if err != nil {
				return err
			}
			unread = unread || c.Backlog > 0
		}
		s.Pending = append(s.Pending, p)
	}
	if !unread {
		return nil
	}
	return r.unreadPending(d, s)
}

// askPeerPID asks a process for SO_PEERCRED of its descriptor.
func askPeerPID(h holder) (uint32, error) {
	var b remote.Batch
	cred, size := b.Buffer(12), b.Bytes(binary.LittleEndian.AppendUint32(nil, 12))
	b.Call(unix.SYS_GETSOCKOPT, h.fd, unix.SOL_SOCKET, unix.SO_PEERCRED, cred, size)
	if err := h.proc.Caller.Run(context.Background(), &b); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(cred.Bytes()), nil
}
