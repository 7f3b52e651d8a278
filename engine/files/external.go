//go:build linux

package files

import (
	"context"
	"fmt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"google.golang.org/protobuf/proto"
)

// A file or pipe of the agent, such as the log of a workload, or of whoever restores a dump (--external): the record holds its name, and
// the agent at the destination opens its own, or the restore is given one (--inherit-fd).
var kindExternal = &Kind{
	Name: "file of the agent", Type: fdinfo.FdTypes_REG, Carried: true,
	Note:  "standard output and the like of a managed workload: attached to the agent of the destination; what a dump calls --external, which restore --inherit-fd gives",
	match: func(d *description) bool { return d.external != "" },
	dump: func(_ context.Context, r *dump, d *description) (*fdinfo.FileEntry, error) {
		e, err := r.regEntry(d, d.external)
		if err == nil {
			e.Reg.Ext, e.Reg.Size = proto.Bool(true), nil
		}
		return e, err
	},
	mine: func(e *fdinfo.FileEntry) bool { return e.Reg.GetExt() },
	open: func(_ context.Context, r *Restorer, e *fdinfo.FileEntry) error {
		if r.env.External == nil {
			return fmt.Errorf("nothing here stands for the external file %q", e.Reg.GetName())
		}
		f, err := r.env.External(e.Reg.GetName(), int(e.Reg.GetFlags()))
		if err != nil {
			return fmt.Errorf("the external file %q: %w", e.Reg.GetName(), err)
		}
		r.files[e.GetId()] = f
		return nil
	},
}
