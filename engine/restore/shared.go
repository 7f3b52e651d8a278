//go:build linux

package restore

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"golang.org/x/sys/unix"

	"migrate/engine/images"
	"migrate/engine/mem"
	"migrate/engine/remote"
)

// sharedFD is the number at which a process holds an object of shared memory while it maps it. Its own descriptors come
// last, so every number is free now.
const sharedFD = 700

// sharedMemory gives the process a descriptor of the shared anonymous memory behind a mapping, and returns its number.
// All processes that share it map the same object: it is made by the first one, as a mapping, since that is the only
// way to make one that is not called memfd, and reached by the others through /proc/PID/map_files.
func (s *Skeleton) sharedMemory(ctx context.Context, p *process, v *vma.VmaEntry) (int, error) {
	id := uint32(v.GetShmid())
	o := s.shared[id]
	if o == nil {
		f, err := makeShared(ctx, p, s.sharedSize[id])
		if err != nil {
			return 0, fmt.Errorf("shared memory %d: %w", id, err)
		}
		o = &object{f, mem.NewObjectWriter(f, id, s.sharedSize[id])}
		s.shared[id] = o
	}
	if err := p.trap.Push(ctx, []remote.PushFile{{File: o.file, FD: sharedFD, CloseOnExec: true}}); err != nil {
		return 0, fmt.Errorf("shared memory %d: %w", id, err)
	}
	return sharedFD, nil
}

// makeShared makes an object of shared anonymous memory.
func makeShared(ctx context.Context, p *process, size uint64) (_ *os.File, err error) {
	var b remote.Batch
	at := b.Call(unix.SYS_MMAP, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE, -1, 0)
	if err := p.trap.Run(ctx, &b); err != nil {
		return nil, err
	}
	start, err := at.Value()
	if err != nil {
		return nil, err
	}
	defer func() {
		var b remote.Batch
		b.Call(unix.SYS_MUNMAP, start, size)
		err = errors.Join(err, p.trap.Run(ctx, &b))
	}()
	return os.OpenFile(fmt.Sprintf("/proc/%d/map_files/%x-%x", p.PID, start, start+size), os.O_RDWR, 0)
}

// measureShared notes how large each object of shared anonymous memory is.
func (s *Skeleton) measureShared(layout *images.Layout) error {
	for _, f := range layout.Header.GetFiles() {
		if id, ok := mem.IsObject(f.GetId()); ok {
			s.sharedSize[id] = f.GetSize()
		}
	}
	for _, space := range layout.Spaces {
		for _, v := range space.MM.GetVmas() {
			if v.GetStatus()&images.VMAAnonShared != 0 && s.sharedSize[uint32(v.GetShmid())] == 0 {
				return fmt.Errorf("layout: mapping 0x%x of process %d is of shared memory %d, whose size is not told", v.GetStart(), space.PID, v.GetShmid())
			}
		}
	}
	return nil
}

// object is an object of shared anonymous memory.
type object struct {
	file   *os.File
	writer *mem.ObjectWriter
}

// closeShared lets go of the objects, which live on as mappings.
func (s *Skeleton) closeShared() error {
	var errs []error
	for _, o := range s.shared {
		errs = append(errs, o.file.Close())
	}
	s.shared = map[uint32]*object{}
	return errors.Join(errs...)
}
