package boot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

func mount(source, target, fstype string, flags uintptr, data string) error {
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		return fmt.Errorf("boot: mounting %s %s on %s: %w", fstype, source, target, err)
	}
	return nil
}

// ownMounts cuts the mount namespace off from the one it was copied from.
func ownMounts() error {
	return mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
}

// buildRoot mounts the host's root, and all that belongs under it, on spec.Root.
func buildRoot(spec Spec) error {
	if err := overlay("/", spec.Root, spec.Disk, "root"); err != nil {
		return err
	}
	if err := overlaySubmounts(spec); err != nil {
		return err
	}
	for _, m := range []struct {
		fstype, target, data string
		flags                uintptr
	}{
		{"proc", "/proc", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"sysfs", "/sys", "", unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"tmpfs", "/run", "mode=0755", unix.MS_NOSUID | unix.MS_NODEV},
		{"tmpfs", "/tmp", "mode=1777", unix.MS_NOSUID | unix.MS_NODEV},
		{"tmpfs", "/dev", "mode=0755", unix.MS_NOSUID},
	} {
		if err := os.MkdirAll(spec.Root+m.target, 0o755); err != nil {
			return err
		}
		if err := mount(m.fstype, spec.Root+m.target, m.fstype, m.flags, m.data); err != nil {
			return err
		}
	}
	if err := mountCgroup(spec); err != nil {
		return err
	}
	if err := makeDevices(spec.Root + "/dev"); err != nil {
		return err
	}
	if err := hide(spec); err != nil {
		return err
	}
	for _, dir := range spec.Share {
		if err := bind(dir, spec.Root+dir, true); err != nil {
			return err
		}
	}
	for _, dir := range spec.Shared {
		if err := bind(dir, spec.Root+dir, false); err != nil {
			return err
		}
	}
	return identify(spec)
}

// overlay mounts a writable layer, kept on the disk under the given name, over the directory lower.
func overlay(lower, target, disk, name string) error {
	upper, work := filepath.Join(disk, name, "upper"), filepath.Join(disk, name, "work")
	for _, dir := range []string{upper, work} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	for _, dir := range []string{lower, upper, work} {
		if strings.ContainsAny(dir, `,:\`) {
			return fmt.Errorf("the path %s has a character that overlay's options cannot hold", dir)
		}
	}
	return mount("overlay", target, "overlay", 0, "lowerdir="+lower+",upperdir="+upper+",workdir="+work)
}

// diskTypes are the file systems with programs and data on them; the others are the kernel's own views.
var diskTypes = []string{"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "bcachefs"}

// overlaySubmounts gives the host its own layer over each disk that the machine has mounted somewhere below its root, as
// an overlay over the root does not see them. In a container single files are mounted too; those are the container's, not ours.
func overlaySubmounts(spec Spec) error {
	hidden := []string{"/proc", "/sys", "/dev", "/run", "/tmp", spec.Hide}
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter(diskTypes...))
	if err != nil {
		return fmt.Errorf("reading mountinfo: %w", err)
	}
	for _, m := range mounts {
		at := m.Mountpoint
		if at == "/" || slices.ContainsFunc(hidden, func(h string) bool { return at == h || strings.HasPrefix(at, h+"/") }) {
			continue
		}
		if info, err := os.Stat(at); err != nil || !info.IsDir() {
			continue
		}
		if err := os.MkdirAll(spec.Root+at, 0o755); err != nil {
			return err
		}
		if err := overlay(at, spec.Root+at, spec.Disk, "at"+strings.ReplaceAll(at, "/", "-")); err != nil {
			return err
		}
	}
	return nil
}

// mountCgroup mounts the v2 hierarchy where the machine has it. Inside the cgroup namespace its top is the host's cgroup.
func mountCgroup(spec Spec) error {
	target := spec.Root + spec.Cgroup2
	if _, err := os.Stat(target); errors.Is(err, os.ErrNotExist) {
		// Beside v1 controllers it is one of several mounts in a directory of their own.
		if err := mount("tmpfs", spec.Root+"/sys/fs/cgroup", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0755"); err != nil {
			return err
		}
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
	}
	return mount("cgroup2", target, "cgroup2", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
}

// devices are those that a host gets when the machine has them.
var devices = []string{"null", "zero", "full", "random", "urandom", "tty", "userfaultfd", "fuse", "net/tun", "kvm"}

func makeDevices(dev string) error {
	for _, name := range devices {
		var st unix.Stat_t
		if err := unix.Stat("/dev/"+name, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR {
			continue
		}
		path := filepath.Join(dev, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := unix.Mknod(path, st.Mode, int(st.Rdev)); err != nil {
			return fmt.Errorf("mknod %s: %w", path, err)
		}
		if err := os.Chmod(path, os.FileMode(st.Mode).Perm()); err != nil { // mknod obeys the umask
			return err
		}
	}
	for _, l := range []struct{ name, to string }{
		{"fd", "/proc/self/fd"}, {"stdin", "/proc/self/fd/0"}, {"stdout", "/proc/self/fd/1"}, {"stderr", "/proc/self/fd/2"}, {"ptmx", "pts/ptmx"},
	} {
		if err := os.Symlink(l.to, filepath.Join(dev, l.name)); err != nil {
			return err
		}
	}
	for _, m := range []struct{ fstype, dir, data string }{
		{"devpts", "pts", "newinstance,ptmxmode=0666,mode=0620"},
		{"tmpfs", "shm", "mode=1777"},
		{"mqueue", "mqueue", ""},
	} {
		target := filepath.Join(dev, m.dir)
		if err := os.Mkdir(target, 0o755); err != nil {
			return err
		}
		err := mount(m.fstype, target, m.fstype, unix.MS_NOSUID|unix.MS_NOEXEC, m.data)
		if err != nil && !errors.Is(err, unix.ENODEV) { // a kernel without POSIX message queues
			return err
		}
	}
	return nil
}

// hide covers the lab's own state, with the keys of its authority and the disks of the other hosts.
func hide(spec Spec) error {
	target := spec.Root + spec.Hide
	if _, err := os.Stat(target); errors.Is(err, os.ErrNotExist) {
		return nil // it is under a directory that the host has its own of
	}
	return mount("tmpfs", target, "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700,size=4k")
}

// bind makes a file or directory of the machine visible at target, which is made when missing.
func bind(source, target string, readOnly bool) error {
	info, err := os.Stat(source)
	if err != nil {
		return err
	}
	if _, err := os.Stat(target); errors.Is(err, os.ErrNotExist) {
		if err := makeLike(info, target); err != nil {
			return err
		}
	}
	if err := mount(source, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	if !readOnly {
		return nil
	}
	return mount("none", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
}

func makeLike(info os.FileInfo, target string) error {
	if info.IsDir() {
		return os.MkdirAll(target, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	return os.WriteFile(target, nil, 0o755)
}

// identify gives the host its name, its ids and its programs.
func identify(spec Spec) error {
	for _, f := range []struct{ path, text string }{
		{"/etc/hosts", spec.Hosts},
		{"/etc/hostname", spec.Name + "\n"},
		{"/etc/machine-id", spec.MachineID + "\n"},
		{"/run/lab/boot_id", spec.BootID + "\n"},
	} {
		path := spec.Root + f.path
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(f.text), 0o444); err != nil {
			return err
		}
	}
	for _, b := range []struct{ from, to string }{
		{spec.Root + "/run/lab/boot_id", "/proc/sys/kernel/random/boot_id"},
		{spec.Init, initPath},
		{spec.Program, ProgramPath},
	} {
		if err := bind(b.from, spec.Root+b.to, true); err != nil {
			return err
		}
	}
	return nil
}

// pivot makes the directory root the root of the mount namespace and lets the old one go. Afterwards nothing of the
// machine's mounts is reachable (pivot_root(2), NOTES).
func pivot(root string) error {
	if err := os.Chdir(root); err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("boot: pivot_root to %s: %w", root, err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("boot: letting go of the old root: %w", err)
	}
	return os.Chdir("/")
}
