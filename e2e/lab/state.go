package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultStateDir is where a lab keeps its disks and its state.
const DefaultStateDir = "/var/lib/migrate-lab"

// ErrNoLab means that there is no lab in the state directory.
var ErrNoLab = errors.New("no lab is up here")

// What the state directory holds. Only these are ever removed from it.
const (
	stateFile  = "lab.json"
	lockFile   = "lock"    // held by whoever changes the lab
	ownerFile  = "owner"   // held by the process whose lab it is
	hostsFile  = "hosts"   // the text of /etc/hosts
	logFile    = "log"     // what the lab's own processes write to stderr
	disksDir   = "disks"   // the hosts' disks; a tmpfs of the switch's where the file system holds no overlay
	rootsDir   = "roots"   // mount points of the hosts' roots, each in its host's mount namespace only
	socketsDir = "sockets" // of the pids 1
	caDir      = "ca"      // the cluster's certificate authority
	initFile   = "init"    // the program that the pids 1 are
)

var ours = []string{hostsFile, logFile, disksDir, rootsDir, socketsDir, caDir, initFile}

// books are the files that say what is there; they are removed last.
var books = []string{stateFile + ".new", stateFile, ownerFile, lockFile}

// state is what is known of a lab besides what the kernel knows. It is written, whole, before each resource is made.
type state struct {
	Hosts      int         `json:"hosts"`
	Servers    int         `json:"servers,omitempty"` // 0: the default
	Bandwidth  uint64      `json:"bandwidth_bytes_per_second,omitempty"`
	Program    string      `json:"program"`
	Agent      []string    `json:"agent"`
	AgentEnv   []string    `json:"agent_env,omitempty"`
	Unenrolled bool        `json:"unenrolled,omitempty"`
	Share      []string    `json:"share,omitempty"`
	Shared     []string    `json:"shared,omitempty"`
	Up         bool        `json:"up"`       // Up has ended well
	Detached   bool        `json:"detached"` // the lab outlives the process that made it
	Killed     []string    `json:"killed,omitempty"`
	Boots      map[int]int `json:"boots,omitempty"` // how often each host has booted
	Cuts       []Cut       `json:"cuts,omitempty"`
}

// servers is how many of the hosts, from the first, vote in the cluster.
func (s *state) servers() int {
	if s.Servers == 0 {
		return min(defaultServers, s.Hosts)
	}
	return s.Servers
}

func (s *state) killed(host string) bool { return slices.Contains(s.Killed, host) }

// canonical returns the one path of a directory that need not exist, so that a lab is found by whatever name it is given.
func canonical(dir string) (string, error) {
	if dir == "" {
		dir = DefaultStateDir
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("lab: state directory: %w", err)
	}
	existing, rest := dir, ""
	for {
		real, err := filepath.EvalSymlinks(existing)
		if err == nil {
			dir = filepath.Join(real, rest)
			break
		}
		if !errors.Is(err, os.ErrNotExist) {
			return "", fmt.Errorf("lab: state directory: %w", err)
		}
		existing, rest = filepath.Dir(existing), filepath.Join(filepath.Base(existing), rest)
	}
	if strings.ContainsAny(dir, `,:\ `+"\n\t") {
		return "", fmt.Errorf("lab: the state directory %q has a character in its name that mount options cannot hold", dir)
	}
	return dir, nil
}

// cgroupOf returns the cgroup of the lab with the given state directory. It follows from the directory's name alone, so
// that what a crashed lab has left can be found without its state.
func cgroupOf(dir string) (cgroup, error) {
	top, err := cgroup2Mount()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(dir))
	return cgroup(filepath.Join(top, "migrate-lab-"+hex.EncodeToString(sum[:6]))), nil
}

func readState(dir string) (*state, error) {
	path := filepath.Join(dir, stateFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w (%s): start one with migrate lab up", ErrNoLab, dir)
	} else if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	s := &state{}
	if err := json.Unmarshal(text, s); err != nil {
		return nil, fmt.Errorf("lab: %s: %w", path, err)
	}
	return s, nil
}

func writeState(dir string, s *state) error {
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("lab: encoding the state: %w", err)
	}
	path := filepath.Join(dir, stateFile)
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	return nil
}

// claim makes the state directory, or takes one that holds a lab or nothing. It never takes one with other things in it.
func claim(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	for _, e := range entries {
		if !slices.Contains(ours, e.Name()) && !slices.Contains(books, e.Name()) {
			return fmt.Errorf("lab: the state directory %s holds %q, which is no lab's; give an empty one", dir, e.Name())
		}
	}
	return nil
}

// removeState removes all of a lab's files, the state last, and the directory if it is then empty.
func removeState(dir string) error {
	for _, name := range slices.Concat(ours, books) {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("lab: %w", err)
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
		return fmt.Errorf("lab: %w", err)
	}
	return nil
}

// lock makes the caller the only one who changes the lab. A lock ends with its holder, however that ends.
func lock(ctx context.Context, dir string) (*os.File, error) {
	path := filepath.Join(dir, lockFile)
	// flock(2) can only be waited for by blocking a thread that no context can free, so it is asked for again and again.
	const again = 10 * time.Millisecond
	for {
		f, err := tryLock(path)
		if err == nil && stillThere(f, path) {
			return f, nil
		}
		if err == nil {
			_ = f.Close()
		} else if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("lab: another command is at work on the lab in %s: %w", dir, context.Cause(ctx))
		case <-time.After(again):
		}
	}
}

// tryLock takes a lock on the file, which ends with the process or when the file is closed; EWOULDBLOCK if another has it.
func tryLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close() // nothing was written
		return nil, fmt.Errorf("lab: locking %s: %w", path, err)
	}
	return f, nil
}

// stillThere tells whether the file that was locked is the one at path: a lab that went down has removed its own.
func stillThere(f *os.File, path string) bool {
	a, err1 := f.Stat()
	b, err2 := os.Stat(path)
	return err1 == nil && err2 == nil && os.SameFile(a, b)
}

func containsLine(text, line string) bool {
	for l := range strings.Lines(text) {
		if strings.TrimSpace(l) == line {
			return true
		}
	}
	return false
}
