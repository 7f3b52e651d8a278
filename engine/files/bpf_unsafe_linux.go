package files

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Commands of bpf(2) (include/uapi/linux/bpf.h).
const (
	bpfMapCreate     = 0
	bpfMapLookup     = 1
	bpfMapUpdate     = 2
	bpfMapNextKey    = 4
	bpfProgNextID    = 11
	bpfProgFDByID    = 13
	bpfMapFDByID     = 14
	bpfObjInfoByFD   = 15
	bpfMapFreeze     = 22
	bpfAttrSize      = 128 // of union bpf_attr, as far as it is used here; the rest is zero
	bpfMaxProgMapIDs = 1 << 12
)

// bpfCall makes a call with an attribute of 32-bit words, and returns what the call returned; words is read back.
func bpfCall(cmd int, words []uint32) (int, error) {
	var attr [bpfAttrSize]byte
	for i, w := range words {
		binary.NativeEndian.PutUint32(attr[4*i:], w)
	}
	r, _, e := unix.Syscall(unix.SYS_BPF, uintptr(cmd), uintptr(unsafe.Pointer(&attr)), bpfAttrSize)
	for i := range words {
		words[i] = binary.NativeEndian.Uint32(attr[4*i:])
	}
	if e != 0 {
		return -1, e
	}
	return int(r), nil
}

// bpfElement is BPF_MAP_LOOKUP_ELEM, BPF_MAP_UPDATE_ELEM or BPF_MAP_GET_NEXT_KEY: key may be nil for the last, other is the value or the
// next key.
func bpfElement(cmd, fd int, key, other []byte) error {
	attr := struct {
		fd, _             uint32
		key, other, flags uint64
		_                 [bpfAttrSize - 32]byte
	}{fd: uint32(fd)}
	var pin runtime.Pinner
	defer pin.Unpin()
	if len(key) > 0 {
		pin.Pin(&key[0])
		attr.key = uint64(uintptr(unsafe.Pointer(&key[0])))
	}
	pin.Pin(&other[0])
	attr.other = uint64(uintptr(unsafe.Pointer(&other[0])))
	_, _, e := unix.Syscall(unix.SYS_BPF, uintptr(cmd), uintptr(unsafe.Pointer(&attr)), bpfAttrSize)
	if e != 0 {
		return e
	}
	return nil
}

// bpfInfo is BPF_OBJ_GET_INFO_BY_FD: it fills info with the kernel's description of an object and returns its length.
func bpfInfo(fd int, info []byte) (int, error) {
	attr := struct {
		fd, size uint32
		info     uint64
		_        [bpfAttrSize - 16]byte
	}{fd: uint32(fd), size: uint32(len(info))}
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&info[0])
	attr.info = uint64(uintptr(unsafe.Pointer(&info[0])))
	_, _, e := unix.Syscall(unix.SYS_BPF, bpfObjInfoByFD, uintptr(unsafe.Pointer(&attr)), bpfAttrSize)
	if e != 0 {
		return 0, fmt.Errorf("BPF_OBJ_GET_INFO_BY_FD: %w", e)
	}
	return int(attr.size), nil
}

// bpfProgMaps lists the ids of the maps that a program uses (struct bpf_prog_info: nr_map_ids at 52, map_ids at 56).
func bpfProgMaps(fd int) ([]uint32, error) {
	const size, countAt, idsAt = 128, 52, 56
	var info [size]byte
	ids := make([]uint32, bpfMaxProgMapIDs)
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&ids[0])
	binary.NativeEndian.PutUint32(info[countAt:], bpfMaxProgMapIDs)
	binary.NativeEndian.PutUint64(info[idsAt:], uint64(uintptr(unsafe.Pointer(&ids[0]))))
	if _, err := bpfInfo(fd, info[:]); err != nil {
		return nil, err
	}
	return ids[:min(bpfMaxProgMapIDs, binary.NativeEndian.Uint32(info[countAt:]))], nil
}
