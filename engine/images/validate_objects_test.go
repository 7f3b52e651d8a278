package images

import (
	"strings"
	"testing"

	"migrate/engine/images/imagespb"
)

func TestValidateObjects(t *testing.T) {
	file := func(change func(*imagespb.Object)) []*imagespb.Object {
		o := &imagespb.Object{Id: 1, Kind: imagespb.Object_FILE, Path: "/a/b", Size: 5}
		change(o)
		return []*imagespb.Object{o}
	}
	for want, objects := range map[string][]*imagespb.Object{
		"":         file(func(*imagespb.Object) {}),
		"id":       file(func(o *imagespb.Object) { o.Id = 1 << 31 }),
		"kind":     file(func(o *imagespb.Object) { o.Kind = 99 }),
		"size":     file(func(o *imagespb.Object) { o.Size = 1 << 63 }),
		"path":     file(func(o *imagespb.Object) { o.Path = "/a/../b" }),
		"other":    file(func(o *imagespb.Object) { o.Kind, o.Other = imagespb.Object_LINK, "a" }),
		"huge":     file(func(o *imagespb.Object) { o.HugePage = 5000 }),
		"segment":  file(func(o *imagespb.Object) { o.Kind = imagespb.Object_SYSV }),
		"extents":  file(func(o *imagespb.Object) { o.Extents = []*imagespb.Extent{{Start: 5, End: 5}} }),
		"of a mem": file(func(o *imagespb.Object) { o.Kind, o.Path = imagespb.Object_MEMFD, strings.Repeat("x", 250) }),
	} {
		err := validateObjects(objects)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", want, err)
		}
	}
}
