package boot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Switch makes the calling process the pid 1 of the lab itself: it holds the network namespace in which the switch is, and
// all hosts are its children. It was started in new pid, mount and network namespaces.
func Switch() error {
	spec, err := specFromEnv()
	if err != nil {
		return err
	}
	if err := closeInherited(); err != nil {
		return err
	}
	if err := ownMounts(); err != nil {
		return err
	}
	if err := mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	if spec.DiskMount != "" {
		if err := mount("tmpfs", spec.DiskMount, "tmpfs", unix.MS_NOSUID, "mode=0700"); err != nil {
			return err
		}
	}
	// The switch itself never speaks.
	return writeSysctls(append(quietBridge, sysctl{"net/ipv6/conf/default/disable_ipv6", "1"}))
}

// Client makes the calling process the pid 1 of the clients: they see the machine's files but have a network of their own.
// It was started in new pid, mount, network, UTS and IPC namespaces.
func Client() error {
	spec, err := specFromEnv()
	if err != nil {
		return err
	}
	if err := ownMounts(); err != nil {
		return err
	}
	if err := mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	if err := mount("sysfs", "/sys", "sysfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	// A machine that has no such file shows its clients none: they see its own files, of which none is to be made.
	if err := mount(spec.HostsFile, "/etc/hosts", "", unix.MS_BIND, ""); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	if err := unix.Sethostname([]byte(spec.Name)); err != nil {
		return fmt.Errorf("boot: sethostname: %w", err)
	}
	return writeSysctls(endpoint)
}

// Host makes the calling process the pid 1 of a virtual host, up to the point at which it has replaced itself by a new
// program called argv0, so it returns only when it fails. It was started in the host's cgroup, in new pid, mount, network, UTS
// and IPC namespaces.
func Host(argv0 string) error {
	runtime.LockOSThread() // never unlocked: what happens here happens to one thread, which then replaces all others
	spec, err := specFromEnv()
	if err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP | unix.CLONE_NEWTIME); err != nil {
		return fmt.Errorf("boot: unshare of the cgroup and time namespaces: %w", err)
	}
	if err := ownMounts(); err != nil {
		return err
	}
	if err := buildRoot(spec); err != nil {
		return fmt.Errorf("boot: the root of %s: %w", spec.Name, err)
	}
	if err := pivot(spec.Root); err != nil {
		return err
	}
	if err := splitCgroup(spec.Cgroup2); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(spec.Name)); err != nil {
		return fmt.Errorf("boot: sethostname: %w", err)
	}
	if err := writeSysctls(append(quietBridge, endpoint...)); err != nil {
		return err
	}
	if err := setClocks(spec.Uptime, spec.Suspended); err != nil {
		return err
	}
	for _, fd := range []int{listenerFD, reportFD} {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
			return fmt.Errorf("boot: descriptor %d: %w", fd, err)
		}
	}
	// The time namespace for children becomes this process's own at the exec (fs/exec.c, exec_task_namespaces).
	if err := syscall.Exec(initPath, []string{argv0, spec.Name}, []string{}); err != nil {
		return fmt.Errorf("boot: exec of %s: %w", initPath, err)
	}
	return nil
}

// splitCgroup moves the process out of the top of its cgroup namespace into a leaf, as a cgroup that has children may need
// to be without processes (cgroup-v2.rst, "No Internal Process Constraint").
func splitCgroup(top string) error {
	for _, leaf := range []string{initCgroup, sessionCgroup, agentCgroup} {
		if err := os.Mkdir(filepath.Join(top, leaf), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("boot: cgroup: %w", err)
		}
	}
	procs := filepath.Join(top, initCgroup, "cgroup.procs")
	if err := writeFile(procs, "0"); err != nil {
		return fmt.Errorf("boot: joining the cgroup of pid 1: %w", err)
	}
	return nil
}

// closeInherited closes descriptors that some program further up has left open for its children: every process of the lab
// would have them, and keep pipes open whose end somebody awaits. The runtime's own are close-on-exec.
func closeInherited() error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd <= reportFD {
			continue
		}
		// It fails for the descriptor that was used to read the directory.
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			_ = unix.Close(fd)
		}
	}
	return nil
}

type sysctl struct{ name, value string }

// quietBridge keeps a bridge's frames away from IP's packet filters, where they would be looked at twice.
var quietBridge = []sysctl{
	{"net/bridge/bridge-nf-call-iptables", "0"},
	{"net/bridge/bridge-nf-call-ip6tables", "0"},
	{"net/bridge/bridge-nf-call-arptables", "0"},
}

// endpoint is for namespaces with addresses: IPv6 without duplicate detection, routers and link-local addresses, so that
// an interface says nothing that nobody has asked it to say.
var endpoint = []sysctl{
	{"net/ipv6/conf/all/disable_ipv6", "0"},
	{"net/ipv6/conf/default/disable_ipv6", "0"},
	{"net/ipv6/conf/all/accept_dad", "0"},
	{"net/ipv6/conf/default/accept_dad", "0"},
	{"net/ipv6/conf/default/accept_ra", "0"},
	{"net/ipv6/conf/default/router_solicitations", "0"},
	{"net/ipv6/conf/default/addr_gen_mode", "1"},
	{"net/ipv4/ping_group_range", "0 2147483647"},
}

// writeSysctls sets what exists: a kernel without a feature has nothing to be set for it.
func writeSysctls(list []sysctl) error {
	for _, s := range list {
		err := writeFile("/proc/sys/"+s.name, s.value)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("boot: sysctl %s=%q: %w", s.name, s.value, err)
		}
	}
	return nil
}

// setClocks sets the offsets of the time namespace for the children of the calling thread, such that CLOCK_MONOTONIC
// starts at uptime and CLOCK_BOOTTIME at uptime and suspended (time_namespaces(7)).
func setClocks(uptime, suspended time.Duration) error {
	var text strings.Builder
	for _, c := range []struct {
		clock int32
		want  time.Duration
	}{{unix.CLOCK_MONOTONIC, uptime}, {unix.CLOCK_BOOTTIME, uptime + suspended}} {
		var now unix.Timespec
		if err := unix.ClockGettime(c.clock, &now); err != nil {
			return fmt.Errorf("boot: clock_gettime(%d): %w", c.clock, err)
		}
		offset := c.want - time.Duration(now.Nano())
		sec, nsec := offset/time.Second, offset%time.Second
		if nsec < 0 { // the kernel wants 0 <= nsec
			sec, nsec = sec-1, nsec+time.Second
		}
		fmt.Fprintf(&text, "%d %d %d\n", c.clock, int64(sec), int64(nsec))
	}
	// The file exists per process only, but a thread's id names it as well.
	path := "/proc/" + strconv.Itoa(unix.Gettid()) + "/timens_offsets"
	if err := writeFile(path, text.String()); err != nil {
		return fmt.Errorf("boot: time namespace: %w", err)
	}
	return nil
}

func writeFile(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}
