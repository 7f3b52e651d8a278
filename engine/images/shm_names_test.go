package images

import (
	"testing"

	"migrate/engine/images/imagespb"
)

// TestNamesOfObjects lets names lead nowhere but into /dev/shm.
func TestNamesOfObjects(t *testing.T) {
	const file, dir = imagespb.Object_FILE, imagespb.Object_DIRECTORY
	for _, c := range []struct {
		kind  imagespb.Object_Kind
		names []string
		good  bool
	}{
		{file, nil, true},
		{file, []string{"/dev/shm/a", "/dev/shm/d/b"}, true},
		{dir, []string{"/dev/shm"}, true},
		{file, []string{"/dev/shm"}, false},
		{file, []string{"/dev/shm/../x"}, false},
		{file, []string{"/dev/shmem"}, false},
		{file, []string{"/etc/passwd"}, false},
		{file, []string{"/dev/shm/a\x00"}, false},
		{dir, []string{"/dev/shm/a", "/dev/shm/b"}, false},
		{imagespb.Object_MEMFD, []string{"/dev/shm/a"}, false},
	} {
		o := &imagespb.Object{Id: 1, Kind: c.kind, Path: "/dev/shm/a", Names: c.names}
		if err := validateObjects([]*imagespb.Object{o}); (err == nil) != c.good {
			t.Errorf("%v %q: %v", c.kind, c.names, err)
		}
	}
}
