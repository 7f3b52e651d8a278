package lab

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"migrate/e2e/lab/boot"
	"migrate/e2e/lab/pid1"
)

// booting is a process on its way to being a pid 1: what it is given, and the pipe on which it reports.
type booting struct {
	name   string
	env    []string
	files  []*os.File // its descriptors 0 to 4
	report *os.File
	log    string
}

func (l *Lab) prepareBoot(ctx context.Context, name string, spec boot.Spec) (_ *booting, err error) {
	b := &booting{name: name, log: filepath.Join(l.dir, logFile)}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	if b.env, err = spec.Env(); err != nil {
		return nil, err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	b.files = append(b.files, null)
	log, err := os.OpenFile(b.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	b.files = append(b.files, log, log)
	listener, err := pid1.Listen(ctx, l.socket(name))
	if err != nil {
		return nil, err
	}
	b.files = append(b.files, listener)
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	b.report, b.files = r, append(b.files, w)
	return b, nil
}

// close lets go of our copies of the descriptors. It may be called twice.
func (b *booting) close() {
	for _, f := range b.files {
		_ = f.Close() // all are the other process's by now
	}
	if b.report != nil {
		_ = b.report.Close()
	}
}

// await returns when the process has reported. It needs the process to be the only holder of the pipe's other end.
func (b *booting) await(ctx context.Context) error {
	for _, f := range b.files {
		_ = f.Close()
	}
	stop := context.AfterFunc(ctx, func() { _ = b.report.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	text, err := io.ReadAll(io.LimitReader(b.report, 64<<10))
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("lab: %s was still booting: %w", b.name, context.Cause(ctx))
	case err != nil:
		return fmt.Errorf("lab: %s: %w", b.name, err)
	case string(text) == boot.ReportOK:
		return nil
	case len(text) == 0:
		return fmt.Errorf("lab: %s ended while it booted; its last words may be in %s", b.name, b.log)
	}
	return fmt.Errorf("lab: %s does not boot: %s", b.name, strings.TrimSpace(string(text)))
}

// boot starts the host's pid 1 and connects the host to the switch. Its disk is what it was.
func (h *Host) boot(ctx context.Context, st *state) error {
	spec, err := h.spec(st)
	if err != nil {
		return err
	}
	argv0, namespaces := argBoot, uintptr(unix.CLONE_NEWPID|unix.CLONE_NEWNS|unix.CLONE_NEWNET|unix.CLONE_NEWUTS|unix.CLONE_NEWIPC)
	if h.isClient() {
		argv0 = argClient
	} else if err := os.MkdirAll(spec.Root, 0o700); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	if err := h.cgroup().make(); err != nil {
		return err
	}
	b, err := h.lab.prepareBoot(ctx, h.name, spec)
	if err != nil {
		return err
	}
	defer b.close()
	p, err := pid1.Start(ctx, h.lab.socket(switchName), pid1.Spawn{
		Path: filepath.Join(h.lab.dir, initFile), Argv: []string{argv0}, Env: b.env, Dir: "/",
		Cgroup: string(h.cgroup()), Namespaces: namespaces, Service: h.name, Daemon: true, Files: b.files,
	})
	if err != nil {
		return fmt.Errorf("lab: starting %s: %w", h.name, err)
	}
	defer p.Close()
	if err := b.await(ctx); err != nil {
		return err
	}
	pid, err := pidOf(p.Pidfd)
	if err != nil {
		return fmt.Errorf("lab: %s: %w", h.name, err)
	}
	return h.connect(ctx, st, pid)
}

func (h *Host) spec(st *state) (boot.Spec, error) {
	if h.isClient() {
		return boot.Spec{Name: h.name, HostsFile: filepath.Join(h.lab.dir, hostsFile)}, nil
	}
	top, err := cgroup2Mount()
	if err != nil {
		return boot.Spec{}, err
	}
	id := sha256.Sum256([]byte(h.lab.dir + "/" + h.name))
	uptime, suspended := clocks(h.number, st.Boots[h.number])
	return boot.Spec{
		Name: h.name,
		Disk: filepath.Join(h.lab.dir, disksDir, h.name), Root: filepath.Join(h.lab.dir, rootsDir, h.name), Hide: h.lab.dir,
		Share: st.Share, Shared: st.Shared, Init: filepath.Join(h.lab.dir, initFile), Program: st.Program, Cgroup2: top, Hosts: hostsText(st.Hosts),
		BootID: newUUID(), MachineID: hex.EncodeToString(id[:16]),
		Uptime: uptime, Suspended: suspended,
	}, nil
}

// keepProgram keeps the running program in the lab, so that a host that reboots later is started by the same one.
func (l *Lab) keepProgram() error {
	const self = "/proc/self/exe"
	path := filepath.Join(l.dir, initFile)
	// Fails on another file system, and when the program's file was deleted.
	if err := unix.Linkat(unix.AT_FDCWD, self, unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW); err == nil {
		return nil
	}
	from, err := os.Open(self)
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	defer func() { _ = from.Close() }()
	to, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	_, err = io.Copy(to, from)
	if err := errors.Join(err, to.Close()); err != nil {
		return fmt.Errorf("lab: keeping a copy of the program: %w", err)
	}
	return nil
}

// clocks returns what a host's clocks start with. At first each host has been up for a different time, and was asleep for
// some of it; after a reboot both clocks start from zero, as they do after a real one.
func clocks(number, boots int) (uptime, suspended time.Duration) {
	if boots > 1 {
		return 2 * time.Second, 0
	}
	n := time.Duration(number)
	return n*n*26*time.Hour + n*7*time.Minute, n * 11 * time.Minute
}

// newUUID returns a random UUID (RFC 9562, version 4), which is what boot_id is.
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// errGone means that a process ended before it could be looked at.
var errGone = errors.New("the process has ended")

// pidOf returns the id, in our pid namespace, of the process that a pidfd refers to.
func pidOf(pidfd *os.File) (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", pidfd.Fd()))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		var pid int
		if n, _ := fmt.Sscanf(line, "Pid: %d", &pid); n == 1 {
			if pid <= 0 { // -1 once reaped, 0 in a pid namespace that is not below ours
				return 0, errGone
			}
			return pid, nil
		}
	}
	return 0, errors.New("the fdinfo of a pidfd has no line Pid (needs CONFIG_PROC_FS)")
}
