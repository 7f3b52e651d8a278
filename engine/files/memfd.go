//go:build linux

package files

import (
	"strings"

	"golang.org/x/sys/unix"
)

// A memfd's pages may be mapped too, and then descriptor and mapping must stay one object: package mem would have to make it.
var kindMemfd = &Kind{Name: "memfd", Note: "it is memory behind a descriptor (memfd_create)", match: func(d *description) bool {
	return d.format() == unix.S_IFREG && strings.HasPrefix(d.path(), "/memfd:")
}}
