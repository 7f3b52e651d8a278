//go:build linux

package workload

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"migrate/engine/procfs"
	"migrate/engine/remote"
	"migrate/engine/restore"
)

// ErrSpec means that a workload cannot be started as it was asked for.
var ErrSpec = errors.New("the workload cannot be started like this")

// defaultPath is where a workload's programs are looked for, unless its environment says otherwise.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Launch starts the program of the environment's spec in it.
func (e *Env) Launch(ctx context.Context) (err error) {
	cmd, err := e.command()
	if err != nil {
		return fmt.Errorf("workload %s: %w", e.Name(), err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = null.Close() }() // the program has its own descriptor, as of the output
	out, err := e.Output()
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = null, out, out
	if cmd.Cgroup, err = e.TreeCgroup(); err != nil {
		return err
	}
	pid, err := restore.Start(ctx, e.init.PID, func(ctx context.Context, c remote.Caller, cmd *restore.Command) error {
		if err := e.SetUp(ctx, c); err != nil || e.spec.GetTerminal() == nil {
			return err
		}
		return e.startTerminal(ctx, c, cmd)
	}, &cmd)
	if cmd.Terminal {
		err = errors.Join(err, cmd.Stdin.Close()) // the program has its own
	}
	if err != nil {
		return fmt.Errorf("workload %s: %w", e.Name(), err)
	}
	return e.SetProgram(pid, ProgramID)
}

// ProgramID is the id of a managed workload's first program in its pid namespace. It is not 2, so that ids below stay
// free for what has to be built beside it.
const ProgramID = 10

// SetUp completes the namespaces of a new environment, by calls in its pid 1.
func (e *Env) SetUp(ctx context.Context, c remote.Caller) error {
	if err := restore.SetUpMounts(ctx, c); err != nil {
		return err
	}
	if e.spec.GetBare() {
		return nil
	}
	if err := restore.SetUpShm(ctx, c); err != nil {
		return err
	}
	return restore.SetHostname(ctx, c, hostname(e.Name()))
}

// hostname is the longest part of a workload's name that can be a host name (HOST_NAME_MAX).
func hostname(name string) string { return name[:min(len(name), 64)] }

// command makes the command from the spec: the program found, the user looked up, the environment completed.
func (e *Env) command() (restore.Command, error) {
	argv := e.spec.GetArgv()
	if len(argv) == 0 {
		return restore.Command{}, fmt.Errorf("%w: it has no command", ErrSpec)
	}
	cmd := restore.Command{Args: argv, Dir: e.spec.GetCwd(), PidNamespaceID: ProgramID}
	if cmd.Dir == "" {
		cmd.Dir = "/"
	}
	if st, err := os.Stat(cmd.Dir); err != nil || !st.IsDir() {
		return cmd, fmt.Errorf("%w: its directory %s is not a directory on this host", ErrSpec, cmd.Dir)
	}
	home, err := cmdUser(e.spec.GetUser(), &cmd)
	if err != nil {
		return cmd, err
	}
	if cmd.Env, err = environment(e.spec.GetEnv(), home); err != nil {
		return cmd, err
	}
	cmd.Path, err = findProgram(argv[0], cmd.Dir, cmd.Env)
	return cmd, err
}

// cmdUser sets the ids of a user, given as a name or as uid[:gid], and returns its home directory.
func cmdUser(name string, cmd *restore.Command) (home string, err error) {
	if name == "" {
		return "/root", nil
	}
	id, group, hasGroup := strings.Cut(name, ":")
	u, err := user.Lookup(id)
	if err != nil {
		u, err = user.LookupId(id)
	}
	switch {
	case err == nil:
	case isNumber(id):
		u = &user.User{Uid: id, Gid: id, HomeDir: "/"}
	default:
		return "", fmt.Errorf("%w: there is no user %q on this host", ErrSpec, id)
	}
	if hasGroup {
		if !isNumber(group) {
			return "", fmt.Errorf("%w: group %q is not a number", ErrSpec, group)
		}
		u.Gid = group
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return "", fmt.Errorf("%w: user %q: %w", ErrSpec, name, err)
	}
	cmd.UID, cmd.GID = uint32(uid), uint32(gid)
	if ids, err := u.GroupIds(); err == nil {
		for _, s := range ids {
			if g, err := strconv.ParseUint(s, 10, 32); err == nil {
				cmd.Group = append(cmd.Group, uint32(g))
			}
		}
	}
	return u.HomeDir, nil
}

func isNumber(s string) bool {
	_, err := strconv.ParseUint(s, 10, 32)
	return err == nil
}

// environment adds what every program may expect to what was asked for.
func environment(asked []string, home string) ([]string, error) {
	for _, kv := range asked {
		if k, _, ok := strings.Cut(kv, "="); !ok || k == "" {
			return nil, fmt.Errorf("%w: environment variable %q has not the form K=V", ErrSpec, kv)
		}
	}
	env := slices.Clone(asked)
	for _, d := range []string{"PATH=" + defaultPath, "HOME=" + home, "LANG=C.UTF-8"} {
		k, _, _ := strings.Cut(d, "=")
		if lookup(env, k) == "" {
			env = append(env, d)
		}
	}
	return env, nil
}

func lookup(env []string, key string) string {
	for _, kv := range slices.Backward(env) {
		if k, v, _ := strings.Cut(kv, "="); k == key {
			return v
		}
	}
	return ""
}

// findProgram looks a program up as execvp(3) does.
func findProgram(name, dir string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		path := name
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		if _, err := exec.LookPath(path); err != nil {
			return "", fmt.Errorf("%w: %s is not a program on this host: %w", ErrSpec, path, errors.Unwrap(err))
		}
		return path, nil
	}
	for _, d := range filepath.SplitList(lookup(env, "PATH")) {
		path := filepath.Join(d, name)
		if p, err := exec.LookPath(path); err == nil && filepath.IsAbs(p) {
			return p, nil
		}
	}
	return "", fmt.Errorf("%w: no program %q in PATH=%s on this host", ErrSpec, name, lookup(env, "PATH"))
}

// Figures are what `migrate ps` shows of a copy.
type Figures struct {
	RSSBytes    uint64
	Connections uint32
	Running     bool
}

// Figures reads them from the kernel. It may be called while the environment is being removed.
func (e *Env) Figures() (Figures, error) {
	var f Figures
	cg, err := e.TreeCgroup()
	if err != nil {
		return f, err
	}
	pids, err := cg.Processes()
	if err != nil {
		return f, err
	}
	for _, pid := range pids {
		st, err := procfs.Host.Status(pid)
		if errors.Is(err, procfs.ErrGone) {
			continue
		}
		if err != nil {
			return f, err
		}
		f.Running = f.Running || st.State != 'Z'
		f.RSSBytes += st.VMRSS
	}
	if !e.spec.GetBare() {
		f.Connections, err = connections(e.rec.InitPID)
	}
	return f, err
}

// connections counts the established TCP connections of a network namespace (proc(5), /proc/net/tcp: state 01).
func connections(pid int) (uint32, error) {
	n := uint32(0)
	for _, name := range []string{"tcp", "tcp6"} {
		text, err := procfs.Host.Bytes(pid, "net", name)
		if errors.Is(err, os.ErrNotExist) {
			continue // no IPv6
		}
		if err != nil {
			return 0, err
		}
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) > 3 && f[3] == "01" {
				n++
			}
		}
	}
	return n, nil
}
