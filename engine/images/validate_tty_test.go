package images

import (
	"strings"
	"testing"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/tty"
	"google.golang.org/protobuf/proto"

	"migrate/engine/images/imagespb"
)

func TestValidateTerminals(t *testing.T) {
	info := func(id, index uint32, cc int) *tty.TtyInfoEntry {
		return &tty.TtyInfoEntry{Id: proto.Uint32(id), Pty: &tty.TtyPtyEntry{Index: proto.Uint32(index)}, Termios: &tty.TermiosEntry{CCc: make([]uint32, cc)}}
	}
	file := []*fdinfo.FileEntry{{Tty: &tty.TtyFileEntry{TtyInfoId: proto.Uint32(1)}}}
	for _, c := range []struct {
		name  string
		info  *tty.TtyInfoEntry
		extra *imagespb.Terminal
		want  string
	}{
		{"good", info(1, 3, 19), &imagespb.Terminal{Id: 1}, ""},
		{"other id", info(1, 3, 19), &imagespb.Terminal{Id: 2}, "id"},
		{"no id", info(0, 3, 19), &imagespb.Terminal{}, "id"},
		{"index", info(1, 1<<20, 19), &imagespb.Terminal{Id: 1}, "pty.index"},
		{"control characters", info(1, 3, 20), &imagespb.Terminal{Id: 1}, "c_cc"},
		{"input", info(1, 3, 19), &imagespb.Terminal{Id: 1, Partial: make([]byte, 1<<19)}, "input"},
		{"output", info(1, 3, 19), &imagespb.Terminal{Id: 1, Output: make([]byte, 1<<19)}, "output"},
		{"not the file's", info(2, 3, 19), &imagespb.Terminal{Id: 2}, "tty_info_id"},
	} {
		err := validateTTYs([]*tty.TtyInfoEntry{c.info}, []*imagespb.Terminal{c.extra}, file)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestValidateSessionTerminals(t *testing.T) {
	tree := []*pstree.PstreeEntry{{Pid: proto.Uint32(5), Sid: proto.Uint32(5)}, {Pid: proto.Uint32(6), Sid: proto.Uint32(5)}}
	check := func(l ...*imagespb.SessionTerminal) error {
		return validateSessionTerminals(&imagespb.Header{Terminals: l}, tree)
	}
	if err := check(&imagespb.SessionTerminal{Sid: 5, Id: 1}); err != nil {
		t.Error(err)
	}
	for name, l := range map[string][]*imagespb.SessionTerminal{
		"not a leader": {{Sid: 6, Id: 1}}, "not in the tree": {{Sid: 7, Id: 1}}, "two": {{Sid: 5, Id: 1}, {Sid: 5, Id: 2}}, "no id": {{Sid: 5}},
	} {
		if check(l...) == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
