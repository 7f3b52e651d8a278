//go:build linux

package task

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine/images/imagespb"
	"migrate/engine/remote"
)

func checkFS(c *checker) error {
	for _, name := range []string{"cwd", "root"} {
		path, err := c.fs.Link(c.p.PID, name)
		if err != nil {
			return err
		}
		if strings.HasPrefix(path, "(unreachable)") {
			c.refuse(name, fmt.Sprintf("its directory %q does not exist any more", path), "")
		}
	}
	return nil
}

// dumpFS records the directories and the umask of the process, and of a thread that has its own (unshare(CLONE_FS)).
func dumpFS(d *dumper) error {
	if !d.leader {
		r, err := kcmp(d.Proc.PID, d.tid(), kcmpFS)
		if err != nil || r == 0 {
			return err
		}
	}
	s, err := d.FS.ThreadStatus(d.Proc.PID, d.tid())
	if err != nil {
		return err
	}
	var ids [2]uint32
	for i, name := range []string{"cwd", "root"} {
		if d.AddPath == nil {
			break
		}
		if ids[i], err = d.AddPath(d.ctx, fmt.Sprintf("%d/task/%d/%s", d.Proc.PID, d.tid(), name)); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if d.leader {
		d.proc.FS = &fs.FsEntry{Umask: proto.Uint32(s.Umask), CwdId: proto.Uint32(ids[0]), RootId: proto.Uint32(ids[1])}
	} else {
		d.thread.Extra.Fs = &imagespb.ThreadFS{Umask: s.Umask, CwdId: ids[0], RootId: ids[1]}
	}
	return nil
}

// restoreFS sets the directories from inside the process's mount namespace, whose root the skeleton has.
func restoreFS(r *restorer) error {
	if own := r.thread.Extra.GetFs(); own != nil && !r.leader {
		r.require(r.batch.Try(unix.SYS_UNSHARE, unix.CLONE_FS), "directories of its own")
		return r.setFS(&fs.FsEntry{RootId: proto.Uint32(own.GetRootId()), CwdId: proto.Uint32(own.GetCwdId()), Umask: proto.Uint32(own.GetUmask())})
	}
	if !r.leader || r.Proc.Second(r.Shared.FS) {
		return nil
	}
	e := r.Image.FS
	return r.setFS(e)
}

func (r *restorer) setFS(e *fs.FsEntry) error {
	cwdFile, rootFile, err := r.namelessDirs(e)
	if err != nil {
		return err
	}
	if cwdFile != nil || rootFile != nil {
		if err := r.enterNameless(e, cwdFile, rootFile); err != nil {
			return err
		}
	} else if r.Path != nil {
		root, err := r.Path(e.GetRootId())
		if err != nil {
			return fmt.Errorf("root: %w", err)
		}
		cwd, err := r.Path(e.GetCwdId())
		if err != nil {
			return fmt.Errorf("cwd: %w", err)
		}
		// The working directory is a path from the outer root, and entering it first allows one outside the root.
		r.require(r.batch.Try(unix.SYS_CHDIR, r.batch.String(cwd)), "working directory %s", cwd)
		if root != "/" {
			r.require(r.batch.Try(unix.SYS_CHROOT, r.batch.String(root)), "root %s", root)
		}
	}
	r.batch.Call(unix.SYS_UMASK, e.GetUmask())
	return nil
}

// namelessDirs opens those of the two directories that were deleted.
func (r *restorer) namelessDirs(e *fs.FsEntry) (cwd, root *os.File, err error) {
	if r.Nameless == nil {
		return nil, nil, nil
	}
	const flags = unix.O_PATH | unix.O_DIRECTORY
	if cwd, err = r.Nameless(e.GetCwdId(), flags); err != nil {
		return nil, nil, fmt.Errorf("cwd: %w", err)
	}
	if root, err = r.Nameless(e.GetRootId(), flags); err != nil {
		return nil, nil, fmt.Errorf("root: %w", err)
	}
	return cwd, root, nil
}

// enterNameless enters directories of which at least one was deleted; nil stands for one that has a path. Both are open, at free
// numbers, before either is entered.
func (r *restorer) enterNameless(e *fs.FsEntry, cwdFile, rootFile *os.File) (err error) {
	fd := 2
	open := func(file *os.File, id uint32) (any, error) {
		if file != nil {
			fd = freeFDFrom(r.Image, uint32(fd+1))
			defer func() { err = errors.Join(err, file.Close()) }()
			return fd, r.caller.Push(r.ctx, []remote.PushFile{{File: file, FD: fd, CloseOnExec: true}})
		}
		name, err := r.Path(id)
		if err != nil {
			return nil, err
		}
		opened := r.batch.Try(unix.SYS_OPENAT, unix.AT_FDCWD, r.batch.String(name), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		r.require(opened, "directory %s", name)
		return opened, nil
	}
	cwd, err := open(cwdFile, e.GetCwdId())
	if err != nil {
		return fmt.Errorf("cwd: %w", err)
	}
	root, err := open(rootFile, e.GetRootId())
	if err != nil {
		return fmt.Errorf("root: %w", err)
	}
	r.batch.Call(unix.SYS_FCHDIR, root)
	r.require(r.batch.Try(unix.SYS_CHROOT, r.batch.String(".")), "root")
	r.batch.Call(unix.SYS_FCHDIR, cwd)
	r.batch.Call(unix.SYS_CLOSE, cwd)
	r.batch.Call(unix.SYS_CLOSE, root)
	return nil
}
