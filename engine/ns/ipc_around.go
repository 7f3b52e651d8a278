//go:build linux

package ns

import (
	"errors"
	"fmt"
	"io"
	"os"

	ipc_var "github.com/checkpoint-restore/go-criu/v8/crit/images/ipc-var"
	"golang.org/x/sys/unix"

	"migrate/engine"
	"migrate/engine/images"
	"migrate/engine/images/imagespb"
	"migrate/engine/procfs"
)

// Around is the IPC namespace in the surroundings of a tree: made by an agent for a workload, and not by the tree. The destination
// makes a new one, so what is in it has to come along: settings, semaphores and message queues here, shared memory by package mem.
type Around struct {
	pid    int
	queues *os.File // directory of its POSIX message queues; nil if the kernel has none
}

// OpenAround takes the IPC namespace of a process; nil if it is this program's. It touches nothing.
func OpenAround(pid int) (*Around, error) {
	if same, err := sameIPC(pid); err != nil || same {
		return nil, err
	}
	a := &Around{pid: pid}
	err := Inside(pid, unix.CLONE_NEWIPC, func() (err error) {
		a.queues, err = openPosixQueues()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ipc namespace of pid %d: %w", pid, err)
	}
	return a, nil
}

// sameIPC tells whether a process is in this program's IPC namespace.
func sameIPC(pid int) (bool, error) {
	own, err := procfs.Host.Link("self", "ns", "ipc")
	if err != nil {
		return false, err
	}
	its, err := procfs.Host.Link(pid, "ns", "ipc")
	return its == own, err
}

// Read records the namespace in two messages, with what is in it if content is asked for, else its settings alone. What cannot be
// carried is named in the place of that.
func (a *Around) Read(content bool) (*images.Namespaces, *imagespb.Namespaces, []engine.Obstacle, error) {
	d := &dumper{root: &engine.Process{PID: a.pid}, content: content, kind: "ipc namespace", out: &images.Namespaces{}, header: &imagespb.Namespaces{Around: unix.CLONE_NEWIPC}}
	names, err := a.names()
	if err != nil {
		return nil, nil, nil, fmt.Errorf("ipc namespace of pid %d: POSIX message queues: %w", a.pid, err)
	}
	d.refuseQueues(names)
	err = Inside(a.pid, unix.CLONE_NEWIPC, func() (err error) {
		if d.out.IPC, err = readIPCSysctls(); err != nil {
			return err
		}
		if err := d.orphanedSegments(); err != nil || !content {
			return err
		}
		return d.ipcObjects()
	})
	if err != nil {
		return nil, nil, nil, fmt.Errorf("ipc namespace of pid %d: %w", a.pid, err)
	}
	return d.out, d.header, d.found, nil
}

// names lists the POSIX message queues.
func (a *Around) names() ([]string, error) {
	if a.queues == nil {
		return nil, nil
	}
	if _, err := a.queues.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	return a.queues.Readdirnames(-1)
}

// Close lets go of the namespace.
func (a *Around) Close() error {
	if a == nil || a.queues == nil {
		return nil
	}
	return a.queues.Close()
}

// ForeignIPC names the semaphores and message queues in the IPC namespace of a process, if it is not this program's: it belongs neither
// to this host nor to the tree, such as that of a container of which the tree is a part, and stays behind.
func ForeignIPC(pid int) ([]engine.Obstacle, error) {
	a, err := OpenAround(pid)
	if err != nil || a == nil {
		return nil, err
	}
	in, _, found, err := a.Read(true)
	if err = errors.Join(err, a.Close()); err != nil {
		return nil, err
	}
	d := &dumper{root: &engine.Process{PID: pid}, kind: "ipc namespace", found: found}
	const why, remedy = "it is in an IPC namespace around the tree, which stays behind", "move the first process of that container"
	for _, s := range in.Sems {
		d.refuse(fmt.Sprintf("System V semaphore set %d", s.GetDesc().GetId()), why, remedy)
	}
	for _, q := range in.Queues {
		d.refuse(fmt.Sprintf("System V message queue %d", q.GetDesc().GetId()), why, remedy)
	}
	return d.found, nil
}

// orphanedSegments refuses shared memory that nobody has attached in a namespace where such is removed when its creator ends: at the
// destination its creator is nobody.
func (d *dumper) orphanedSegments() error {
	if d.out.IPC.GetShmRmidForced() == 0 {
		return nil
	}
	list, err := listIPC("shm")
	for _, row := range list {
		if row["nattch"] == 0 {
			d.refuse(fmt.Sprintf("System V shared memory segment %d", row["shmid"]), "nobody has it attached, and kernel.shm_rmid_forced is set", "set kernel.shm_rmid_forced to 0")
		}
	}
	return err
}

// RestoreAroundSettings gives the IPC namespace of a process, which was made for a tree, its settings, except that by which segments
// vanish that nobody has attached yet.
func RestoreAroundSettings(pid int, e *ipc_var.IpcVarEntry) error {
	return intoIPC(pid, &restorer{in: &images.Namespaces{}}, func() error {
		for _, s := range ipcSysctls {
			if s.name == rmidForced {
				continue
			}
			if err := s.restore(e); err != nil {
				return err
			}
		}
		return nil
	})
}

// RestoreIPC gives the IPC namespace of a process, which was made for a tree, what is in it besides shared memory, which the processes
// of the tree have attached by now.
func RestoreIPC(pid int, in *images.Namespaces, header *imagespb.Namespaces) error {
	r := &restorer{in: in, header: header}
	return intoIPC(pid, r, func() error {
		for _, s := range ipcSysctls {
			if err := s.restore(in.IPC); err != nil {
				return err
			}
		}
		return r.restoreIPCObjects()
	})
}

func intoIPC(pid int, r *restorer, fn func() error) error {
	same, err := sameIPC(pid)
	if err == nil && same {
		err = errors.New("it is that of this host, and the tree had one of its own")
	}
	if err == nil {
		err = Inside(pid, unix.CLONE_NEWIPC, func() error {
			if err := r.asOwner(); err != nil {
				return err
			}
			return fn()
		})
	}
	if err != nil {
		return fmt.Errorf("ipc namespace of the tree: %w", err)
	}
	return nil
}
