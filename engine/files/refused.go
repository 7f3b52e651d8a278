//go:build linux

package files

import (
	"strings"

	"golang.org/x/sys/unix"
)

// The kinds that are not carried, with the reason that an Obstacle gives.
var (
	kindIOUring     = anonKind("io_uring", "it is an io_uring, whose requests in flight cannot be seen", "[io_uring]", "many programs have a setting to do without")
	kindPerf        = anonKind("perf event", "it counts or samples on this host (perf_event_open)", "[perf_event]", "")
	kindUserfaultfd = anonKind("userfaultfd", "it handles page faults (userfaultfd)", "[userfaultfd]", "")
	kindBPF         = &Kind{Name: "bpf", Note: "it is a BPF object of this kernel", match: func(d *description) bool {
		return d.anonymous() && (strings.HasPrefix(d.path(), "anon_inode:bpf") || strings.HasPrefix(d.path(), "anon_inode:[bpf"))
	}}
	kindOtherAnon = &Kind{Name: "kernel object", Note: "it is a kernel object of a kind that is not carried", match: func(d *description) bool { return d.anonymous() }}

	kindOtherSocket = &Kind{Name: "socket", Note: "it is a socket of a protocol that is not carried", match: func(d *description) bool { return d.format() == unix.S_IFSOCK }}
	kindUnknown     = &Kind{Name: "unknown", Note: "it is of a kind that is not known", match: func(*description) bool { return true }}
)

func anonKind(name, note, inode, remedy string) *Kind {
	return &Kind{Name: name, Note: note, Remedy: remedy, match: func(d *description) bool { return d.anon(inode) }}
}
