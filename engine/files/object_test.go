//go:build linux

package files

import (
	"context"
	"fmt"
	"os"
	"testing"

	"migrate/engine/images/imagespb"
	"migrate/engine/mem"
)

// copies are the copies of the objects of the last checkpoint.
var copies = copySink{}

// copySink puts pages into copies of objects.
type copySink map[uint32]*mem.Object

func (copySink) Buffer() []byte { return make([]byte, 0, mem.BatchBytes) }

func (c copySink) Send(_ context.Context, space uint32, runs []mem.Run, data []byte) error {
	id, _ := mem.IsObject(space)
	w := c[id].Writer()
	for _, r := range runs {
		if r.Zero {
			if err := w.ZeroPages(r.Addr, r.Pages); err != nil {
				return err
			}
			continue
		}
		n := int(r.Pages) * mem.PageSize
		if err := w.WritePages(r.Addr, data[:n]); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

// copyObjects makes copies of the objects of a stopped tree.
func copyObjects(t testing.TB, ctx context.Context, objects *mem.Objects, h *imagespb.Header) {
	t.Helper()
	records, err := objects.Records(true)
	if err != nil {
		t.Fatal(err)
	}
	h.Objects, copies = records, copySink{}
	for _, r := range records {
		if copies[r.Id], err = mem.NewObject(ctx, mem.ObjectEnv{Root: "/"}, r); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = copies[r.Id].Close() })
	}
	if _, err := objects.Round(ctx, copies); err != nil {
		t.Fatal(err)
	}
	for _, c := range copies {
		if err := c.Settle(); err != nil {
			t.Fatal(err)
		}
	}
}

func openObject(id uint32, flags int) (*os.File, error) {
	if copies[id] == nil {
		return nil, fmt.Errorf("object %d was not copied", id)
	}
	return copies[id].Open(flags)
}
