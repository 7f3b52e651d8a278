package volume

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"
)

// State is what a unit on this host is to its moves.
type State string

// States of a unit.
const (
	Arriving State = "arriving" // a move makes it; goes if that is given up
	Living   State = "living"   // it came with a move, and its program ran here
	Stale    State = "stale"    // its program has moved away: it may be replaced
)

// Record is what is durably known of a unit, in one file of the store's directory.
type Record struct {
	Unit     Unit   `json:"unit"`
	State    State  `json:"state"`
	Instance uint64 `json:"instance"` // of the copy that it arrives for, or has left
	Owner    string `json:"owner"`    // the migration, for people
	// Of a claim: what to undo, written before it is done.
	Made   []string `json:"made,omitempty"`   // directories that had to be made, outermost first; for a directory the last is its own
	Parked string   `json:"parked,omitempty"` // where what was there before is kept; empty: nothing was
	Inside bool     `json:"inside,omitempty"` // it is kept inside of the directory, which itself stays
	Moved  bool     `json:"moved,omitempty"`  // all of it is there, so what else is in the directory has arrived
	// Of a stale unit: how to know it again, and that nobody has changed it since.
	Dev    uint64 `json:"dev,omitempty"`
	Ino    uint64 `json:"ino,omitempty"`
	Newest int64  `json:"newest,omitempty"` // ctime in nanoseconds
}

// Store is the records of this host. Its methods may be called by several goroutines.
type Store struct {
	dir string
	mu  sync.Mutex
}

// OpenStore opens or makes the directory of records.
func OpenStore(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return &Store{dir: dir}, nil
}

// ErrOccupied is matched by the error of Claim when there is something that no move has made.
var ErrOccupied = errors.New("it is there, and no earlier move has left it behind")

// oursPrefix begins names that this package makes beside or in units.
const oursPrefix = ".migrate-"

// isOurs tells names at the root of a unit that are no part of it.
func isOurs(p string) bool { return strings.HasPrefix(p, oursPrefix) }

// markName is the extended attribute of a unit that was left behind; its value is the migration's id. What counts is the record:
// the attribute is for people, and for file systems that change hosts.
const markName = stalePrefix + "stale"

func (s *Store) pathOf(u Unit) string {
	return filepath.Join(s.dir, fmt.Sprintf("%016x.json", xxh3.HashString(u.Path())))
}

// read returns the record of a unit; nil for none.
func (s *Store) read(u Unit) (*Record, error) {
	b, err := os.ReadFile(s.pathOf(u))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var r Record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("record of %s: %w", u.Path(), err)
	}
	if r.Unit.Path() != u.Path() { // two paths of one hash: as good as no record
		return nil, nil
	}
	return &r, nil
}

func (s *Store) write(r *Record) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	p := s.pathOf(r.Unit)
	f, err := os.CreateTemp(s.dir, ".record-*")
	if err != nil {
		return err
	}
	_, werr := f.Write(b)
	if err := errors.Join(werr, f.Sync(), f.Close()); err != nil {
		return errors.Join(fmt.Errorf("record of %s: %w", r.Unit.Path(), err), os.Remove(f.Name()))
	}
	if err := os.Rename(f.Name(), p); err != nil {
		return err
	}
	return syncDir(s.dir)
}

// forget removes a record, durably.
func (s *Store) forget(u Unit) error {
	if err := os.Remove(s.pathOf(u)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncDir(s.dir)
}

// of lists the records that belong to a copy.
func (s *Store) of(instance uint64) ([]*Record, error) {
	names, err := filepath.Glob(filepath.Join(s.dir, "*.json"))
	if err != nil {
		return nil, err
	}
	var out []*Record
	for _, n := range names {
		b, err := os.ReadFile(n)
		if err != nil {
			return nil, err
		}
		var r Record
		if err := json.Unmarshal(b, &r); err != nil {
			return nil, fmt.Errorf("%s: %w", n, err)
		}
		if r.Instance == instance {
			out = append(out, &r)
		}
	}
	return out, nil
}

// free says whether a unit may be made, and how: nothing there, something empty, or what an earlier move has left.
func (s *Store) free(u Unit) (there, empty, left bool, err error) {
	st, err := os.Lstat(u.Path())
	if errors.Is(err, fs.ErrNotExist) {
		return false, false, false, nil
	}
	if err != nil {
		return false, false, false, err
	}
	if dir := u.Name == ""; st.IsDir() != dir || !dir && !st.Mode().IsRegular() {
		return true, false, false, nil
	}
	if u.Name == "" {
		names, err := os.ReadDir(u.Dir)
		if err != nil {
			return true, false, false, err
		}
		if !slices.ContainsFunc(names, func(e os.DirEntry) bool { return e.Name() != "lost+found" }) {
			return true, true, false, nil
		}
	}
	r, err := s.read(u)
	if err != nil || r == nil || r.State != Stale {
		return true, false, false, err
	}
	now, err := identity(u)
	if err != nil {
		return true, false, false, err
	}
	return true, false, now.Dev == r.Dev && now.Ino == r.Ino && now.Newest <= r.Newest, nil
}

// identity reads what a stale unit is known again by.
func identity(u Unit) (Record, error) {
	var st unix.Stat_t
	if err := unix.Lstat(u.Path(), &st); err != nil {
		return Record{}, fmt.Errorf("%s: %w", u.Path(), err)
	}
	at, _, _, err := newest(u)
	return Record{Unit: u, Dev: st.Dev, Ino: st.Ino, Newest: at}, err
}

// Check says whether Claim would take the unit. It touches nothing.
func (s *Store) Check(u Unit, overwrite bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	there, empty, left, err := s.free(u)
	if err == nil && there && !empty && !left && !overwrite {
		err = fmt.Errorf("%s: %w", u.Path(), ErrOccupied)
	}
	return err
}

// Claim makes room for a unit that arrives for a copy. What is there and was not left behind by an earlier move is put aside
// with overwrite, and refused (ErrOccupied) without. A unit that was claimed for the same copy stays as it is. Directories
// that have to be made become what like says of them; nil, or false, is root's, with mode 755.
func (s *Store) Claim(u Unit, instance uint64, owner string, overwrite bool, like func(dir string) (Entry, bool)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r, err := s.read(u); err != nil || r != nil && r.State == Arriving && r.Instance == instance {
		return err
	}
	there, empty, left, err := s.free(u)
	if err != nil {
		return err
	}
	r := &Record{Unit: u, State: Arriving, Instance: instance, Owner: owner}
	switch {
	case !there:
		r.Made, err = missingDirs(u)
	case empty: // the directory itself is not this move's
	case left:
		if u.Name == "" {
			r.Made = []string{u.Dir}
		}
	case !overwrite:
		return fmt.Errorf("%s: %w", u.Path(), ErrOccupied)
	default:
		r.Parked = path.Join(path.Dir(u.Path()), fmt.Sprintf("%s%d-%s", oursPrefix, instance, path.Base(u.Path())))
		if u.Name == "" {
			r.Made = []string{u.Dir}
		}
	}
	if err != nil {
		return err
	}
	if err := s.write(r); err != nil {
		return err
	}
	if left {
		if err := unix.Lremovexattr(u.Path(), markName); err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("%s: extended attribute %s: %w", u.Path(), markName, err)
		}
	}
	if err := s.place(r, like); err != nil {
		return errors.Join(err, s.undo(r))
	}
	return nil
}

// Claimed says whether a unit has been claimed for a copy.
func (s *Store) Claimed(u Unit, instance uint64) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.read(u)
	return r != nil && r.State == Arriving && r.Instance == instance, err
}

// missingDirs lists the directories that a unit needs and that are not there, outermost first.
func missingDirs(u Unit) ([]string, error) {
	var out []string
	for d := u.Dir; ; d = path.Dir(d) {
		_, err := os.Stat(d)
		if err == nil {
			slices.Reverse(out)
			return out, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		out = append(out, d)
	}
}

// place does what the record says.
func (s *Store) place(r *Record, like func(dir string) (Entry, bool)) error {
	if r.Parked != "" {
		err := unix.Renameat2(unix.AT_FDCWD, r.Unit.Path(), unix.AT_FDCWD, r.Parked, unix.RENAME_NOREPLACE)
		if r.Unit.Name == "" && (errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EXDEV)) { // a mount point, or part of a lower layer
			r.Parked, r.Inside, r.Made = path.Join(r.Unit.Dir, path.Base(r.Parked)), true, nil
			if err := s.write(r); err != nil {
				return err
			}
			if err = parkInside(r.Unit.Dir, r.Parked); err == nil {
				r.Moved = true
				err = s.write(r)
			}
		}
		if err != nil {
			return fmt.Errorf("putting %s aside: %w", r.Unit.Path(), err)
		}
	}
	for _, d := range r.Made {
		if err := makeDir(d, like); err != nil {
			return err
		}
		if err := syncDir(path.Dir(d)); err != nil {
			return err
		}
	}
	return syncDir(r.Unit.Dir)
}

// makeDir makes a directory, as the source has it.
func makeDir(dir string, like func(dir string) (Entry, bool)) error {
	if err := os.Mkdir(dir, 0o755); errors.Is(err, fs.ErrExist) {
		return nil
	} else if err != nil {
		return err
	}
	if like == nil {
		return nil
	}
	e, ok := like(dir)
	if !ok {
		return nil
	}
	return errors.Join(os.Lchown(dir, int(e.UID), int(e.GID)), unix.Chmod(dir, e.Mode&0o7777))
}

// parkInside moves all that is in a directory into one of its own.
func parkInside(dir, to string) error {
	if err := os.Mkdir(to, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return moveNames(dir, to)
}

// moveNames moves all that is in a directory to another one, but this package's own names and lost+found.
func moveNames(from, to string) error {
	names, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range names {
		if isOurs(n.Name()) || n.Name() == "lost+found" {
			continue
		}
		errs = append(errs, os.Rename(path.Join(from, n.Name()), path.Join(to, n.Name())))
	}
	return errors.Join(errs...)
}

// Abort removes what has arrived for a copy that never ran, and brings back what was there before. It may be called again.
func (s *Store) Abort(instance uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	list, err := s.of(instance)
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range list {
		if r.State == Arriving {
			errs = append(errs, s.undo(r))
		}
	}
	return errors.Join(errs...)
}
