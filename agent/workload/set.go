//go:build linux

package workload

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"google.golang.org/protobuf/encoding/protojson"

	agentapi "migrate/agent/api"
	"migrate/engine/ns"
	"migrate/engine/procfs"
)

// Errors of a Set; match with errors.Is.
var (
	ErrExists  = errors.New("this copy exists already")
	ErrUnknown = errors.New("no such copy on this host")
)

// Config of a Set.
type Config struct {
	Dir    string // of the records, such as /var/lib/migrate/workloads
	Cgroup string // below the v2 mount, such as "migrate"
}

// Set is all environments of this host.
type Set struct {
	cfg    Config
	bootID string

	mu   sync.Mutex
	envs map[uint64]*Env
}

// Stale is an environment of which only the record is left: its host was rebooted or its pid 1 was killed.
type Stale struct {
	Record Record
	Spec   *agentapi.WorkloadSpec
}

// Open takes up what an earlier run of the agent left: environments that still stand, and those of which only the
// record is left, which it removes.
func Open(cfg Config) (*Set, []Stale, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, nil, err
	}
	s := &Set{cfg: cfg, bootID: strings.TrimSpace(string(boot)), envs: map[uint64]*Env{}}
	entries, err := os.ReadDir(cfg.Dir)
	if err != nil {
		return nil, nil, err
	}
	var stale []Stale
	for _, d := range entries {
		gone, err := s.adopt(d.Name())
		if err != nil {
			return nil, nil, err
		}
		if gone != nil {
			stale = append(stale, *gone)
		}
	}
	return s, stale, nil
}

// adopt takes one environment up, or removes what is left of it and returns its record.
func (s *Set) adopt(name string) (*Stale, error) {
	dir := filepath.Join(s.cfg.Dir, name)
	e := &Env{set: s, dir: dir}
	b, err := os.ReadFile(filepath.Join(dir, "record.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, os.RemoveAll(dir) // its first record was never written, so nothing was made
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, &e.rec); err != nil {
		return nil, fmt.Errorf("%s/record.json: %w", dir, err)
	}
	if strconv.FormatUint(e.rec.Instance, 10) != name {
		return nil, fmt.Errorf("%s/record.json: it is of instance %d", dir, e.rec.Instance)
	}
	e.spec = &agentapi.WorkloadSpec{}
	if err := protojson.Unmarshal(e.rec.Spec, e.spec); err != nil {
		return nil, fmt.Errorf("%s/record.json: spec: %w", dir, err)
	}
	if !s.stands(&e.rec) {
		stale := &Stale{Record: e.rec, Spec: e.spec}
		if cg, err := ns.MakeCgroup(e.rec.Cgroup); err != nil {
			return nil, err
		} else if err := errors.Join(cg.Kill(), cg.Remove()); err != nil {
			return nil, err
		}
		return stale, os.RemoveAll(dir)
	}
	if e.init, err = ns.Adopt(e.rec.InitPID); err != nil {
		return nil, err
	}
	s.envs[e.rec.Instance] = e
	return nil, nil
}

// stands tells whether the pid 1 of the record still runs.
func (s *Set) stands(r *Record) bool {
	if r.BootID != s.bootID || r.InitPID == 0 {
		return false
	}
	st, err := procfs.Host.Stat(r.InitPID)
	return err == nil && st.StartTime == r.InitStart && st.State != 'Z' && st.State != 'X'
}

func (s *Set) dirOf(instance uint64) string {
	return filepath.Join(s.cfg.Dir, strconv.FormatUint(instance, 10))
}

func (s *Set) claim(e *Env) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.envs[e.rec.Instance] != nil {
		return fmt.Errorf("instance %d of %s: %w", e.rec.Instance, e.Name(), ErrExists)
	}
	if err := os.Mkdir(e.dir, 0o700); err != nil {
		return err
	}
	s.envs[e.rec.Instance] = e
	return nil
}

func (s *Set) forget(e *Env) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.envs, e.rec.Instance)
}

// Get returns the environment of a copy.
func (s *Set) Get(instance uint64) (*Env, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.envs[instance]
	if e == nil {
		return nil, fmt.Errorf("instance %d: %w", instance, ErrUnknown)
	}
	return e, nil
}

// Named returns the environments of a workload; during a move back there may be two.
func (s *Set) Named(name string) []*Env {
	var out []*Env
	for _, e := range s.All() {
		if e.Name() == name {
			out = append(out, e)
		}
	}
	return out
}

// All lists the environments.
func (s *Set) All() []*Env {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*Env, 0, len(s.envs))
	for _, e := range s.envs {
		out = append(out, e)
	}
	return out
}
