//go:build linux

package files

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	bpfmap_file "github.com/checkpoint-restore/go-criu/v8/crit/images/bpfmap-file"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// Types of maps that are carried, and flags of a descriptor (include/uapi/linux/bpf.h).
const (
	bpfHash, bpfArray         = 1, 2
	bpfReadOnly, bpfWriteOnly = 1 << 3, 1 << 4
	maxMapBytes               = 64 << 20 // keys and values of one map in an image
	maxMapValue               = 32 << 20
	bpfNameLen                = 16
)

// A BPF map is made anew with its elements; its id is another one then. What else is a BPF object is refused.
var kindBPFMap = &Kind{
	Name: "BPF map", Type: fdinfo.FdTypes_BPFMAP, Carried: true,
	Note:  "of type hash or array, with its elements, name and flags, frozen or not; its id changes; not one with BTF types or that a loaded program uses",
	match: func(d *description) bool { return d.anon("bpf-map") },
	check: checkBPFMap, dump: dumpBPFMap, open: openBPFMap,
}

// mapInfo is struct bpf_map_info as far as it matters.
type mapInfo struct {
	typ, id, key, value, max, flags uint32
	name                            string
	ifindex, btf                    uint32
	extra                           uint64
}

func mapInfoOf(fd int) (m mapInfo, err error) {
	var b [88]byte
	n, err := bpfInfo(fd, b[:])
	if err == nil && n < 40 {
		err = fmt.Errorf("the kernel tells %d bytes of the map", n)
	}
	word := func(at int) uint32 { return binary.NativeEndian.Uint32(b[at:]) }
	name, _, _ := strings.Cut(string(b[24:24+bpfNameLen]), "\x00")
	return mapInfo{word(0), word(4), word(8), word(12), word(16), word(20), name, word(40), word(64) | word(44), binary.NativeEndian.Uint64(b[80:])}, err
}

func checkBPFMap(_ context.Context, _ *Dumper, d *description) []problem {
	m, err := mapInfoOf(d.fd)
	if err != nil {
		return []problem{{reason: err.Error()}}
	}
	refuse := func(format string, args ...any) []problem {
		return []problem{{reason: fmt.Sprintf("BPF map %d (%s) ", m.id, m.name) + fmt.Sprintf(format, args...)}}
	}
	switch {
	case m.typ != bpfHash && m.typ != bpfArray:
		return refuse("is of type %d, neither a hash nor an array", m.typ)
	case m.btf != 0 || m.ifindex != 0:
		return refuse("has BTF types or belongs to a device")
	case uint64(m.key+m.value)*uint64(m.max) > maxMapBytes:
		return refuse("has room for more than %d bytes", maxMapBytes)
	}
	user, err := userOfMap(m.id)
	if err != nil {
		return []problem{{reason: err.Error()}}
	}
	if user != 0 {
		return refuse("is used by the loaded program %d", user)
	}
	return nil
}

// userOfMap is the id of a program that uses a map; 0 if there is none.
func userOfMap(id uint32) (uint32, error) {
	for prog := uint32(0); ; {
		next := []uint32{prog, 0}
		if _, err := bpfCall(bpfProgNextID, next); err != nil {
			if errors.Is(err, unix.ENOENT) {
				err = nil
			}
			return 0, err
		}
		prog = next[1]
		fd, err := bpfCall(bpfProgFDByID, []uint32{prog})
		if errors.Is(err, unix.ENOENT) {
			continue // it was unloaded
		}
		if err != nil {
			return 0, fmt.Errorf("BPF program %d: %w", prog, err)
		}
		maps, err := bpfProgMaps(fd)
		if err = errors.Join(err, unix.Close(fd)); err != nil {
			return 0, fmt.Errorf("BPF program %d: %w", prog, err)
		}
		if slices.Contains(maps, id) {
			return prog, nil
		}
	}
}

// A blob of a map is its elements, each a key and a value. It is named for the first record of the map.
func mapBlob(id uint32) string { return fmt.Sprintf("bpfmap-%d", id) }

func dumpBPFMap(_ context.Context, r *dump, d *description) (*fdinfo.FileEntry, error) {
	m, err := mapInfoOf(d.fd)
	if err != nil {
		return nil, err
	}
	info, err := d.fdinfo()
	if err != nil {
		return nil, err
	}
	owner, err := r.fown(d)
	if err != nil {
		return nil, err
	}
	if r.cp.Blobs[mapBlob(m.id)] == nil {
		blob, err := mapElements(m)
		if err != nil {
			return nil, fmt.Errorf("elements of BPF map %d: %w", m.id, err)
		}
		r.blob(mapBlob(m.id), append([]byte{}, blob...))
	}
	return &fdinfo.FileEntry{Bpf: &bpfmap_file.BpfmapFileEntry{Id: proto.Uint32(d.id), Flags: proto.Uint32(uint32(d.flags)), Pos: proto.Uint64(0), Fown: owner,
		MapType: proto.Uint32(m.typ), KeySize: proto.Uint32(m.key), ValueSize: proto.Uint32(m.value), MapId: proto.Uint32(m.id), MaxEntries: proto.Uint32(m.max),
		MapFlags: proto.Uint32(m.flags), Memlock: proto.Uint64(0), MapName: proto.String(m.name), Ifindex: proto.Uint32(0), MapExtra: proto.Uint64(m.extra),
		Frozen: proto.Bool(slices.Contains(info.Other, "frozen:\t1"))}}, nil
}

// mapElements reads a map by a descriptor of its own, since the tree's may be for writing only.
func mapElements(m mapInfo) (blob []byte, err error) {
	fd, err := bpfCall(bpfMapFDByID, []uint32{m.id})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	var key []byte
	next, value := make([]byte, m.key), make([]byte, m.value)
	for n := uint32(0); ; n++ {
		err := bpfElement(bpfMapNextKey, fd, key, next)
		if errors.Is(err, unix.ENOENT) {
			return blob, nil
		}
		if err == nil && n == m.max {
			err = errors.New("it changes while it is read")
		}
		if err == nil {
			err = bpfElement(bpfMapLookup, fd, next, value)
		}
		if err != nil {
			return nil, err
		}
		key = append(key[:0], next...)
		blob = append(append(blob, next...), value...)
	}
}

// openBPFMap opens a description of a map, which the first record of it makes.
func openBPFMap(_ context.Context, r *Restorer, e *fdinfo.FileEntry) error {
	base, ok := r.maps[e.Bpf.GetMapId()]
	if !ok {
		fd, err := newBPFMap(e.Bpf, r.cp.Blobs[mapBlob(e.Bpf.GetMapId())])
		if fd >= 0 {
			r.maps[e.Bpf.GetMapId()] = fd
		}
		if err != nil {
			return fmt.Errorf("BPF map %q: %w", e.Bpf.GetMapName(), err)
		}
		base = fd
	}
	m, err := mapInfoOf(base)
	if err != nil {
		return err
	}
	access := map[uint32]uint32{unix.O_RDONLY: bpfReadOnly, unix.O_WRONLY: bpfWriteOnly}[e.Bpf.GetFlags()&unix.O_ACCMODE]
	fd, err := bpfCall(bpfMapFDByID, []uint32{m.id, 0, access})
	if err != nil {
		return fmt.Errorf("BPF_MAP_GET_FD_BY_ID: %w", err)
	}
	r.put(e.GetId(), fd)
	return nil
}

// newBPFMap makes a map and fills it.
func newBPFMap(e *bpfmap_file.BpfmapFileEntry, blob []byte) (int, error) {
	size := uint64(e.GetKeySize()) + uint64(e.GetValueSize())
	if e.GetKeySize() == 0 || e.GetValueSize() == 0 || size > maxMapValue || uint64(len(blob))%size != 0 || uint64(len(blob)) > maxMapBytes || len(e.GetMapName()) >= bpfNameLen {
		return -1, fmt.Errorf("%d bytes of elements with keys of %d and values of %d bytes", len(blob), e.GetKeySize(), e.GetValueSize())
	}
	// union bpf_attr: type, sizes, entries, flags, inner_map_fd, numa_node, name[16], ifindex, btf (3), map_extra at word 16
	attr := []uint32{e.GetMapType(), e.GetKeySize(), e.GetValueSize(), e.GetMaxEntries(), e.GetMapFlags(), 0, 0}
	name := append([]byte(e.GetMapName()), make([]byte, bpfNameLen-len(e.GetMapName()))...)
	for ; len(name) > 0; name = name[4:] {
		attr = append(attr, binary.NativeEndian.Uint32(name))
	}
	fd, err := bpfCall(bpfMapCreate, attr)
	if err != nil {
		return -1, fmt.Errorf("BPF_MAP_CREATE: %w", err)
	}
	key := int(e.GetKeySize())
	for ; len(blob) > 0; blob = blob[size:] {
		if err := bpfElement(bpfMapUpdate, fd, blob[:key:key], blob[key:size]); err != nil {
			return fd, fmt.Errorf("BPF_MAP_UPDATE_ELEM: %w", err)
		}
	}
	if e.GetFrozen() {
		if _, err := bpfCall(bpfMapFreeze, []uint32{uint32(fd)}); err != nil {
			return fd, fmt.Errorf("BPF_MAP_FREEZE: %w", err)
		}
	}
	return fd, nil
}
