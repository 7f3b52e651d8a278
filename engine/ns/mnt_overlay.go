//go:build linux

package ns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/mnt"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"migrate/engine/images/imagespb"
)

// An overlay of a mount namespace's own (Documentation/filesystems/overlayfs.rst) is made again of the same layers, by the paths that it
// was mounted with. They are looked up in the namespace, so it is made when what they lead to is in its place.

const overlay = "overlay"

// maxParameter is the longest value that fsconfig(2) takes, in bytes; more layers go one by one (lowerdir+, datadir+, Linux 6.7).
const maxParameter = 255

// overlays refuses overlays that cannot be made again, and notes for the others which mounts are to be in their places before or after: a path of
// a layer leads elsewhere once something is mounted on it. It runs in the mount namespace.
func (r *mountReader) overlays() {
	for _, m := range r.mounts {
		if m.FSType != overlay || r.paths[m.ID] != "" {
			continue
		}
		layers, problem := layersOf(m)
		if m == r.mounts[0] {
			problem = "an overlay that is the root, whose layers are not below it"
		}
		for _, dir := range layers {
			if st, err := os.Stat(dir); problem == "" && (err != nil || !st.IsDir()) {
				problem = fmt.Sprintf("an overlay with the layer %s, which is not there", dir)
			}
			for _, o := range r.mounts[1:] {
				if _, on := cutDir(dir, o.Mountpoint); !on || o == m {
					continue
				}
				if r.age[o.ID] < r.age[m.ID] {
					r.after[m.ID] = append(r.after[m.ID], uint32(o.ID))
				} else {
					r.after[o.ID] = append(r.after[o.ID], uint32(m.ID))
				}
			}
		}
		if problem != "" {
			r.refuse("mount "+m.Mountpoint, problem, "mount it with short absolute paths of plain names, without index and nfs_export, or unmount it")
		}
	}
}

// layersOf are the directories of which an overlay is made, or why it cannot be made of them again.
func layersOf(m *mountinfo.Info) (dirs []string, problem string) {
	for o := range strings.SplitSeq(m.VFSOptions, ",") {
		key, value, _ := strings.Cut(o, "=")
		switch key {
		case "lowerdir", "upperdir", "workdir", "lowerdir+", "datadir+":
			for dir := range strings.SplitSeq(value, ":") {
				if dir == "" { // before those with data only
					continue
				}
				if !strings.HasPrefix(dir, "/") || strings.ContainsRune(dir, '\\') {
					return nil, fmt.Sprintf("an overlay with the layer %s, which is relative or has special characters in its name", dir)
				}
				if len(dir) > maxParameter {
					return nil, fmt.Sprintf("an overlay with a layer whose path has %d bytes, of %d that can be given", len(dir), maxParameter)
				}
				dirs = append(dirs, filepath.Clean(dir))
			}
		case "index", "nfs_export":
			if value == "on" {
				return nil, "an overlay with " + o + ", which refers to the files of its layers by handles"
			}
		}
	}
	return dirs, ""
}

// isOverlay tells an overlay that is to be made, not one of the host.
func isOverlay(e *mnt.MntEntry, x *imagespb.Mount) bool {
	return e.GetFsname() == overlay && x.GetPath() == "" && x.GetNamespace() == 0
}

// createOverlay makes an overlay in the mount namespace of this thread.
func (t *mountTree) createOverlay(e *mnt.MntEntry) (int, error) {
	made := -1
	err := Inside(t.caller.PID(), unix.CLONE_NEWNS, func() (err error) {
		if err := t.asOwner(); err != nil {
			return err
		}
		config, err := unix.Fsopen(overlay, unix.FSOPEN_CLOEXEC)
		if err != nil {
			return fmt.Errorf("fsopen: %w", err)
		}
		defer func() { err = errors.Join(err, unix.Close(config)) }()
		set := func(key, value string) error {
			if err := unix.FsconfigSetString(config, key, value); err != nil {
				return fmt.Errorf("option %s=%s: %w", key, value, err)
			}
			return nil
		}
		if err := set("source", e.GetSource()); err != nil {
			return err
		}
		for o := range strings.SplitSeq(e.GetOptions(), ",") {
			key, value, has := strings.Cut(o, "=")
			switch {
			case o == "":
			case !has:
				err = unix.FsconfigSetFlag(config, key)
			case key == "lowerdir" && len(value) > maxParameter:
				err = setLayers(set, value)
			default:
				err = set(key, value)
			}
			if err != nil {
				return fmt.Errorf("option %s: %w", o, err)
			}
		}
		if err := unix.FsconfigCreate(config); err != nil {
			return fmt.Errorf("with the options %q: %w", e.GetOptions(), err)
		}
		if made, err = unix.Fsmount(config, unix.FSMOUNT_CLOEXEC, 0); err != nil {
			return fmt.Errorf("fsmount: %w", err)
		}
		return nil
	})
	if err != nil {
		return -1, err
	}
	if err := setSuper(made, e.GetSbFlags()); err != nil {
		return -1, errors.Join(err, unix.Close(made))
	}
	return made, nil
}

// setLayers adds the lower layers one by one; after an empty one come those that hold data only.
func setLayers(set func(key, value string) error, layers string) error {
	key := "lowerdir+"
	for dir := range strings.SplitSeq(layers, ":") {
		if dir == "" {
			key = "datadir+"
		} else if err := set(key, dir); err != nil {
			return err
		}
	}
	return nil
}

// place puts the mounts into their places, those first on which others are, and those that an overlay needs before it.
func (t *mountTree) place() error {
	left := make([]int, len(t.in.Mounts))
	for i := range left {
		left[i] = i
	}
	done := map[uint32]bool{}
	for len(left) > 0 {
		var waiting []int
		for _, i := range left {
			e, x := t.in.Mounts[i], t.header.GetMounts()[i]
			if i > 0 && !done[e.GetParentMntId()] || slices.ContainsFunc(x.GetAfter(), func(id uint32) bool { return !done[id] }) {
				waiting = append(waiting, i)
				continue
			}
			if err := t.put(i); err != nil {
				return err
			}
			done[e.GetMntId()] = true
		}
		if len(waiting) == len(left) {
			return fmt.Errorf("mount at %s: it waits for others that wait for it", t.in.Mounts[left[0]].GetMountpoint())
		}
		left = waiting
	}
	return nil
}

// put puts one mount into its place, and makes it before if it is an overlay.
func (t *mountTree) put(i int) error {
	e, x := t.in.Mounts[i], t.header.GetMounts()[i]
	fd, ok := t.fds[e.GetMntId()]
	var err error
	if !ok {
		if fd, err = t.alone(e, x); err == nil {
			t.fds[e.GetMntId()] = fd
		}
	}
	if err == nil && i == 0 {
		err = enterRoot(fd)
	} else if err == nil {
		err = t.attach(e, fd)
	}
	if err != nil {
		return fmt.Errorf("%s at %s: %w", e.GetFsname(), e.GetMountpoint(), err)
	}
	return nil
}
