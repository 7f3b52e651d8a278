//go:build linux

package restore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"golang.org/x/sys/unix"

	"migrate/engine/images"
	"migrate/engine/images/imagespb"
	"migrate/engine/mem"
	"migrate/engine/ns"
	"migrate/engine/procfs"
	"migrate/engine/remote"
)

// sharedFD is the first number at which a process holds an object while it maps it. Its own descriptors come last, so
// every number is free now.
const sharedFD = 200

// followObjects makes the objects of the skeleton those of a layout or checkpoint. All of them belong to the tree: the processes
// get what they have of them by mappings, descriptors and links.
func (s *Skeleton) followObjects(ctx context.Context, h *imagespb.Header) error {
	wanted := map[uint32]*imagespb.Object{}
	for _, r := range h.GetObjects() {
		wanted[r.GetId()] = r
	}
	for id, o := range s.objects {
		if wanted[id] == nil {
			delete(s.objects, id)
			if err := o.Close(); err != nil {
				return err
			}
		}
	}
	if err := s.followShm(h); err != nil { // first: a file there may have had other names
		return err
	}
	for _, r := range h.GetObjects() {
		if len(r.GetNames()) > 0 {
			continue
		}
		if o := s.objects[r.GetId()]; o != nil {
			if err := o.Follow(r); err != nil {
				return err
			}
			continue
		}
		env := mem.ObjectEnv{Root: s.mountRoot(), Caller: s.procs[s.order[0]].trap}
		var o *mem.Object
		err := ns.AsOwner(s.own, func() (err error) {
			o, err = mem.NewObject(ctx, env, r)
			return err
		})
		if err != nil {
			return err
		}
		s.objects[r.GetId()] = o
	}
	return nil
}

// followShm makes the tree's own /dev/shm that of a layout or checkpoint.
func (s *Skeleton) followShm(h *imagespb.Header) (err error) {
	for _, r := range h.GetObjects() {
		if len(r.GetNames()) == 0 {
			continue
		}
		if s.shm == nil {
			if s.shm, err = mem.OpenShm(s.parent.PID()); err != nil {
				return err
			}
		}
		if r.GetKind() != imagespb.Object_FILE {
			continue
		}
		if o := s.objects[r.GetId()]; o != nil {
			err = o.Follow(r)
		} else {
			s.objects[r.GetId()], err = s.shm.NewFile(r)
		}
		if err != nil {
			return err
		}
	}
	if s.shm == nil {
		return nil
	}
	return s.shm.Place(h.GetObjects(), func(id uint32) *os.File { return s.objects[id].File() })
}

// mountRoot is the root directory of the tree's mount namespace.
func (s *Skeleton) mountRoot() string {
	if s.has(unix.CLONE_NEWNS) {
		return s.root(s.order[0])
	}
	return procfs.Host.Path(s.env.Parent, "root")
}

// findNameless notes which files of a layout or checkpoint are objects, and which are reached from other processes alone.
func (s *Skeleton) findNameless(h *imagespb.Header, files []*fdinfo.FileEntry) {
	s.nameless, s.distant = map[uint32]uint32{}, map[uint32]distant{}
	for _, f := range h.GetFiles() {
		if f.GetObject() != 0 {
			s.nameless[f.GetId()] = f.GetObject()
		} else if f.GetVia() != 0 {
			s.distant[f.GetId()] = distant{via: int(f.GetVia())}
		}
	}
	for _, f := range files {
		if d, ok := s.distant[f.GetId()]; ok {
			d.path = f.GetReg().GetName()
			s.distant[f.GetId()] = d
		}
	}
}

// distant is a file that is in another mount namespace than the process which has it.
type distant struct {
	via  int // process in that namespace
	path string
}

// open opens it anew.
func (s *Skeleton) openDistant(d distant, flags int) (_ *os.File, err error) {
	p := s.procs[d.via]
	if p == nil {
		return nil, fmt.Errorf("%s is to be opened by way of process %d, which is not in the tree", d.path, d.via)
	}
	root, err := unix.Open(procfs.Host.OuterRoot(p.PID), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("root directory of process %d: %w", d.via, err)
	}
	defer func() { err = errors.Join(err, unix.Close(root)) }()
	name := strings.TrimLeft(d.path, "/")
	if name == "" {
		name = "."
	}
	fd, err := unix.Openat2(root, name, &unix.OpenHow{Flags: uint64(flags) | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return nil, fmt.Errorf("%s, by way of process %d: %w", d.path, d.via, err)
	}
	return os.NewFile(uintptr(fd), d.path), nil
}

// openObject opens an object anew.
func (s *Skeleton) openObject(id uint32, flags int) (*os.File, error) {
	o := s.objects[id]
	if o == nil {
		return nil, fmt.Errorf("object %d is not part of the checkpoint", id)
	}
	return o.Open(flags)
}

// openNameless opens a file that no name reaches; none if a name does.
func (s *Skeleton) openNameless(file uint32, flags int) (*os.File, error) {
	if d, ok := s.distant[file]; ok {
		return s.openDistant(d, flags)
	}
	if s.nameless[file] == 0 {
		return nil, nil
	}
	return s.openObject(s.nameless[file], flags)
}

// lendObject gives the process a descriptor of the object behind a mapping at a number.
func (s *Skeleton) lendObject(ctx context.Context, p *process, v *vma.VmaEntry, id uint32, fd int) (err error) {
	flags := unix.O_RDONLY
	if v.GetStatus()&images.VMAAnonShared != 0 || v.GetStatus()&images.VMAFileShared != 0 && v.GetFdflags()&unix.O_ACCMODE == unix.O_RDWR {
		flags = unix.O_RDWR
	}
	f, err := s.openObject(id, flags)
	if err != nil {
		return err
	}
	if err := p.lend(ctx, f, fd); err != nil {
		return fmt.Errorf("object %d: %w", id, err)
	}
	return nil
}

// lend gives the process a file at a number, and closes it here.
func (p *process) lend(ctx context.Context, f *os.File, fd int) error {
	return errors.Join(p.trap.Push(ctx, []remote.PushFile{{File: f, FD: fd, CloseOnExec: true}}), f.Close())
}

// lendDistant gives the process a descriptor of a mapped file of another mount namespace.
func (s *Skeleton) lendDistant(ctx context.Context, p *process, v *vma.VmaEntry, d distant, fd int) error {
	mode := unix.O_RDONLY
	if v.GetStatus()&images.VMAFileShared != 0 {
		mode = int(v.GetFdflags() & unix.O_ACCMODE)
	}
	f, err := s.openDistant(d, mode)
	if err != nil {
		return err
	}
	return p.lend(ctx, f, fd)
}

// settleObjects gives the objects what they have beside their content, after the last page.
func (s *Skeleton) settleObjects(h *imagespb.Header) error {
	for _, o := range s.objects {
		if err := o.Settle(); err != nil {
			return err
		}
	}
	if s.shm == nil {
		return nil
	}
	return s.shm.Settle(h.GetObjects())
}

// releaseObjects ends what was kept for the restore alone.
func (s *Skeleton) releaseObjects() error {
	var errs []error
	for _, o := range s.objects {
		errs = append(errs, o.Release(s.mountRoot()))
	}
	return errors.Join(errs...)
}

// abandonObjects gives up what was made: the restore has failed.
func (s *Skeleton) abandonObjects() error {
	var errs []error
	for _, o := range s.objects {
		errs = append(errs, o.Abandon())
	}
	s.objects = map[uint32]*mem.Object{}
	return errors.Join(append(errs, s.closeShm())...)
}

func (s *Skeleton) closeShm() error {
	if s.shm == nil {
		return nil
	}
	err := s.shm.Close()
	s.shm = nil
	return err
}

// attach appends the calls that attach System V shared memory to a process. Where a part is attached, the whole needs room
// for a moment; it is the same room each time.
func (s *Skeleton) attach(p *process, b *remote.Batch, c mem.Change) (*remote.Result, error) {
	o := s.objects[uint32(c.VMA.GetShmid())]
	if o == nil || o.Record().GetSegment() == nil {
		return nil, fmt.Errorf("%v: object %d is no segment of the checkpoint", c, c.VMA.GetShmid())
	}
	a := mem.Attachment{ID: o.Record().GetSegment().GetId(), Size: o.Record().GetSize()}
	if mem.NeedsHole(c, a.Size) {
		taken, err := p.mapped()
		if err != nil {
			return nil, err
		}
		hole, err := findHole(a.Size+pageSize, taken, spansOf(p.target))
		if err != nil {
			return nil, fmt.Errorf("%v: room for all of the segment: %w", c, err)
		}
		a.Hole = uint64(hole)
	}
	return mem.AddAttach(b, c, a)
}

// closeObjects lets go of the objects, which live on as what the processes have of them.
func (s *Skeleton) closeObjects() error {
	var errs []error
	for _, o := range s.objects {
		errs = append(errs, o.Close())
	}
	s.objects = map[uint32]*mem.Object{}
	return errors.Join(append(errs, s.closeShm())...)
}
