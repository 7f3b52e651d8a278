//go:build linux

package task

import "migrate/engine/remote"

// ldt: there is none on this processor.
func (d *dumper) ldt() *remote.Result { return nil }
