//go:build linux

package files

import (
	"context"
	"testing"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"google.golang.org/protobuf/proto"

	"migrate/engine/images"
)

func fdEntry(e *fdinfo.FileEntry, fd uint32) *fdinfo.FdinfoEntry {
	return &fdinfo.FdinfoEntry{Id: proto.Uint32(e.GetId()), Flags: proto.Uint32(0), Type: e.Type, Fd: proto.Uint32(fd)}
}

// FuzzOpen gives the Restorer records from outside: whatever they say, it must end with or without an error. Paths lead
// into an empty directory.
func FuzzOpen(f *testing.F) {
	for _, e := range []*fdinfo.FileEntry{
		{Type: fdinfo.FdTypes_REG.Enum(), Id: proto.Uint32(1)}, {Type: fdinfo.FdTypes_PIPE.Enum(), Id: proto.Uint32(1)},
		{Type: fdinfo.FdTypes_UNIXSK.Enum(), Id: proto.Uint32(1)}, {Type: fdinfo.FdTypes_TIMERFD.Enum(), Id: proto.Uint32(1)},
		{Type: fdinfo.FdTypes_EVENTFD.Enum(), Id: proto.Uint32(1)}, {Type: fdinfo.FdTypes_EVENTPOLL.Enum(), Id: proto.Uint32(1)},
	} {
		b, err := proto.MarshalOptions{AllowPartial: true}.Marshal(e)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, []byte{0, 16, 0, 0, 1, 0, 0, 0, 'x', 0, 0, 0, 0}, "pipe-0")
	}
	root := f.TempDir()
	f.Fuzz(func(t *testing.T, record, blob []byte, name string) {
		e := &fdinfo.FileEntry{}
		if (proto.UnmarshalOptions{AllowPartial: true}).Unmarshal(record, e) != nil {
			return
		}
		if e.GetType() == fdinfo.FdTypes_INETSK || e.GetType() == fdinfo.FdTypes_UNIXSK && len(e.Usk.GetName()) > 0 {
			return // would take addresses of this host
		}
		cp := &images.Checkpoint{Processes: []*images.Process{{PID: 1, FDs: []*fdinfo.FdinfoEntry{fdEntry(e, 3)}}},
			Files: []*fdinfo.FileEntry{e}, Blobs: map[string][]byte{name: blob}}
		r, err := NewRestorer(cp, Env{Root: func(int) string { return root }})
		if err != nil {
			return
		}
		_ = r.Open(context.Background())
		if err := r.Drop(); err != nil {
			t.Error(err)
		}
	})
}
