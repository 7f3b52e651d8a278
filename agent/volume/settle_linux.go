package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"
)

// undo takes a claim back. It looks at what has been done, for the claim may have been cut short anywhere.
func (s *Store) undo(r *Record) error {
	u := r.Unit
	_, err := os.Lstat(r.Parked)
	parked := r.Parked != "" && err == nil
	if r.Parked == "" || parked && (!r.Inside || r.Moved) { // else what is there is, or may be, what was there before
		if err := clearUnit(u); err != nil {
			return fmt.Errorf("removing what has arrived of %s: %w", u.Path(), err)
		}
		for _, d := range slices.Backward(r.Made) {
			err := os.Remove(d)
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EBUSY) {
				return err
			}
			if err == nil {
				if err := syncDir(path.Dir(d)); err != nil {
					return err
				}
			}
		}
	}
	if parked {
		if r.Moved { // from here on what is there is to stay, should this be cut short
			r.Moved = false
			if err := s.write(r); err != nil {
				return err
			}
		}
		if err := unpark(r); err != nil {
			return fmt.Errorf("bringing back %s from %s: %w", u.Path(), r.Parked, err)
		}
	}
	return s.forget(u)
}

// clearUnit removes a unit, but not the directory that it is.
func clearUnit(u Unit) error {
	root, err := openRoot(u.Dir)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	if u.Name != "" {
		return errors.Join(removeTree(int(root.Fd()), u.Name), root.Sync(), root.Close())
	}
	return errors.Join(emptyDir(root, func(n string) bool { return isOurs(n) || n == "lost+found" }), root.Sync(), root.Close())
}

func unpark(r *Record) error {
	if !r.Inside {
		if err := os.Rename(r.Parked, r.Unit.Path()); err != nil {
			return err
		}
		return syncDir(path.Dir(r.Parked))
	}
	if err := moveNames(r.Parked, r.Unit.Dir); err != nil {
		return err
	}
	return errors.Join(os.Remove(r.Parked), syncDir(r.Unit.Dir))
}

// Keep says that the copy for which units have arrived runs here: they are its own, and what had to make room for them goes.
func (s *Store) Keep(instance uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	list, err := s.of(instance)
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range list {
		if r.State != Arriving {
			continue
		}
		parked := r.Parked
		r.State, r.Made, r.Parked, r.Inside, r.Moved = Living, nil, "", false, false
		if err := s.write(r); err != nil {
			errs = append(errs, err)
			continue
		}
		if parked != "" {
			errs = append(errs, os.RemoveAll(parked))
		}
	}
	return errors.Join(errs...)
}

// Leave marks units whose program has moved away for good: a move that brings them again may replace them, as long as
// nobody has changed them. A unit that is gone gets no mark.
func (s *Store) Leave(units []Unit, instance uint64, owner string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, u := range units {
		err := unix.Lsetxattr(u.Path(), markName, []byte(owner), 0)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
			errs = append(errs, fmt.Errorf("%s: extended attribute %s: %w", u.Path(), markName, err))
			continue
		}
		r, err := identity(u) // after the attribute, which changes the time
		if err == nil {
			r.State, r.Instance, r.Owner = Stale, instance, owner
			err = s.write(&r)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
