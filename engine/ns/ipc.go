//go:build linux

package ns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	ipc_var "github.com/checkpoint-restore/go-criu/v8/crit/images/ipc-var"
	"golang.org/x/sys/unix"
)

// ipcSysctl is a setting of an IPC namespace below /proc/sys (sysctl/kernel.rst, ipc_namespaces(7)).
type ipcSysctl struct {
	name string
	get  func(e *ipc_var.IpcVarEntry) []uint64
	set  func(e *ipc_var.IpcVarEntry, v []uint64)
	many int  // numbers in it
	any  bool // a kernel may be without
}

func number[T uint32 | uint64](name string, field func(e *ipc_var.IpcVarEntry) **T, optional bool) ipcSysctl {
	return ipcSysctl{name: name, many: 1, any: optional,
		get: func(e *ipc_var.IpcVarEntry) []uint64 {
			if p := *field(e); p != nil {
				return []uint64{uint64(*p)}
			}
			return nil
		},
		set: func(e *ipc_var.IpcVarEntry, v []uint64) { n := T(v[0]); *field(e) = &n },
	}
}

// ipcSysctls in the order in which they are set: limits before what they limit.
var ipcSysctls = []ipcSysctl{
	{name: "kernel/sem", many: 4,
		get: func(e *ipc_var.IpcVarEntry) (v []uint64) {
			for _, n := range e.GetSemCtls() {
				v = append(v, uint64(n))
			}
			return v
		},
		set: func(e *ipc_var.IpcVarEntry, v []uint64) {
			for _, n := range v {
				e.SemCtls = append(e.SemCtls, uint32(n))
			}
		}},
	number("kernel/msgmax", func(e *ipc_var.IpcVarEntry) **uint32 { return &e.MsgCtlmax }, false),
	number("kernel/msgmnb", func(e *ipc_var.IpcVarEntry) **uint32 { return &e.MsgCtlmnb }, false),
	number("kernel/msgmni", func(e *ipc_var.IpcVarEntry) **uint32 { return &e.MsgCtlmni }, false),
	number("kernel/auto_msgmni", func(e *ipc_var.IpcVarEntry) **uint32 { return &e.AutoMsgmni }, true),
	number("kernel/shmmax", func(e *ipc_var.IpcVarEntry) **uint64 { return &e.ShmCtlmax }, false),
	number("kernel/shmall", func(e *ipc_var.IpcVarEntry) **uint64 { return &e.ShmCtlall }, false),
	number("kernel/shmmni", func(e *ipc_var.IpcVarEntry) **uint32 { return &e.ShmCtlmni }, false),
	number(rmidForced, func(e *ipc_var.IpcVarEntry) **uint32 { return &e.ShmRmidForced }, false),
	number("fs/mqueue/queues_max", func(e *ipc_var.IpcVarEntry) **uint32 { return &e.MqQueuesMax }, true),
	number("fs/mqueue/msg_max", func(e *ipc_var.IpcVarEntry) **uint32 { return &e.MqMsgMax }, true),
	number("fs/mqueue/msgsize_max", func(e *ipc_var.IpcVarEntry) **uint32 { return &e.MqMsgsizeMax }, true),
	number("fs/mqueue/msg_default", func(e *ipc_var.IpcVarEntry) **uint32 { return &e.MqMsgDefault }, true),
	number("fs/mqueue/msgsize_default", func(e *ipc_var.IpcVarEntry) **uint32 { return &e.MqMsgsizeDefault }, true),
}

const (
	sysctlDir  = "/proc/sys/"
	rmidForced = "kernel/shm_rmid_forced"
)

func dumpIPC(d *dumper) error {
	return Inside(d.root.PID, unix.CLONE_NEWIPC, func() error {
		var err error
		if d.out.IPC, err = readIPCSysctls(); err != nil {
			return err
		}
		if err := d.posixQueues(); err != nil {
			return err
		}
		if d.nested {
			if err := d.noSegments(); err != nil {
				return err
			}
		}
		return d.ipcObjects()
	})
}

// readIPCSysctls reads the settings of the IPC namespace in which the thread is.
func readIPCSysctls() (*ipc_var.IpcVarEntry, error) {
	e := &ipc_var.IpcVarEntry{}
	for _, s := range ipcSysctls {
		text, err := readWhole(sysctlDir + s.name)
		if s.any && errors.Is(err, fs.ErrNotExist) {
			s.set(e, []uint64{0})
			continue
		}
		if err != nil {
			return nil, err
		}
		v, err := numbers(string(text))
		if err != nil || len(v) != s.many {
			return nil, fmt.Errorf("%s%s holds %q: %w", sysctlDir, s.name, text, err)
		}
		s.set(e, v)
	}
	return e, nil
}

// readWhole reads a file of /proc. It is made for the freeze: os.ReadFile makes twice as many system calls.
func readWhole(path string) (_ []byte, err error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	out := make([]byte, 0, 4096)
	for {
		n, err := unix.Read(fd, out[len(out):cap(out)])
		if err != nil {
			return nil, &fs.PathError{Op: "read", Path: path, Err: err}
		}
		if n == 0 {
			return out, nil
		}
		if out = out[:len(out)+n]; len(out) == cap(out) {
			out = slices.Grow(out, len(out))
		}
	}
}

// noSegments refuses System V shared memory of a namespace that is not the root's: in the kernel two segments with one id, of two
// namespaces, cannot be told apart by what maps them.
func (d *dumper) noSegments() error {
	list, err := listIPC("shm")
	for _, row := range list {
		d.refuse(fmt.Sprintf("System V shared memory segment %d", row["shmid"]), "it is in an IPC namespace that the root of the tree is not in", "")
	}
	return err
}

// posixQueues refuses POSIX message queues (mq_overview(7)): reading their messages takes them out.
func (d *dumper) posixQueues() (err error) {
	f, err := openPosixQueues()
	if err != nil || f == nil {
		return err
	}
	names, err := f.Readdirnames(-1)
	d.refuseQueues(names)
	return errors.Join(err, f.Close())
}

func (d *dumper) refuseQueues(names []string) {
	for _, name := range names {
		d.refuse("POSIX message queue /"+name, "its messages cannot be read without being taken out", "let the program remove it (mq_unlink)")
	}
}

// openPosixQueues opens a directory of the POSIX message queues of the namespace that the calling thread is in, in a mount of its
// own; nil if the kernel has none.
func openPosixQueues() (_ *os.File, err error) {
	fsys, err := unix.Fsopen("mqueue", unix.FSOPEN_CLOEXEC)
	if errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("POSIX message queues: fsopen: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Close(fsys)) }()
	if err := unix.FsconfigCreate(fsys); err != nil {
		return nil, fmt.Errorf("POSIX message queues: fsconfig: %w", err)
	}
	mount, err := unix.Fsmount(fsys, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("POSIX message queues: fsmount: %w", err)
	}
	dir, err := unix.Openat(mount, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err := errors.Join(err, unix.Close(mount)); err != nil {
		return nil, fmt.Errorf("POSIX message queues: %w", err)
	}
	return os.NewFile(uintptr(dir), "POSIX message queues"), nil
}

func restoreIPC(r *restorer) error {
	if r.in.IPC == nil {
		return nil
	}
	return r.inside(unix.CLONE_NEWIPC, func() error {
		if err := r.asOwner(); err != nil { // who alone may write its settings
			return err
		}
		for _, s := range ipcSysctls {
			if err := s.restore(r.in.IPC); err != nil {
				return err
			}
		}
		if r.at == nil {
			return nil // that of the root gets its objects when the tree stands still (RestoreIPC)
		}
		return r.restoreIPCObjects()
	})
}

// restore writes the setting if it is not what a new namespace has.
func (s *ipcSysctl) restore(e *ipc_var.IpcVarEntry) error {
	want := make([]string, 0, s.many)
	for _, v := range s.get(e) {
		want = append(want, strconv.FormatUint(v, 10))
	}
	have, err := readWhole(sysctlDir + s.name)
	if s.any && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if strings.Join(strings.Fields(string(have)), " ") == strings.Join(want, " ") {
		return nil
	}
	return writeFile(sysctlDir+s.name, strings.Join(want, " "))
}

// numbers parses numbers that white space parts.
func numbers(text string) ([]uint64, error) {
	var out []uint64
	for _, f := range strings.Fields(text) {
		v, err := strconv.ParseUint(f, 10, 64)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// writeFile writes to a file of the kernel, in one call.
func writeFile(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("writing %q to %s: %w", text, path, err)
	}
	return nil
}
