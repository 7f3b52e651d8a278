// Package modules finds out which files of a kernel's modules are needed for some of them, in which order they are loaded, and
// which one the kernel means when it asks for one by an alias. All of that stands in the modules themselves, in the ELF section
// .modinfo ("key=value" strings that end with NUL; include/linux/module.h); modules.dep, which depmod(8) makes of it, is not in the
// Debian package.
package modules

import (
	"bytes"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Module is one module.
type Module struct {
	File    string   // where it is, below the directory that was read
	Needs   []string // names of the modules that it uses
	Aliases []string // patterns (fnmatch(3)) of what the kernel may ask for
}

// Table is a set of modules by name, with underscores for dashes.
type Table map[string]*Module

// Read returns all modules below a directory, which must not be compressed.
func Read(dir string) (Table, error) {
	t := Table{}
	err := filepath.WalkDir(dir, func(file string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(file) != ".ko" {
			return err
		}
		m, err := read(file)
		if err == nil {
			m.File, err = filepath.Rel(dir, file)
		}
		if err != nil {
			return fmt.Errorf("modules: %s: %w", file, err)
		}
		t[nameOf(strings.TrimSuffix(filepath.Base(file), ".ko"))] = m
		return nil
	})
	return t, err
}

func nameOf(s string) string { return strings.ReplaceAll(s, "-", "_") }

func read(file string) (_ *Module, err error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	section := f.Section(".modinfo")
	if section == nil {
		return nil, errors.New("there is no section .modinfo")
	}
	data, err := section.Data()
	if err != nil {
		return nil, err
	}
	return parse(data), nil
}

func parse(info []byte) *Module {
	m := &Module{}
	for entry := range bytes.SplitSeq(info, []byte{0}) {
		key, value, _ := strings.Cut(string(entry), "=")
		switch {
		case key == "alias":
			m.Aliases = append(m.Aliases, nameOf(value))
		case key == "depends" && value != "":
			for n := range strings.SplitSeq(value, ",") {
				m.Needs = append(m.Needs, nameOf(n))
			}
		}
	}
	return m
}

// Select returns the modules whose file is at one of the paths, which are directories or files without .ko, and all that they
// need. A path at which there is none is an error.
func (t Table) Select(paths ...string) (Table, error) {
	out := Table{}
	for _, p := range paths {
		found := false
		for name, m := range t {
			if m.File != p+".ko" && !strings.HasPrefix(m.File, p+"/") {
				continue
			}
			found = true
			order, err := t.Order(name)
			if err != nil {
				return nil, err
			}
			for _, n := range order {
				out[n] = t[n]
			}
		}
		if !found {
			return nil, fmt.Errorf("modules: the kernel has no module %s", p)
		}
	}
	return out, nil
}

// Find returns the names of the modules that the kernel, or modprobe(8), means by a name or an alias.
func (t Table) Find(alias string) []string {
	alias = nameOf(alias)
	if t[alias] != nil {
		return []string{alias}
	}
	var names []string
	for name, m := range t {
		if slices.ContainsFunc(m.Aliases, func(pattern string) bool { ok, err := path.Match(pattern, alias); return ok && err == nil }) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Order returns the module and what it needs, in an order in which they can be loaded.
func (t Table) Order(name string) ([]string, error) {
	var out []string
	seen := map[string]bool{}
	var visit func(string) error
	visit = func(n string) error {
		if seen[n] {
			return nil
		}
		seen[n] = true
		if t[n] == nil {
			return fmt.Errorf("modules: %s needs %s, which is missing", name, n)
		}
		for _, needed := range t[n].Needs {
			if err := visit(needed); err != nil {
				return err
			}
		}
		out = append(out, n)
		return nil
	}
	return out, visit(name)
}

// Write writes the table as JSON, for Load.
func (t Table) Write(w io.Writer) error { return json.NewEncoder(w).Encode(t) }

// Load reads what Write wrote.
func Load(r io.Reader) (t Table, err error) {
	if err := json.NewDecoder(r).Decode(&t); err != nil {
		return nil, fmt.Errorf("modules: the table: %w", err)
	}
	return t, nil
}
