//go:build linux

package task

import (
	"fmt"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

func checkFS(c *checker) error {
	for _, name := range []string{"cwd", "root"} {
		path, err := c.fs.Link(c.p.PID, name)
		if err != nil {
			return err
		}
		if strings.HasSuffix(path, " (deleted)") || strings.HasPrefix(path, "(unreachable)") {
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
	if r.Path != nil {
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
