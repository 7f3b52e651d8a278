package images

import (
	"fmt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/tty"

	"migrate/engine/images/imagespb"
)

// Bounds of terminals.
const (
	maxTTYs     = 1 << 20 // NR_UNIX98_PTY_MAX
	maxTTYIndex = 1 << 20
	maxTTYData  = 1 << 18 // bytes that wait in one direction; the kernel takes 4 KiB and some 64 KiB more
	numControl  = 19      // NCCS, control characters of a termios
	maxPath     = 4096
	maxHolder   = 256
)

// validateTTYs checks the terminals, and that each file of a terminal names one.
func validateTTYs(infos []*tty.TtyInfoEntry, extras []*imagespb.Terminal, files []*fdinfo.FileEntry) error {
	if len(infos) != len(extras) {
		return fmt.Errorf("tty-info.img: %d entries, migrate.img has %d terminals", len(infos), len(extras))
	}
	ids, holders := map[uint32]bool{}, map[string]bool{}
	for i, t := range infos {
		bad := func(field string, v any) error {
			return fmt.Errorf("tty-info.img: entry %d (id %d): %s: %v", i, t.GetId(), field, v)
		}
		x := extras[i]
		switch {
		case t.GetId() == 0 || ids[t.GetId()]:
			return bad("id", "is 0 or stands twice")
		case x.GetId() != t.GetId():
			return bad("id", fmt.Sprintf("is %d in migrate.img", x.GetId()))
		case t.GetPty().GetIndex() >= maxTTYIndex:
			return bad("pty.index", t.GetPty().GetIndex())
		case t.GetSid() > maxID || t.GetPgrp() > maxID:
			return bad("sid, pgrp", fmt.Sprint(t.GetSid(), t.GetPgrp()))
		case len(x.GetPath()) > maxPath:
			return bad("path", fmt.Sprintf("%d bytes", len(x.GetPath())))
		case len(x.GetHolder()) > maxHolder || holders[x.GetHolder()]:
			return bad("holder", "stands twice or is too long")
		case x.GetFresh() && x.GetHolder() == "":
			return bad("holder", "a new terminal has none")
		}
		for name, e := range map[string]*tty.TermiosEntry{"termios": t.Termios, "termios_locked": t.TermiosLocked} {
			if e != nil && len(e.GetCCc()) != numControl {
				return bad(name+".c_cc", fmt.Sprintf("%d characters instead of %d", len(e.GetCCc()), numControl))
			}
		}
		input := len(x.GetPartial()) + len(x.GetPending())
		for _, l := range x.GetLines() {
			input += len(l.GetData()) + 1
		}
		if input > maxTTYData || len(x.GetOutput()) > maxTTYData {
			return bad("input, output", fmt.Sprintf("%d, %d bytes", input, len(x.GetOutput())))
		}
		ids[t.GetId()] = true
		holders[x.GetHolder()] = x.GetHolder() != "" && !x.GetFresh()
	}
	for i, f := range files {
		if f.Tty != nil && !ids[f.Tty.GetTtyInfoId()] {
			return fmt.Errorf("files.img: entry %d (id %d): tty_info_id: %d is not in tty-info.img", i, f.GetId(), f.Tty.GetTtyInfoId())
		}
	}
	return nil
}

// validateSessionTerminals checks the controlling terminals: one for a session, which its leader in the tree holds.
func validateSessionTerminals(h *imagespb.Header, tree []*pstree.PstreeEntry) error {
	if len(h.GetTerminals()) == 0 {
		return nil
	}
	leaders := map[uint32]bool{}
	for _, e := range tree {
		leaders[e.GetPid()] = e.GetPid() == e.GetSid()
	}
	ids := map[uint32]bool{}
	for i, t := range h.GetTerminals() {
		if !leaders[t.GetSid()] || t.GetId() == 0 || ids[t.GetId()] || len(t.GetPath()) > maxPath {
			return fmt.Errorf("migrate.img: header.terminals[%d]: terminal %d (path of %d bytes) of session %d: no leader of a session that is in the tree, or not the only one",
				i, t.GetId(), len(t.GetPath()), t.GetSid())
		}
		leaders[t.GetSid()] = false // a session has one
		ids[t.GetId()] = true
	}
	return nil
}
