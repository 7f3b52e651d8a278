// Package kernel tells which features of the running kernel there are. Each is probed once, by using it on something
// harmless, and the answer is kept; it is never guessed from a version number, which says nothing about what
// distributions build. A probe takes no locks but its own and leaves nothing behind.
package kernel

import (
	"fmt"
	"sync"
)

// A Feature is something that a kernel may lack.
type Feature struct {
	Name  string // what it is, such as "write tracking by userfaultfd"
	Since string // the first version that has it
	Need  string // what is not possible without it

	probe func() error
	once  sync.Once
	err   error
}

// MissingError says that the kernel lacks a feature, or that this program may not use it.
type MissingError struct {
	Feature *Feature
	Err     error
}

func (e *MissingError) Error() string {
	return fmt.Sprintf("this kernel lacks %s (in Linux since %s), which is needed for %s: %v", e.Feature.Name, e.Feature.Since, e.Feature.Need, e.Err)
}

// Unwrap returns what the probe met.
func (e *MissingError) Unwrap() error { return e.Err }

// Probe returns nil when the kernel has the feature, else a *MissingError.
func (f *Feature) Probe() error {
	f.once.Do(func() {
		if err := f.probe(); err != nil {
			f.err = &MissingError{f, err}
		}
	})
	return f.err
}

// Have tells whether the kernel has the feature.
func (f *Feature) Have() bool { return f.Probe() == nil }

func (f *Feature) String() string { return f.Name }
