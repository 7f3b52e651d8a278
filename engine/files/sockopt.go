//go:build linux

package files

import (
	"fmt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/sk-opts"

	"migrate/engine/sock"
)

// optionsBlob holds the options of a socket that CRIU's record has no room for.
func optionsBlob(id uint32) string { return fmt.Sprintf("sockopt-%d", id) }

// checkOptions tells which option of a socket is not carried.
func checkOptions(d *description) []problem {
	_, err := sock.Options(d.fd)
	if err == nil {
		_, err = sock.SaveMore(d.fd)
	}
	if err != nil {
		return []problem{{reason: err.Error()}}
	}
	return nil
}

// sockOptions reads all options of a socket, and adds those to the checkpoint that its record has no room for.
func (r *dump) sockOptions(d *description) (*sk_opts.SkOptsEntry, error) {
	opts, err := sock.Options(d.fd)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, ErrNotCarried)
	}
	more, err := sock.SaveMore(d.fd)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, ErrNotCarried)
	}
	r.blob(optionsBlob(d.id), sock.EncodeMore(more))
	return opts, nil
}

// moreOptions are those of the blob; none if there is no blob.
func (r *Restorer) moreOptions(id uint32) (*sock.More, error) {
	b := r.cp.Blobs[optionsBlob(id)]
	if b == nil {
		return nil, nil
	}
	m, err := sock.DecodeMore(b)
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", optionsBlob(id), err)
	}
	return m, nil
}

// earlyOptions gives a fresh socket what bind(2) looks at.
func (r *Restorer) earlyOptions(id uint32, fd int, o *sk_opts.SkOptsEntry) error {
	m, err := r.moreOptions(id)
	if err != nil {
		return err
	}
	return sock.SetEarly(fd, o, m)
}

// lateOptions gives a socket all its options, when its queue has been filled.
func (r *Restorer) lateOptions(id uint32, fd int, o *sk_opts.SkOptsEntry) error {
	m, err := r.moreOptions(id)
	if err != nil {
		return err
	}
	return sock.SetOptions(fd, o, m)
}
