//go:build linux

// Package workload keeps what surrounds a copy of a workload on this host: namespaces under a pid 1 of their own, a
// cgroup, the file that its output goes to, the log of exits, and a durable record of all that, from which an agent
// that was restarted takes it up again.
//
// An Env is made empty; then either a program is started in it, or a skeleton is built in it. It is removed whole.
// A Set may be used by several goroutines; an Env belongs to one at a time.
package workload

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protojson"

	agentapi "migrate/agent/api"
	"migrate/engine/ns"
	"migrate/engine/procfs"
)

// Record is what is kept on disk of an environment, in DIR/INSTANCE/record.json.
type Record struct {
	Instance  uint64          `json:"instance"`
	Epoch     uint64          `json:"epoch"`
	Spec      json.RawMessage `json:"spec"` // agentapi.WorkloadSpec
	BootID    string          `json:"boot_id"`
	InitPID   int             `json:"init_pid"`
	InitStart uint64          `json:"init_start"` // of procfs.Stat, so that a reused pid is not taken for it
	PID       int             `json:"pid"`        // of the program on this host; 0 while there is none
	VPID      int             `json:"vpid"`       // the same in its own pid namespace
	Cgroup    string          `json:"cgroup"`     // below the mount
	Port      string          `json:"port"`       // of agent/port; empty for none
	Started   time.Time       `json:"started"`
}

// Env is the surroundings of one copy.
type Env struct {
	set  *Set
	dir  string
	rec  Record
	spec *agentapi.WorkloadSpec
	init *ns.Init
}

// Options of a new environment.
type Options struct {
	Instance, Epoch uint64
	Spec            *agentapi.WorkloadSpec
	// Offsets of its clocks: zero for a program that starts here, what continues the source's clocks for one that arrives.
	Offsets ns.Offsets
}

// New makes namespaces, cgroup and files for a copy, and records them before and after.
func (s *Set) New(ctx context.Context, o Options) (_ *Env, err error) {
	spec, err := protojson.Marshal(o.Spec)
	if err != nil {
		return nil, fmt.Errorf("workload %s: %w", o.Spec.GetName(), err)
	}
	e := &Env{set: s, dir: s.dirOf(o.Instance), spec: o.Spec, rec: Record{
		Instance: o.Instance, Epoch: o.Epoch, Spec: spec, BootID: s.bootID,
		Cgroup: fmt.Sprintf("%s/%d", s.cfg.Cgroup, o.Instance), Started: time.Now(),
	}}
	if err := s.claim(e); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("workload %s: %w", o.Spec.GetName(), err), e.Remove(context.WithoutCancel(ctx)))
		}
	}()
	if err := e.save(); err != nil {
		return nil, err
	}
	return e, e.build(ctx, o)
}

func (e *Env) build(ctx context.Context, o Options) error {
	if _, err := e.TreeCgroup(); err != nil {
		return err
	}
	exits, err := e.open("exits")
	if err != nil {
		return err
	}
	defer func() { _ = exits.Close() }() // the pid 1 has its own descriptor
	isolated := !o.Spec.GetBare()
	e.init, err = ns.StartInit(ctx, ns.Spec{Net: isolated, Mount: true, UTS: isolated, IPC: isolated, Offsets: o.Offsets, ExitLog: exits})
	if err != nil {
		return err
	}
	st, err := procfs.Host.Stat(e.init.PID)
	if err != nil {
		return err
	}
	e.rec.InitPID, e.rec.InitStart = e.init.PID, st.StartTime
	all, err := ns.MakeCgroup(e.rec.Cgroup)
	if err != nil {
		return err
	}
	// The pid 1 stays above the cgroup that is frozen, so that it can be borrowed while the tree is held.
	init, err := ns.MakeCgroup(e.rec.Cgroup + "/init")
	if err != nil {
		return errors.Join(err, all.Remove())
	}
	if err := init.Add(e.init.PID); err != nil {
		return err
	}
	return e.save()
}

// Instance is the copy's own number.
func (e *Env) Instance() uint64 { return e.rec.Instance }

// Record returns what is recorded of the environment.
func (e *Env) Record() Record { return e.rec }

// Spec is what the workload was asked to be.
func (e *Env) Spec() *agentapi.WorkloadSpec { return e.spec }

// Name is the workload's.
func (e *Env) Name() string { return e.spec.GetName() }

// Init is the pid 1 of the namespaces.
func (e *Env) Init() *ns.Init { return e.init }

// TreeCgroup is where the program's processes are, and what is frozen to hold them.
func (e *Env) TreeCgroup() (*ns.Cgroup, error) { return ns.MakeCgroup(e.rec.Cgroup + "/tree") }

// NetNS opens the network namespace.
func (e *Env) NetNS() (*os.File, error) { return ns.NetNS(e.init.PID) }

// Output opens the file that the program's output goes to, for appending.
func (e *Env) Output() (*os.File, error) { return e.open("output") }

// OutputPath is the name of that file.
func (e *Env) OutputPath() string { return filepath.Join(e.dir, "output") }

// ExitsPath is the name of the log of exits.
func (e *Env) ExitsPath() string { return filepath.Join(e.dir, "exits") }

func (e *Env) open(name string) (*os.File, error) {
	return os.OpenFile(filepath.Join(e.dir, name), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
}

// SetProgram records the program that runs in the environment: its process ids on the host and in its own namespace.
func (e *Env) SetProgram(pid, vpid int) error {
	e.rec.PID, e.rec.VPID = pid, vpid
	return e.save()
}

// SetPort records the name of the network port that was made for the environment.
func (e *Env) SetPort(name string) error {
	e.rec.Port = name
	return e.save()
}

// SetEpoch records the epoch under which the copy runs.
func (e *Env) SetEpoch(epoch uint64) error {
	e.rec.Epoch = epoch
	return e.save()
}

// save writes the record durably.
func (e *Env) save() error {
	b, err := json.MarshalIndent(e.rec, "", "  ")
	if err != nil {
		return fmt.Errorf("record of instance %d: %w", e.rec.Instance, err)
	}
	return writeDurably(filepath.Join(e.dir, "record.json"), b)
}

// ExitStatus looks the program's end up in the log of exits: its wait status, and whether it has ended.
func (e *Env) ExitStatus() (status int32, ended bool, err error) {
	f, err := os.Open(filepath.Join(e.dir, "exits"))
	if err != nil {
		return 0, false, fmt.Errorf("log of exits: %w", err)
	}
	defer func() { _ = f.Close() }()
	var rec [8]byte
	for {
		_, err := io.ReadFull(f, rec[:])
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return 0, false, nil
		}
		if err != nil {
			return 0, false, fmt.Errorf("log of exits: %w", err)
		}
		if pid := int32(binary.NativeEndian.Uint32(rec[:])); int(pid) == e.rec.VPID {
			return int32(binary.NativeEndian.Uint32(rec[4:])), true, nil
		}
	}
}

// Stop asks the program to end, gives it time to do so, and ends what is left.
func (e *Env) Stop(ctx context.Context, grace time.Duration) error {
	if e.rec.PID != 0 {
		if err := e.terminate(ctx, grace); err != nil {
			return fmt.Errorf("workload %s: %w", e.Name(), err)
		}
	}
	if e.init == nil {
		return nil
	}
	return e.init.Kill(ctx)
}

// terminate sends SIGTERM and waits for the end of the program or of the time of grace.
func (e *Env) terminate(ctx context.Context, grace time.Duration) error {
	fd, err := unix.PidfdOpen(e.rec.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("pid %d: pidfd_open: %w", e.rec.PID, err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("pid %d: %w", e.rec.PID, err)
	}
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	if err := ns.AwaitExit(ctx, fd); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// Remove ends what runs in the environment and takes all of it away. It is safe to call again.
func (e *Env) Remove(ctx context.Context) error {
	var errs []error
	if e.init != nil {
		errs = append(errs, e.init.Kill(ctx))
	}
	if all, err := ns.MakeCgroup(e.rec.Cgroup); err != nil {
		errs = append(errs, err)
	} else {
		errs = append(errs, all.Kill(), all.Empty(ctx), all.Remove())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("removing instance %d of %s: %w", e.rec.Instance, e.Name(), err)
	}
	if e.init != nil {
		errs = append(errs, e.init.Close())
		e.init = nil
	}
	e.set.forget(e)
	return errors.Join(append(errs, os.RemoveAll(e.dir))...)
}

// writeDurably replaces a file so that after a crash it has its old or its new content.
func writeDurably(path string, b []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+strings.TrimPrefix(filepath.Base(path), ".")+"-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("writing %s: %w", path, err), os.Remove(f.Name()))
		}
	}()
	_, werr := f.Write(b)
	if err := errors.Join(werr, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
