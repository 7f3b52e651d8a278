//go:build linux

package main

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	agentapi "migrate/agent/api"
	"migrate/engine/dump"
	"migrate/engine/files"
)

// outsideFlags are those about things that are half outside of the tree.
type outsideFlags struct {
	tty  string
	unix []string
}

// add adds them to a command; then is what the new terminal becomes.
func (o *outsideFlags) add(cmd *cobra.Command, then string) {
	f := cmd.Flags()
	f.StringVar(&o.tty, "tty", "", "new: a terminal whose other end is held by another program (terminal emulator, sshd, shell) is left behind for a\nnew one with the same settings: "+then)
	f.StringArrayVar(&o.unix, "external-unix", nil, "PATH=reconnect: a unix socket that is connected to PATH outside of the tree is connected anew, as the process that has it;\nPATH=null: its peer hangs up. PATH as the refusal names it, @NAME for an abstract address; may be repeated")
}

// parse checks them.
func (o *outsideFlags) parse() (newTerminals bool, external map[string]string, err error) {
	if o.tty != "" && o.tty != "new" {
		return false, nil, fmt.Errorf("--tty %q is not known: use new", o.tty)
	}
	external = map[string]string{}
	for _, u := range o.unix {
		i := strings.LastIndex(u, "=")
		if i <= 0 || u[i+1:] != files.Reconnect && u[i+1:] != files.HangUp {
			return false, nil, fmt.Errorf("--external-unix %q has not the form PATH=reconnect or PATH=null", u)
		}
		at, how := u[:i], u[i+1:]
		if external[at] != "" && external[at] != how {
			return false, nil, fmt.Errorf("--external-unix names %s twice: reconnect it, or let it hang up", at)
		}
		external[at] = how
	}
	check := agentapi.MoveOptions{ExternalUnix: external}
	return o.tty == "new", external, check.Check()
}

// setMove writes them into the options of a move.
func (o *outsideFlags) setMove(opts *agentapi.MoveOptions) (err error) {
	opts.NewTerminals, opts.ExternalUnix, err = o.parse()
	return err
}

// setDump writes them into the options of a dump.
func (o *outsideFlags) setDump(opts *dump.Options) (err error) {
	opts.NewTerminals, opts.ExternalUnix, err = o.parse()
	return err
}

var pipeName = regexp.MustCompile(`^pipe:\[(\d+)\]$`)

// externalFiles are the pipes and files of --external: by their names, as /proc/PID/fd shows them.
func externalFiles(list []string) (map[files.FileID]string, error) {
	out := map[files.FileID]string{}
	for _, name := range list {
		var st unix.Stat_t
		if m := pipeName.FindStringSubmatch(name); m != nil {
			ino, err := strconv.ParseUint(m[1], 10, 64)
			if err != nil {
				return nil, fmt.Errorf("--external %q: %w", name, err)
			}
			if st.Dev, err = pipeDevice(); err != nil {
				return nil, err
			}
			st.Ino = ino
		} else if err := unix.Stat(name, &st); err != nil {
			return nil, fmt.Errorf("--external %q is neither a pipe, such as pipe:[4711], nor a file: %w", name, err)
		}
		id := files.FileID{Dev: st.Dev, Ino: st.Ino}
		if other, twice := out[id]; twice && other != name {
			return nil, fmt.Errorf("--external %q and %q are one file", other, name)
		}
		out[id] = name
	}
	return out, nil
}

// pipeDevice is the number of the file system that all pipes are on.
func pipeDevice() (uint64, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return 0, fmt.Errorf("pipe: %w", err)
	}
	defer func() { _, _ = unix.Close(p[0]), unix.Close(p[1]) }() // made to ask
	var st unix.Stat_t
	err := unix.Fstat(p[0], &st)
	return st.Dev, err
}
