package mem

import (
	"errors"
	"os"

	"migrate/engine/images/imagespb"
	"migrate/engine/procfs"
)

// object is the number of the object behind a mapping.
func (r *LayoutReader) object(p *procfs.Mapping) (uint32, error) {
	x, err := r.objects.addMapping(r.pid, p)
	if err != nil {
		return 0, r.unlessGone(err)
	}
	return x.record.Id, nil
}

// openObject describes a mapped file without a name.
func (r *LayoutReader) openObject(p *procfs.Mapping) (*File, *Refusal, error) {
	x, err := r.objects.addMapping(r.pid, p)
	if errors.Is(err, ErrNoObject) {
		return nil, refuseDeleted, nil
	}
	if errors.Is(err, errSecretClosed) {
		return nil, refuseSecret, nil
	}
	if errors.Is(err, ErrReachable) {
		return nil, refuseReplaced, nil
	}
	if err != nil {
		return nil, nil, r.unlessGone(err)
	}
	if err := x.describe(r.pid, false); err != nil {
		return nil, nil, err
	}
	return &File{Path: p.Path + deleted, Major: p.Major, Minor: p.Minor, Inode: p.Inode, Size: int64(x.record.Size), Mode: x.record.Mode, Object: x.record.Id, Huge: x.record.HugePage,
		Secret: x.record.Kind == imagespb.Object_SECRET}, nil, nil
}

// unlessGone makes the failure to look at a mapping of a process that has ended, or of one that was unmapped since, ErrGone.
func (r *LayoutReader) unlessGone(err error) error {
	if st, gone := procfs.Host.Stat(r.pid); gone != nil || st.State == 'Z' || errors.Is(err, os.ErrNotExist) {
		return errors.Join(ErrGone, err)
	}
	return err
}
