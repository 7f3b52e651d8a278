//go:build linux

package files

import (
	"context"
	"errors"
	"fmt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
)

// A Kind is one kind of descriptor. docs/coverage.md and `migrate check` are made from the table of them.
type Kind struct {
	Name string         // as in an Obstacle and in docs/coverage.md
	Type fdinfo.FdTypes // of its records; UND for a kind that is not carried
	// Carried tells whether any descriptor of the kind can be carried; Note says which not, or why not.
	Carried bool
	Note    string
	Remedy  string // for a kind that is not carried: what the operator can do

	// match tells whether a description is of the kind. The first row that matches counts.
	match func(*description) bool
	// check lists what of a description of this kind is not carried; it changes nothing. May be nil.
	check func(context.Context, *Dumper, *description) []problem
	// dump reads a description; the owners are stopped.
	dump func(context.Context, *dump, *description) (*fdinfo.FileEntry, error)
	// parallel: descriptions of the kind may be dumped and connected at the same time.
	parallel bool
	// open makes the description of a record that mine accepts; connect runs when all are made, settle when all are
	// connected; inside adds what must run in a process. Each may be nil; a row without open leaves its records to another row.
	mine    func(*fdinfo.FileEntry) bool
	open    func(context.Context, *Restorer, *fdinfo.FileEntry) error
	connect func(context.Context, *Restorer, *fdinfo.FileEntry) error
	settle  func(*Restorer, *fdinfo.FileEntry) error
	inside  func(*inside, *fdinfo.FileEntry) error
	// late runs when every process has its descriptors and nothing is opened any more.
	late func(*Restorer, *fdinfo.FileEntry) error
}

// A problem is one reason why a description is not carried.
type problem struct {
	reason, remedy string
	passing        bool // see engine.Obstacle
}

// hint is the remedy, to be appended to an error.
func (p problem) hint() string {
	if p.remedy == "" {
		return ""
	}
	return "; " + p.remedy
}

// Errors of Dump that callers match with errors.Is.
var (
	// ErrNotCarried: something that Check would have named appeared since, or could not be seen before the freeze.
	ErrNotCarried = errors.New("it is not carried")
	// ErrBusy: a state that passes by itself, such as a connection that the program has not accepted yet.
	// The caller lets the tree run and tries again.
	ErrBusy = errors.New("it cannot be carried at this instant")
)

// Kinds is the table, in the order in which the rows are tried.
func Kinds() []*Kind { return kinds }

var kinds []*Kind

// The order matters only where two rows could match: the particular before the general.
func init() {
	kinds = []*Kind{
		kindPath, kindTCP, kindUDP, kindPing, kindRaw, kindUnix, kindNetlink, kindPacket, kindOtherSocket,
		kindNamespace, kindPidfd, kindMemfd, kindSecret, kindProcFile, kindExternal,
		kindPipe, kindFifo, kindDevice, kindTerminal, kindTun, kindOtherDevice, kindBlockDevice,
		kindMqueue, kindDirectory, kindDeleted, kindRegular,
		kindEventfd, kindEpoll, kindTimerfd, kindSignalfd, kindInotify, kindFanotify, kindIOUring, kindBPFMap, kindBPF, kindPerf,
		kindUserfaultfd, kindOtherAnon, kindUnknown,
	}
}

// kindOf finds the row of a description.
func kindOf(d *description) *Kind {
	for _, k := range kinds {
		if k.match(d) {
			return k
		}
	}
	return kindUnknown
}

// kindOfEntry finds the row that restores a record.
func kindOfEntry(e *fdinfo.FileEntry) (*Kind, error) {
	if !complete(e) {
		return nil, fmt.Errorf("files.img: file %d has no record of its type %v", e.GetId(), e.GetType())
	}
	for _, k := range kinds {
		if k.open != nil && k.Type == e.GetType() && (k.mine == nil || k.mine(e)) {
			return k, nil
		}
	}
	return nil, fmt.Errorf("files.img: file %d has type %v, which this program does not restore", e.GetId(), e.GetType())
}

// complete tells whether the record that belongs to the type is there. Fields in it may be missing: they read as zero.
func complete(e *fdinfo.FileEntry) bool {
	switch e.GetType() {
	case fdinfo.FdTypes_REG:
		return e.Reg != nil
	case fdinfo.FdTypes_PIPE:
		return e.Pipe != nil
	case fdinfo.FdTypes_INETSK:
		return e.Isk != nil
	case fdinfo.FdTypes_UNIXSK:
		return e.Usk != nil
	case fdinfo.FdTypes_NETLINKSK:
		return e.Nlsk != nil
	case fdinfo.FdTypes_PACKETSK:
		return e.Psk != nil
	case fdinfo.FdTypes_EVENTFD:
		return e.Efd != nil
	case fdinfo.FdTypes_EVENTPOLL:
		return e.Epfd != nil
	case fdinfo.FdTypes_SIGNALFD:
		return e.Sgfd != nil
	case fdinfo.FdTypes_TIMERFD:
		return e.Tfd != nil
	case fdinfo.FdTypes_FIFO:
		return e.Fifo != nil && e.Reg != nil
	case fdinfo.FdTypes_PIDFD:
		return e.Pidfd != nil
	case fdinfo.FdTypes_TUNF:
		return e.Tunf != nil && e.Reg != nil
	case fdinfo.FdTypes_NS:
		return e.Nsf != nil
	case fdinfo.FdTypes_BPFMAP:
		return e.Bpf != nil
	case fdinfo.FdTypes_INOTIFY:
		return e.Ify != nil
	case fdinfo.FdTypes_FANOTIFY:
		return e.Ffy != nil
	case fdinfo.FdTypes_TTY:
		return e.Tty != nil && e.Reg != nil
	}
	return true
}
