// Package boot turns a freshly forked process into the pid 1 of a part of the lab: of the switch, of the clients' namespace,
// or of a virtual host. It runs in that process only, before anything else does.
//
// A host is booted in two steps, because a Go program has several threads and a cgroup or time namespace is entered by one
// thread alone. The first step (Host) builds the root from an overlay over the machine's own, enters the namespaces on one
// thread, and replaces the program by itself from that thread; what runs then (Ready, pid1.Serve) is wholly inside.
//
// Everything that is made here lives in namespaces of the new process: when it ends, the mounts, devices and clocks end with it.
// A failure is written to the report pipe, and the process exits; nothing has to be undone.
package boot

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"
)

// The descriptors that a booting process is given besides its stdin, stdout and stderr.
const (
	listenerFD = 3 // the socket on which its pid 1 will be asked
	reportFD   = 4 // a pipe: ReportOK, or why it failed
)

// specVariable carries the Spec to the booting process, as JSON.
const specVariable = "MIGRATE_LAB_SPEC"

// ReportOK is what a process that has booted writes to its report pipe, before closing it.
const ReportOK = "ok\n"

// Spec says what a process is to become.
type Spec struct {
	Name string `json:"name"`

	// For the switch: if not empty, a directory on which to mount a tmpfs for the hosts' disks, because the state
	// directory lies on a file system that cannot hold an overlay's upper layer.
	DiskMount string `json:"disk_mount,omitempty"`

	// For clients: a file to be seen as /etc/hosts.
	HostsFile string `json:"hosts_file,omitempty"`

	// For a host: the disk and the mount point of its root, directories on the machine.
	Disk string `json:"disk,omitempty"`
	Root string `json:"root,omitempty"`
	// Hide is the lab's state directory, which no host may see.
	Hide string `json:"hide,omitempty"`
	// Share are directories of the machine that the host sees, read-only, where the machine has them.
	Share []string `json:"share,omitempty"`
	// Shared are such directories that the host may write.
	Shared []string `json:"shared,omitempty"`
	// Init and Program are files of the machine: what the host's pid 1 is, and what it finds as ProgramPath.
	Init    string `json:"init,omitempty"`
	Program string `json:"program,omitempty"`
	// Cgroup2 is where the machine has the v2 hierarchy mounted.
	Cgroup2 string `json:"cgroup2,omitempty"`
	// Hosts is the text of /etc/hosts.
	Hosts string `json:"hosts,omitempty"`
	// BootID and MachineID are UUIDs; a machine id is written without dashes.
	BootID    string `json:"boot_id,omitempty"`
	MachineID string `json:"machine_id,omitempty"`
	// Uptime is the value at which CLOCK_MONOTONIC starts, Suspended how much more CLOCK_BOOTTIME has.
	Uptime    time.Duration `json:"uptime,omitempty"`
	Suspended time.Duration `json:"suspended,omitempty"`
}

// Paths inside a host.
const (
	ProgramPath   = "/usr/local/bin/migrate"
	initPath      = "/run/lab/init"
	sessionCgroup = "session"
	agentCgroup   = "agent"
	initCgroup    = "init"
)

// SessionCgroup and AgentCgroup are the cgroups, inside a host, of commands run in it and of its agent. top is where the
// v2 hierarchy is mounted.
func SessionCgroup(top string) string { return top + "/" + sessionCgroup }

// AgentCgroup is described at SessionCgroup.
func AgentCgroup(top string) string { return top + "/" + agentCgroup }

// Env returns the environment that carries the spec to a booting process.
func (s Spec) Env() ([]string, error) {
	text, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("boot: encoding the description of %s: %w", s.Name, err)
	}
	return []string{specVariable + "=" + string(text)}, nil
}

func specFromEnv() (Spec, error) {
	var s Spec
	text, ok := os.LookupEnv(specVariable)
	if !ok {
		return s, errors.New("boot: this process was not started by a lab")
	}
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return s, fmt.Errorf("boot: %s: %w", specVariable, err)
	}
	return s, os.Unsetenv(specVariable)
}

// Fail reports why the boot failed.
func Fail(err error) {
	f := os.NewFile(reportFD, "report")
	if f == nil {
		return
	}
	_, _ = fmt.Fprintln(f, strings.TrimSpace(err.Error())) // when the reader is gone nobody wants to know
	_ = f.Close()
}

// Ready reports success and returns the listener for pid1.Serve.
func Ready() (*net.UnixListener, error) {
	l, err := net.FileListener(os.NewFile(listenerFD, "listener"))
	if err != nil {
		return nil, fmt.Errorf("boot: the socket of pid 1: %w", err)
	}
	ul, ok := l.(*net.UnixListener)
	if !ok {
		return nil, fmt.Errorf("boot: descriptor %d is a %T, want a unix socket", listenerFD, l)
	}
	f := os.NewFile(reportFD, "report")
	if _, err := f.WriteString(ReportOK); err != nil {
		return nil, fmt.Errorf("boot: report: %w", err)
	}
	return ul, f.Close()
}
