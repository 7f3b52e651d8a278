//go:build linux

package task

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"migrate/engine/remote"
)

// The session keyring of a thread (keyrings(7)) is not carried: keys have other numbers on another host, and those of logins and
// services are made anew there. So a thread may have one in which nothing is of its own: links to keyrings of users, which
// pam_keyinit(8) makes, and the key by which systemd tells a service of itself. Anything else is refused, by its name.

// maxSessionKeys bounds the keys that are looked at.
const maxSessionKeys = 64

// describedSize is the room for what KEYCTL_DESCRIBE says of one key: "type;uid;gid;perm;description".
const describedSize = 512

// dumpSessionKeyring asks the leader what is in its session keyring. A thread that is not asked must have the leader's.
func (d *dumper) dumpSessionKeyring() error {
	keyring := d.kernel.SessionKeyring
	if keyring == 0 {
		return nil
	}
	if !d.leader {
		if of := d.common.leader; of.kernel == nil || of.kernel.SessionKeyring != keyring {
			return fmt.Errorf("it has a session keyring with keys that is not that of the first thread: %w", ErrNotCarried)
		}
		return nil
	}
	list := d.batch.Buffer(4 * maxSessionKeys)
	size := d.batch.Try(unix.SYS_KEYCTL, unix.KEYCTL_READ, keyring, list, 4*maxSessionKeys)
	d.then(func() error {
		n, err := size.Value()
		if err != nil {
			return fmt.Errorf("it has a session keyring that cannot be read (%w): %w", err, ErrNotCarried)
		}
		if n > 4*maxSessionKeys {
			return fmt.Errorf("its session keyring holds %d keys: %w", n/4, ErrNotCarried)
		}
		return d.describeKeys(list.Bytes()[:n])
	})
	return nil
}

// describeKeys refuses keys, given by their serial numbers, that are not of every session.
func (d *dumper) describeKeys(serials []byte) error {
	type key struct {
		what *remote.Data
		size *remote.Result
	}
	var batch remote.Batch
	var keys []key
	for ; len(serials) >= 4; serials = serials[4:] {
		k := key{what: batch.Buffer(describedSize)}
		k.size = batch.Try(unix.SYS_KEYCTL, unix.KEYCTL_DESCRIBE, binary.LittleEndian.Uint32(serials), k.what, describedSize)
		keys = append(keys, k)
	}
	if err := d.Caller.Run(d.ctx, &batch); err != nil {
		return fmt.Errorf("asking for the keys of its session: %w", err)
	}
	for _, k := range keys {
		switch err := k.size.Err(); {
		case errors.Is(err, unix.EKEYEXPIRED) || errors.Is(err, unix.EKEYREVOKED) || errors.Is(err, unix.ENOKEY):
			continue // nobody can use it
		case err != nil:
			return fmt.Errorf("its session keyring holds a key that cannot be looked at (%w): %w", err, ErrNotCarried)
		}
		what, _, _ := bytes.Cut(k.what.Bytes(), []byte{0})
		if !ofEverySession(string(what)) {
			return fmt.Errorf("its session keyring holds the key %q: %w", what, ErrNotCarried)
		}
	}
	return nil
}

// ofEverySession tells a key that no program needs to have from its old host, by its description.
func ofEverySession(described string) bool {
	f := strings.SplitN(described, ";", 5)
	if len(f) != 5 {
		return false
	}
	return f[0] == "keyring" && strings.HasPrefix(f[4], "_uid") || f[0] == "user" && f[4] == "invocation_id"
}
