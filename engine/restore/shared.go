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
	"migrate/engine/remote"
)

// sharedFD is the number at which a process holds an object of shared memory while it maps it. Its own descriptors come
// last, so every number is free now.
const sharedFD = 700

// sharedMemory gives the process a descriptor of the shared anonymous memory behind a mapping, and returns its number.
// All processes that share it map the same object: it is made by the first one, as a mapping, since that is the only
// way to make one that is not called memfd, and reached by the others through /proc/PID/map_files.
func (s *Skeleton) sharedMemory(ctx context.Context, p *process, v *vma.VmaEntry) (int, error) {
	f := s.shared[v.GetShmid()]
	if f == nil {
		var err error
		if f, err = makeShared(ctx, p, s.sharedSize[v.GetShmid()]); err != nil {
			return 0, fmt.Errorf("shared memory %d: %w", v.GetShmid(), err)
		}
		s.shared[v.GetShmid()] = f
	}
	if err := p.trap.Push(ctx, []remote.PushFile{{File: f, FD: sharedFD, CloseOnExec: true}}); err != nil {
		return 0, fmt.Errorf("shared memory %d: %w", v.GetShmid(), err)
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

// measureShared notes how large each object of shared anonymous memory has to be for all its mappings.
func (s *Skeleton) measureShared(layout *images.Layout) {
	for _, space := range layout.Spaces {
		for _, v := range space.MM.GetVmas() {
			if v.GetStatus()&images.VMAAnonShared != 0 {
				s.sharedSize[v.GetShmid()] = max(s.sharedSize[v.GetShmid()], v.GetPgoff()+v.GetEnd()-v.GetStart())
			}
		}
	}
}

// closeShared lets go of the objects, which live on as mappings.
func (s *Skeleton) closeShared() error {
	var errs []error
	for id, f := range s.shared {
		errs = append(errs, f.Close())
		delete(s.shared, id)
	}
	return errors.Join(errs...)
}
