//go:build linux

package files

import (
	"testing"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/eventpoll"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"google.golang.org/protobuf/proto"

	"migrate/engine/images"
)

// FuzzSeenEdges: what a checkpoint says of seen edges is taken or refused, for at most as many targets as there are.
func FuzzSeenEdges(f *testing.F) {
	f.Add([]byte{}, 1)
	f.Add([]byte{1, 0, 0, 0}, 1)
	f.Add([]byte{1, 0, 0, 0, 0, 0, 0, 0}, 2)
	f.Add([]byte{1, 0, 0}, 1)
	f.Fuzz(func(t *testing.T, blob []byte, holders int) {
		const id, targets = 7, 2
		e := &fdinfo.FileEntry{Id: proto.Uint32(id), Epfd: &eventpoll.EventpollFileEntry{Id: proto.Uint32(id), Tfd: make([]*eventpoll.EventpollTfdEntry, targets)}}
		r := &Restorer{cp: &images.Checkpoint{Blobs: map[string][]byte{seenBlob(id): blob}}, holders: map[uint32][]int{id: make([]int, max(0, min(holders, 3)))}}
		seen, err := r.seenEdges(e)
		bad := len(blob)%4 != 0 || len(blob)/4 > targets
		if (err != nil) != bad || len(seen) > targets || holders != 1 && len(seen) > 0 {
			t.Errorf("%x with %d holders: %v, %v", blob, holders, seen, err)
		}
	})
}
