package mem

import (
	"fmt"

	"migrate/engine"
)

// A Refusal is a kind of memory that is not carried.
type Refusal struct{ Kind, About string }

// The kinds of memory that are not carried. Kind is what a plan prints.
var (
	refuseDevice   = &Refusal{"device-mapping", "memory of a device or its driver"}
	refuseDeleted  = &Refusal{"deleted-file", "a mapping of a deleted file that is no regular one, or is on hugetlbfs"}
	refuseSecret   = &Refusal{"secret-memory", "secret memory (memfd_secret) of which the process has no descriptor any more: nobody else can read it"}
	refuseReplaced = &Refusal{"replaced-file", "a shared mapping of a file that another one hides, mounted over it"}
	refuseUffd     = &Refusal{"userfaultfd", "memory whose faults the program handles by a userfaultfd of its own"}
	refuseIOUring  = &Refusal{"io_uring", "a ring of io_uring"}
	refuseShadow   = &Refusal{"shadow-stack", "a shadow stack"}
	refuseTags     = &Refusal{"memory-tagging", "memory with tags (MTE)"}
	refuseUprobes  = &Refusal{"uprobes", "a probe that a tracer has set"}
	refuseSpecial  = &Refusal{"special-mapping", "a mapping of a kind that is not known"}
	refusePinned   = &Refusal{"pinned-memory", "memory that is pinned for a device or io_uring, which writes to it unseen"}
	refuseOutside  = &Refusal{"shared-memory", "shared memory that a process outside of the tree has mapped"}
	refuseShmFile  = &Refusal{"shared-memory-file", "in the /dev/shm of a workload: FIFOs, devices, socket files without a socket, extended attributes, or more than 1 GiB or 16,384 files together"}
)

// Refusals lists all that is refused.
func Refusals() []Refusal {
	var out []Refusal
	for _, r := range []*Refusal{refuseDevice, refuseDeleted, refuseSecret, refuseReplaced, refuseUffd, refuseIOUring,
		refuseShadow, refuseTags, refuseUprobes, refuseSpecial, refusePinned, refuseOutside, refuseShmFile} {
		out = append(out, *r)
	}
	return out
}

// obstacles collects what a process has of each Refusal: one Obstacle for a kind, which names the first place.
type obstacles struct {
	pid   int
	order []*Refusal
	first map[*Refusal]string
	count map[*Refusal]int
}

func newObstacles(pid int) *obstacles {
	return &obstacles{pid: pid, first: map[*Refusal]string{}, count: map[*Refusal]int{}}
}

func (o *obstacles) add(r *Refusal, where string) {
	if o.count[r]++; o.count[r] == 1 {
		o.order = append(o.order, r)
		o.first[r] = where
	}
}

func (o *obstacles) list() []engine.Obstacle {
	var out []engine.Obstacle
	for _, r := range o.order {
		where := o.first[r]
		if n := o.count[r] - 1; n > 0 {
			where = fmt.Sprintf("%s and %d more", where, n)
		}
		out = append(out, engine.Obstacle{PID: o.pid, Kind: r.Kind, Where: where, Reason: r.About})
	}
	return out
}
