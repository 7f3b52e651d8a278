// Package lab makes virtual hosts on one machine: host1 .. hostN, each with network, pid, mount, UTS, IPC, cgroup and time
// namespaces of its own, its own root (an overlay over the machine's, kept on a disk of its own), /run, /tmp, /dev, boot id and
// clocks, and its own pid 1; and a switch between them, in a network namespace that is neither a host's nor the machine's.
//
//	machine ── switch (pid 1 of the lab; bridge "switch" with the ports host1, host2, ..., client)
//	             ├── host1: eth0 in br0, 10.77.0.11, fd77::11; pid 1, its agent, what runs there
//	             ├── host2: ...
//	             └── client: eth0, 10.77.0.1, fd77::1; the machine's files
//
// Nothing of a lab is pinned anywhere: every process of it is in one cgroup, whose name follows from the state directory, and
// all its mounts, devices and namespaces live only as long as those processes. Down is therefore: kill the cgroup, remove it,
// remove the files; and it works as well on what a crash at any instant has left behind. Up begins with the same.
//
// The state directory holds the hosts' disks, the sockets of the pids 1, the cluster's authority and lab.json. Whoever changes
// the lab holds a file lock in it (one for the whole of Up, Down, Cut, Reboot, ...), so commands and programs may be used
// on one lab at the same time; the methods of Lab and Host may be called from several goroutines. Commands run in hosts take no
// lock. A program that imports this package can become part of a lab when it is started again under another name (entry.go).
package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"migrate/e2e/lab/boot"
)

// MaxHosts is how many addresses there are for hosts below those of workloads.
const MaxHosts = 39

// Options describe a lab. The zero value is three hosts with agents in DefaultStateDir.
type Options struct {
	StateDir string
	Hosts    int // default 3, at most MaxHosts
	// Servers is how many of the hosts, from the first, vote in the cluster; default 3, or all if there are less.
	Servers int
	// Bandwidth limits each port in each direction, in bytes per second; 0 means as fast as it goes.
	Bandwidth uint64
	// Program is the file that hosts see as /usr/local/bin/migrate; by default the running program.
	Program string
	// Agent is the command line of each host's agent, by default /usr/local/bin/migrate agent --config /etc/migrate/agent.yaml.
	// With an empty list that is not nil there are no agents.
	Agent []string
	// Unenrolled hosts get neither certificates nor configurations, and their agents are not started: StartAgent does that.
	Unenrolled bool
	// AgentEnv is added to the agents' environment.
	AgentEnv []string
	// Share are directories of the machine that each host sees in the same place, read-only. Without it a host does not
	// see the machine's /tmp and /run.
	Share []string
	// Shared are directories of the machine that each host sees in the same place and may write, as storage that hosts share.
	Shared []string
	// Detach says that the lab stays up when this process ends, until Down. Otherwise it is left to be removed by the next Up.
	Detach bool
}

// ErrInUse means that a lab is up in the state directory already, and in use.
var ErrInUse = errors.New("a lab is up already")

// Lab is a lab that is up.
type Lab struct {
	dir    string
	cgroup cgroup
	hosts  []*Host
	client *Host
	first  *os.Process // the pid 1 of the lab, if it is our child
	owner  *os.File    // the lock that says that this process uses the lab; nil for one that is nobody's
}

const switchName = "switch"

// Up starts a lab and returns when all hosts are up, connected, and their agents started. What an earlier lab in the same
// state directory has left, by a crash at whatever instant, is removed first; but a lab that was detached, or whose process
// lives, yields ErrInUse. When Up fails it leaves nothing behind.
func Up(ctx context.Context, o Options) (_ *Lab, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("lab: virtual hosts need root; run it with sudo")
	}
	st, err := o.state()
	if err != nil {
		return nil, err
	}
	dir, err := canonical(o.StateDir)
	if err != nil {
		return nil, err
	}
	if err := claim(dir); err != nil {
		return nil, err
	}
	held, err := lock(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = held.Close() }()
	l, err := open(dir, st)
	if err != nil {
		return nil, err
	}
	if l.owner, err = l.own(ctx); err != nil {
		return nil, err
	}
	if err := l.clean(ctx); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			// The caller's context may be why it failed.
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tearDownTimeout)
			defer cancel()
			err = errors.Join(err, l.tearDown(ctx))
		}
	}()
	if err := l.build(ctx, st); err != nil {
		return nil, err
	}
	st.Up, st.Detached = true, o.Detach
	if err := writeState(dir, st); err != nil {
		return nil, err
	}
	if o.Detach {
		l.disown()
	}
	return l, nil
}

// own makes this process the one that uses the lab, unless another one does or the lab is meant to stay.
func (l *Lab) own(ctx context.Context) (*os.File, error) {
	f, err := tryLock(filepath.Join(l.dir, ownerFile))
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("%w in %s, and a running program uses it: give another state directory", ErrInUse, l.dir)
	} else if err != nil {
		return nil, err
	}
	old, err := readState(l.dir)
	if err == nil && old.Up && old.Detached {
		if _, err := l.switchPID(ctx); err == nil {
			return nil, errors.Join(fmt.Errorf("%w in %s: end it with migrate lab down, or give another state directory", ErrInUse, l.dir), f.Close())
		}
	}
	return f, nil
}

func (l *Lab) disown() {
	if l.owner != nil {
		_ = l.owner.Close() // an empty file
		l.owner = nil
	}
}

// clean removes what an earlier lab has left.
func (l *Lab) clean(ctx context.Context) error {
	if err := l.cgroup.end(ctx); err != nil {
		return err
	}
	for _, name := range ours {
		if err := os.RemoveAll(filepath.Join(l.dir, name)); err != nil {
			return fmt.Errorf("lab: %w", err)
		}
	}
	return nil
}

// tearDownTimeout bounds the end of processes that were killed. A process that sits in the kernel for longer is an error.
const tearDownTimeout = 20 * time.Second

func (o Options) state() (_ *state, err error) {
	st := &state{Hosts: o.Hosts, Servers: o.Servers, Bandwidth: o.Bandwidth, Program: o.Program, Agent: o.Agent, AgentEnv: o.AgentEnv, Unenrolled: o.Unenrolled, Boots: map[int]int{}}
	if st.Hosts == 0 {
		st.Hosts = 3
	}
	if st.Hosts < 1 || st.Hosts > MaxHosts {
		return nil, fmt.Errorf("lab: %d hosts; a lab has 1 to %d", o.Hosts, MaxHosts)
	}
	if st.Servers < 0 || st.Servers > st.Hosts {
		return nil, fmt.Errorf("lab: %d servers; of %d hosts 1 to %d can be servers", st.Servers, st.Hosts, st.Hosts)
	}
	if st.Program == "" {
		exe, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("lab: %w", err)
		}
		st.Program = exe
	}
	if _, err := os.Stat(st.Program); err != nil {
		return nil, fmt.Errorf("lab: the program for the hosts: %w", err)
	}
	if st.Agent == nil {
		st.Agent = []string{boot.ProgramPath, "agent", "--config", configPath}
	}
	if st.Share, err = directories(o.Share); err != nil {
		return nil, err
	}
	if st.Shared, err = directories(o.Shared); err != nil {
		return nil, err
	}
	return st, nil
}

// directories makes paths of directories, which must exist, absolute.
func directories(list []string) (out []string, err error) {
	for _, dir := range list {
		abs, err := filepath.Abs(dir)
		if err != nil {
			return nil, fmt.Errorf("lab: shared directory: %w", err)
		}
		if _, err := os.Stat(abs); err != nil {
			return nil, fmt.Errorf("lab: shared directory: %w", err)
		}
		out = append(out, abs)
	}
	return out, nil
}

// Open returns the lab that is up in a state directory (default DefaultStateDir); ErrNoLab when there is none.
func Open(_ context.Context, stateDir string) (*Lab, error) {
	dir, err := canonical(stateDir)
	if err != nil {
		return nil, err
	}
	st, err := readState(dir)
	if err != nil {
		return nil, err
	}
	if !st.Up {
		return nil, fmt.Errorf("%w: the last migrate lab up in %s did not end; run it again, or migrate lab down", ErrNoLab, dir)
	}
	return open(dir, st)
}

func open(dir string, st *state) (*Lab, error) {
	cg, err := cgroupOf(dir)
	if err != nil {
		return nil, err
	}
	l := &Lab{dir: dir, cgroup: cg}
	for n := 1; n <= st.Hosts; n++ {
		l.hosts = append(l.hosts, &Host{lab: l, number: n, name: hostName(n)})
	}
	l.client = &Host{lab: l, name: ClientName}
	return l, nil
}

// Down ends the lab and removes all of it. It is no error if it is not up.
func (l *Lab) Down(ctx context.Context) error {
	if _, err := os.Stat(l.dir); errors.Is(err, os.ErrNotExist) {
		return l.cgroup.end(ctx)
	}
	if err := claim(l.dir); err != nil {
		return err
	}
	held, err := lock(ctx, l.dir)
	if err != nil {
		return err
	}
	defer func() { _ = held.Close() }()
	return l.tearDown(ctx)
}

// Down ends the lab in a state directory (default DefaultStateDir), also one that was left half-way, and removes all of
// it. It is no error if there is none.
func Down(ctx context.Context, stateDir string) error {
	dir, err := canonical(stateDir)
	if err != nil {
		return err
	}
	cg, err := cgroupOf(dir)
	if err != nil {
		return err
	}
	return (&Lab{dir: dir, cgroup: cg}).Down(ctx)
}

func (l *Lab) tearDown(ctx context.Context) error {
	if err := l.cgroup.end(ctx); err != nil {
		return err
	}
	if l.first != nil {
		_, _ = l.first.Wait() // it was killed; this takes it out of the process table
		l.first = nil
	}
	l.disown()
	return removeState(l.dir)
}

// Host returns a host by its name, or nil if the lab has none of that name. The clients' namespace is "client".
func (l *Lab) Host(name string) *Host {
	for _, h := range l.hosts {
		if h.name == name {
			return h
		}
	}
	if name == ClientName {
		return l.client
	}
	return nil
}

// Hosts returns host1, host2, ... in order.
func (l *Lab) Hosts() []*Host { return append([]*Host(nil), l.hosts...) }

// Client is on the switch but no host: programs in it see the machine's files and use the hosts as the world outside would.
func (l *Lab) Client() *Host { return l.client }

// Dir is the state directory.
func (l *Lab) Dir() string { return l.dir }

func (l *Lab) socket(name string) string { return filepath.Join(l.dir, socketsDir, name) }

// update changes the lab's state under its lock. What change does to the kernel and what it writes into the state belong together.
func (l *Lab) update(ctx context.Context, change func(*state) error) error {
	held, err := lock(ctx, l.dir)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w (%s)", ErrNoLab, l.dir)
	} else if err != nil {
		return err
	}
	defer func() { _ = held.Close() }()
	st, err := readState(l.dir)
	if err != nil {
		return err
	}
	return change(st)
}

// build makes all of a lab, in a state directory that has been claimed and cleaned.
func (l *Lab) build(ctx context.Context, st *state) error {
	if err := writeState(l.dir, st); err != nil {
		return err
	}
	for _, name := range []string{disksDir, rootsDir, socketsDir} {
		if err := os.Mkdir(filepath.Join(l.dir, name), 0o700); err != nil {
			return fmt.Errorf("lab: %w", err)
		}
	}
	if err := os.WriteFile(filepath.Join(l.dir, hostsFile), []byte(hostsText(st.Hosts)), 0o444); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	if err := l.keepProgram(); err != nil {
		return err
	}
	if err := l.startSwitch(ctx); err != nil {
		return err
	}
	if err := l.makeSwitch(ctx); err != nil {
		return err
	}
	for _, h := range l.hosts {
		st.Boots[h.number] = 1
	}
	if err := writeState(l.dir, st); err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.NumCPU())
	g.Go(func() error { return l.client.boot(gctx, st) })
	for _, h := range l.hosts {
		g.Go(func() error { return h.boot(gctx, st) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return l.startAgents(ctx, st)
}

// startSwitch starts the pid 1 of the lab, in whose namespaces the switch and the mounts of the disks are.
func (l *Lab) startSwitch(ctx context.Context) error {
	spec := boot.Spec{Name: switchName}
	onOverlay, err := needsDiskMount(l.dir)
	if err != nil {
		return err
	}
	if onOverlay {
		spec.DiskMount = filepath.Join(l.dir, disksDir)
	}
	cg := l.cgroup.below(switchName)
	if err := cg.make(); err != nil {
		return err
	}
	dir, err := os.Open(string(cg))
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	defer func() { _ = dir.Close() }()
	b, err := l.prepareBoot(ctx, switchName, spec)
	if err != nil {
		return err
	}
	defer b.close()
	l.first, err = os.StartProcess(filepath.Join(l.dir, initFile), []string{argSwitch}, &os.ProcAttr{
		Dir: "/", Env: b.env, Files: b.files,
		Sys: &syscall.SysProcAttr{
			Setsid: true, Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET,
			UseCgroupFD: true, CgroupFD: int(dir.Fd()),
		},
	})
	if err != nil {
		return fmt.Errorf("lab: starting the switch: %w", err)
	}
	return b.await(ctx)
}

// needsDiskMount tells whether the file system of dir cannot hold the upper layer of an overlay, because it is one itself.
func needsDiskMount(dir string) (bool, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return false, fmt.Errorf("lab: statfs of %s: %w", dir, err)
	}
	return fs.Type == unix.OVERLAYFS_SUPER_MAGIC, nil
}
