// Package pid1 is the first process of a virtual host, and how others ask it to do things. It reaps, and it starts
// programs on request, with descriptors that the asker passes to it: the program is then a child of the host's pid 1,
// inside all of the host's namespaces, with exactly the asker's stdin, stdout and stderr and nothing in between.
//
// Requests arrive on a unix socket of type SOCK_SEQPACKET, one connection per request. Each packet is one JSON object of
// at most MaxPacket bytes, with descriptors beside it (SCM_RIGHTS):
//
//	asker                                  pid 1
//	request{spawn, argv, env, ...} +fds ->
//	                                    <- reply{pid} +pidfd        or reply{error, errno}
//	signal{15}                          ->                          (any number, for a program that is waited for)
//	                                    <- exit{code, signal}       then the connection is closed
//
// When the asker's end closes before the exit, the program's process group is killed; a daemon is not waited for and
// outlives the connection. Whoever can reach the socket is root of the host; it lies in a directory of mode 0700.
//
// One mutex guards the table of children; it is held from before a fork until the child is in the table, and while a child is
// reaped or signalled, so that an exit is never missed and no signal goes to a pid that was used again.
package pid1

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// MaxPacket bounds a packet, and so the arguments and environment of a program, in bytes.
const MaxPacket = 1 << 20

// maxFiles bounds the descriptors of one packet. The kernel's own bound is 253 (SCM_MAX_FD).
const maxFiles = 16

type operation int

const (
	opSpawn operation = iota + 1
	opFind
)

// Spawn describes a program to be started.
type Spawn struct {
	// Path is the program's file. If it is empty, Argv[0] is looked up in the search path.
	Path string   `json:"path,omitempty"`
	Argv []string `json:"argv"`
	Env  []string `json:"env"`
	Dir  string   `json:"dir,omitempty"`
	// Cgroup is the directory of the cgroup that the program is born in, as the pid 1 sees it; empty for the pid 1's own.
	Cgroup string `json:"cgroup,omitempty"`
	// Namespaces are CLONE_NEW* flags for namespaces that the program shall not share with the pid 1.
	Namespaces uintptr `json:"namespaces,omitempty"`
	// Service, if not empty, is a name under which the running program can be found again.
	Service string `json:"service,omitempty"`
	// Daemon says that the program outlives the connection and nobody waits for its exit.
	Daemon bool `json:"daemon,omitempty"`
	// Files become the descriptors 0, 1, 2, ... of the program. They are not closed by Start.
	Files []*os.File `json:"-"`
}

type request struct {
	Op    operation `json:"op"`
	Spawn *Spawn    `json:"spawn,omitempty"`
	Name  string    `json:"name,omitempty"`
}

type reply struct {
	PID   int           `json:"pid,omitempty"`
	Errno syscall.Errno `json:"errno,omitempty"`
	Error string        `json:"error,omitempty"`
}

type signalPacket struct {
	Signal int `json:"signal"`
}

// Exit is how a program ended.
type Exit struct {
	Code   int            `json:"code"`             // the exit code, when Signal is 0
	Signal syscall.Signal `json:"signal,omitempty"` // the signal that ended it, or 0
}

func exitOf(ws syscall.WaitStatus) Exit {
	if ws.Signaled() {
		return Exit{Signal: ws.Signal()}
	}
	return Exit{Code: ws.ExitStatus()}
}

// send writes one packet with descriptors.
func send(c *net.UnixConn, v any, files ...*os.File) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("pid1: encoding a packet: %w", err)
	}
	if len(data) > MaxPacket {
		return fmt.Errorf("pid1: arguments and environment take %d bytes, at most %d fit into a request", len(data), MaxPacket)
	}
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := c.WriteMsgUnix(data, oob, nil); err != nil {
		return fmt.Errorf("pid1: %w", err)
	}
	return nil
}

// receive reads one packet of at most max bytes into v and returns the descriptors that came with it, close-on-exec. The
// end of the connection is io.EOF.
func receive(c *net.UnixConn, max int, v any) ([]*os.File, error) {
	data, oob := make([]byte, max), make([]byte, unix.CmsgSpace(4*maxFiles))
	n, oobn, flags, _, err := c.ReadMsgUnix(data, oob)
	if err != nil {
		return nil, err
	}
	files, err := parseRights(oob[:oobn])
	if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = fmt.Errorf("pid1: a packet of more than %d bytes or %d descriptors", max, maxFiles)
	}
	if err == nil {
		if e := json.Unmarshal(data[:n], v); e != nil {
			err = fmt.Errorf("pid1: a malformed packet: %w", e)
		}
	}
	if err != nil {
		closeAll(files)
		return nil, err
	}
	return files, nil
}

func parseRights(oob []byte) ([]*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("pid1: control data of a packet: %w", err)
	}
	var files []*os.File
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue // not descriptors: nothing that was asked for
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // read or never used: nothing can be lost
	}
}

// watch closes the connection when ctx ends; stop must be called.
func watch(ctx context.Context, c *net.UnixConn) (stop func() bool) {
	return context.AfterFunc(ctx, func() { _ = c.Close() })
}

// because replaces the error of a closed connection by the reason for which ctx ended.
func because(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil && errors.Is(err, net.ErrClosed) {
		return context.Cause(ctx)
	}
	return err
}
