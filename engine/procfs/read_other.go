//go:build !linux

package procfs

import "os"

// reading is a file that is read once, from its beginning to its end.
type reading struct {
	*os.File
	path string
}

func (p FS) read(elem ...any) (*reading, error) {
	f, err := p.Open(elem...)
	return &reading{f, p.Path(elem...)}, err
}

func (r *reading) close() { _ = r.Close() } // opened for reading: nothing is lost
