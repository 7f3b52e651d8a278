package images

import (
	"fmt"
	"math/bits"
	"path"
	"strings"

	"migrate/engine/images/imagespb"
)

const (
	maxObjects    = 1 << 20
	maxObjectPath = 4096 // PATH_MAX
	maxMemfdName  = 249  // MFD_NAME_MAX_LEN
	maxExtents    = 1 << 16
)

// validateObjects checks what a header tells of memory and files that no name reaches.
func validateObjects(objects []*imagespb.Object) error {
	if n := len(objects); n > maxObjects {
		return fmt.Errorf("migrate.img: header.objects: %d entries", n)
	}
	seen := map[uint32]bool{}
	for i, o := range objects {
		if o.GetId() == 0 || o.GetId() >= 1<<31 || seen[o.GetId()] {
			return fmt.Errorf("migrate.img: header.objects[%d].id: %d is out of bounds or stands twice", i, o.GetId())
		}
		seen[o.GetId()] = true
		if err := validateObject(o); err != nil {
			return fmt.Errorf("migrate.img: header.objects[%d] (%d): %w", i, o.GetId(), err)
		}
	}
	return nil
}

func validateObject(o *imagespb.Object) error {
	if _, ok := imagespb.Object_Kind_name[int32(o.GetKind())]; !ok {
		return fmt.Errorf("kind: %d", o.GetKind())
	}
	if o.GetSize() >= 1<<63 {
		return fmt.Errorf("size: %d", o.GetSize())
	}
	if h := o.GetHugePage(); h != 0 && (bits.OnesCount64(h) != 1 || h < PageSize || h > 1<<40) {
		return fmt.Errorf("huge_page: %d", h)
	}
	for field, s := range map[string]string{"path": o.GetPath(), "other": o.GetOther()} {
		if len(s) >= maxObjectPath || strings.Contains(s, "\x00") {
			return fmt.Errorf("%s: %d bytes, or with a zero byte", field, len(s))
		}
	}
	switch o.GetKind() {
	case imagespb.Object_MEMFD:
		if len(o.GetPath()) > maxMemfdName {
			return fmt.Errorf("path: the name of a memfd of %d bytes", len(o.GetPath()))
		}
	case imagespb.Object_LINK:
		if !isClean(o.GetOther()) {
			return fmt.Errorf("other: %.100q is no path from the root", o.GetOther())
		}
		fallthrough
	case imagespb.Object_FILE, imagespb.Object_DIRECTORY, imagespb.Object_SYMLINK:
		if !isClean(o.GetPath()) {
			return fmt.Errorf("path: %.100q is no path from the root", o.GetPath())
		}
	case imagespb.Object_SYSV:
		if o.GetSegment() == nil {
			return fmt.Errorf("segment: is missing")
		}
	}
	if err := validateNames(o); err != nil {
		return err
	}
	return validateExtents(o)
}

// ShmDir is where the names of objects lead to.
const ShmDir = "/dev/shm"

// validateNames makes sure that the names of an object lead nowhere else.
func validateNames(o *imagespb.Object) error {
	switch o.GetKind() {
	case imagespb.Object_FILE, imagespb.Object_DIRECTORY, imagespb.Object_SYMLINK:
	default:
		if len(o.GetNames()) > 0 {
			return fmt.Errorf("names: of a %v", o.GetKind())
		}
	}
	if n := len(o.GetNames()); n > maxObjects || n > 1 && o.GetKind() == imagespb.Object_DIRECTORY {
		return fmt.Errorf("names: %d", n)
	}
	for i, name := range o.GetNames() {
		root := name == ShmDir && o.GetKind() == imagespb.Object_DIRECTORY
		if len(name) >= maxObjectPath || !isClean(name) || !root && !strings.HasPrefix(name, ShmDir+"/") || strings.Contains(name, "\x00") {
			return fmt.Errorf("names[%d]: %.100q is no path in %s", i, name, ShmDir)
		}
	}
	return nil
}

func isClean(name string) bool {
	return strings.HasPrefix(name, "/") && name != "/" && path.Clean(name) == name
}

func validateExtents(o *imagespb.Object) error {
	if n := len(o.GetExtents()); n > maxExtents {
		return fmt.Errorf("extents: %d", n)
	}
	last := uint64(0)
	for i, e := range o.GetExtents() {
		if e.GetStart() < last || e.GetEnd() <= e.GetStart() || e.GetEnd() >= 1<<63 {
			return fmt.Errorf("extents[%d]: %d to %d", i, e.GetStart(), e.GetEnd())
		}
		last = e.GetEnd()
	}
	return nil
}
