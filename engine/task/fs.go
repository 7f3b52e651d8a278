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

func dumpFS(d *dumper) error {
	s, err := d.FS.Status(d.Proc.PID)
	if err != nil {
		return err
	}
	e := &fs.FsEntry{Umask: proto.Uint32(s.Umask), CwdId: proto.Uint32(0), RootId: proto.Uint32(0)}
	d.proc.FS = e
	if d.AddPath == nil {
		return nil
	}
	for name, dst := range map[string]**uint32{"cwd": &e.CwdId, "root": &e.RootId} {
		id, err := d.AddPath(d.ctx, fmt.Sprintf("%d/%s", d.Proc.PID, name))
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		*dst = proto.Uint32(id)
	}
	return nil
}

// restoreFS sets the directories from inside the process's mount namespace, whose root the skeleton has.
func restoreFS(r *restorer) error {
	e := r.Image.FS
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
