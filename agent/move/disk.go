package move

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"

	"github.com/zeebo/xxh3"

	"migrate/agent/volume"
	"migrate/coordinator/handoff"
)

// Record is what is durably known of one migration on one side.
type Record struct {
	Role         handoff.Role            `json:"role"`
	BootID       string                  `json:"boot_id"`
	Workload     string                  `json:"workload"`
	Epoch        uint64                  `json:"epoch"` // before the commit
	PeerInstance uint64                  `json:"peer_instance"`
	Peer         json.RawMessage         `json:"peer,omitempty"`    // agentapi.NodeInfo
	Options      json.RawMessage         `json:"options,omitempty"` // agentapi.MoveOptions
	Source       handoff.SourceDisk      `json:"source"`
	Destination  handoff.DestinationDisk `json:"destination"`
	Handle       Handle                  `json:"handle"`
	Units        []volume.Unit           `json:"units,omitempty"` // that a source brings over
}

// ref names the copy that the record is about.
func (r *Record) ref() handoff.Ref {
	if r.Role == handoff.RoleSource {
		return r.Source.Ref
	}
	return r.Destination.Ref
}

// A file holds a record in two slots of fixed size, allocated when the file is made. A write goes to the slot that
// holds the older record and is one flush; a crash in the middle of it leaves the newer record whole.
//
//	slot   offset 0      4      8             16     20        24              32
//	              +------+------+-------------+------+---------+---------------+---- - - - ---+
//	              | MGRC | ver  | sequence    | len  | 0       | xxh3 of rest  | len bytes    |
//	              +------+------+-------------+------+---------+---------------+---- - - - ---+
//
// Little-endian; the sum is over the 24 bytes before it and the content.
type file struct {
	f   *os.File
	seq uint64
}

const (
	slotSize    = 64 << 10
	slotHeader  = 32
	slotMagic   = 0x4352474d // "MGRC"
	slotVersion = 1
)

// ErrNoRecord means that a record's file holds no record: it was made and never written.
var ErrNoRecord = errors.New("the file holds no record")

// recordPath is where the record of a migration is.
func recordPath(dir string, ref handoff.Ref, role handoff.Role) string {
	return filepath.Join(dir, fmt.Sprintf("%d-%s-%v", ref.Incarnation, url.PathEscape(ref.Migration), role))
}

// create makes the file with room for both slots, durably.
func create(path string) (_ *file, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("making record %s: %w", path, err), f.Close(), os.Remove(path))
		}
	}()
	if _, err = f.Write(make([]byte, 2*slotSize)); err != nil {
		return nil, err
	}
	if err = f.Sync(); err != nil {
		return nil, err
	}
	return &file{f: f}, syncDir(filepath.Dir(path))
}

// claim makes the file for the first record of a migration. One that an order like this one has left there, on which nothing
// rests yet, is taken over.
func claim(rec *Record, path string) (*file, error) {
	f, err := create(path)
	if !errors.Is(err, os.ErrExist) {
		return f, err
	}
	f, old, err := open(path)
	if errors.Is(err, ErrNoRecord) { // it was made and never written
		if err := os.Remove(path); err != nil {
			return nil, err
		}
		return create(path)
	}
	if err != nil {
		return nil, err
	}
	if old.Role != rec.Role || old.ref() != rec.ref() || old.Source.Stage > handoff.SourceClaimed || old.Destination.Stage > handoff.DestinationExpects {
		return nil, errors.Join(fmt.Errorf("record %s: another one of this migration, for %v, is there already", path, old.ref()), f.f.Close())
	}
	return f, nil
}

// open reads the newest record of a file.
func open(path string) (*file, *Record, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, nil, err
	}
	r := &file{f: f}
	b := make([]byte, 2*slotSize)
	if n, err := f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, errors.Join(fmt.Errorf("record %s: %w", path, err), f.Close())
	} else if n < len(b) {
		return nil, nil, errors.Join(fmt.Errorf("record %s: %w", path, ErrNoRecord), f.Close()) // the crash hit create
	}
	var content []byte
	for i := range 2 {
		if seq, c, ok := parseSlot(b[i*slotSize : (i+1)*slotSize]); ok && seq > r.seq {
			r.seq, content = seq, c
		}
	}
	if r.seq == 0 {
		return nil, nil, errors.Join(fmt.Errorf("record %s: %w", path, ErrNoRecord), f.Close())
	}
	var rec Record
	if err := json.Unmarshal(content, &rec); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("record %s: %w", path, err), f.Close())
	}
	return r, &rec, nil
}

// parseSlot returns the content of a slot that was written whole.
func parseSlot(b []byte) (seq uint64, content []byte, ok bool) {
	le := binary.LittleEndian
	if len(b) < slotHeader || le.Uint32(b) != slotMagic || le.Uint32(b[4:]) != slotVersion {
		return 0, nil, false
	}
	n := le.Uint32(b[16:])
	if uint64(n) > uint64(len(b)-slotHeader) {
		return 0, nil, false
	}
	content = b[slotHeader : slotHeader+n]
	if le.Uint64(b[24:]) != xxh3.HashSeed(content, xxh3.Hash(b[:24])) {
		return 0, nil, false
	}
	return le.Uint64(b[8:]), content, true
}

// write makes rec the file's record, durably. After an error the record before it still stands.
func (r *file) write(rec *Record) error {
	content, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("record %s: %w", r.f.Name(), err)
	}
	if len(content) > slotSize-slotHeader {
		return fmt.Errorf("record %s: %d bytes, there is room for %d", r.f.Name(), len(content), slotSize-slotHeader)
	}
	le := binary.LittleEndian
	b := make([]byte, slotHeader, slotHeader+len(content))
	le.PutUint32(b, slotMagic)
	le.PutUint32(b[4:], slotVersion)
	le.PutUint64(b[8:], r.seq+1)
	le.PutUint32(b[16:], uint32(len(content)))
	le.PutUint64(b[24:], xxh3.HashSeed(content, xxh3.Hash(b[:24])))
	// Slot by parity: the one that does not hold the newest record.
	if _, err := r.f.WriteAt(append(b, content...), int64((r.seq+1)%2)*slotSize); err != nil {
		return fmt.Errorf("record: %w", err)
	}
	if err := flush(r.f); err != nil {
		return fmt.Errorf("flushing record %s: %w", r.f.Name(), err)
	}
	r.seq++
	return nil
}

// remove deletes the record, durably.
func (r *file) remove() error {
	return errors.Join(os.Remove(r.f.Name()), r.f.Close(), syncDir(filepath.Dir(r.f.Name())))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
