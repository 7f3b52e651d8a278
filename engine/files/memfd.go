//go:build linux

package files

import (
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"golang.org/x/sys/unix"
)

// A memfd is an object like a deleted file, so that descriptors and mappings of it stay one.
var kindMemfd = &Kind{
	Name: "memfd", Type: fdinfo.FdTypes_REG, Carried: true,
	Note: "with its content, name, seals, owner and mode, and with the mappings of it",
	match: func(d *description) bool {
		return d.format() == unix.S_IFREG && strings.HasPrefix(d.path(), "/memfd:") && d.isNameless()
	},
	check: checkPath, dump: dumpPath,
}

// Secret memory is an object, too.
var kindSecret = &Kind{
	Name: "secret memory", Type: fdinfo.FdTypes_REG, Carried: true,
	Note: "of memfd_secret(2), with its content and the mappings of it, while the process that maps it has a descriptor of it",
	match: func(d *description) bool {
		return d.format() == unix.S_IFREG && strings.HasPrefix(d.path(), "/secretmem") && d.isNameless()
	},
	check: checkPath, dump: dumpPath,
}
