package procfs

import (
	"bytes"
	"fmt"
	"io"
	"strings"
)

// Protection bits of a mapping, as in mmap(2).
const (
	ProtRead  = 1
	ProtWrite = 2
	ProtExec  = 4
)

// A Mapping is one line of /proc/PID/maps (proc_pid_maps(5)).
type Mapping struct {
	Start, End   uint64 // [Start, End), multiples of the page size
	Prot         uint32 // ProtRead, ProtWrite, ProtExec
	Shared       bool   // MAP_SHARED
	Offset       uint64 // into the file, in bytes
	Major, Minor uint32 // device of the file
	Inode        uint64 // 0 for memory that no file stands behind
	// Path is the file's path as the reader's root sees it, a name in brackets such as "[heap]", or empty. Only
	// newlines are escaped by the kernel, and they are unescaped here.
	Path    string
	Deleted bool // the path does not exist any more; the mark " (deleted)" is taken off Path

	Smaps *Smaps // only from ParseSmaps
}

// Smaps is what smaps adds to a mapping. Sizes are in bytes.
type Smaps struct {
	RSS, PSS, SharedClean, SharedDirty, PrivateClean, PrivateDirty uint64
	Anonymous, Swap, Locked, AnonHuge                              uint64
	KernelPageSize                                                 uint64
	// ProtectionKey is that of pkey_mprotect(2), where the processor has them.
	ProtectionKey uint32
	// VMFlags are the two-letter flags, such as "rd", "wr", "gd", "dd" (proc_pid_smaps(5)).
	VMFlags []string
}

// Has tells whether the mapping has a flag.
func (s *Smaps) Has(flag string) bool {
	for _, f := range s.VMFlags {
		if f == flag {
			return true
		}
	}
	return false
}

// Size is the length in bytes.
func (m Mapping) Size() uint64 { return m.End - m.Start }

// String prints the address range as obstacles name it.
func (m Mapping) String() string {
	s := fmt.Sprintf("mapping 0x%x-0x%x", m.Start, m.End)
	if m.Path != "" {
		s += " " + m.Path
	}
	return s
}

// Maps reads /proc/PID/maps.
func (p FS) Maps(pid int) ([]Mapping, error) { return parse(p, ParseMaps, pid, "maps") }

// Smaps reads /proc/PID/smaps. It walks the page tables: 220 ms for 50,000 mappings, so not in a freeze.
func (p FS) Smaps(pid int) ([]Mapping, error) { return parse(p, ParseSmaps, pid, "smaps") }

// ParseMaps parses /proc/PID/maps. It is made for programs with tens of thousands of mappings, since it is read while
// they are stopped.
func ParseMaps(r io.Reader) ([]Mapping, error) {
	var out []Mapping
	err := eachRawLine(r, func(line []byte) error {
		m, err := parseMapping(line, out)
		if err != nil {
			return err
		}
		if n := len(out); n > 0 && m.Start < out[n-1].End {
			return fmt.Errorf("address: 0x%x overlaps the mapping before it", m.Start)
		}
		out = append(out, m)
		return nil
	})
	return out, err
}

// parseMapping parses "start-end perms offset major:minor inode   path". Mappings of one file follow each other, so
// the path of the one before is used again where it is the same.
func parseMapping(line []byte, before []Mapping) (m Mapping, err error) {
	p := fieldParser{rest: line}
	m.Start = p.number("start", 16, '-')
	m.End = p.number("end", 16, ' ')
	perms := p.word(' ')
	m.Offset = p.number("offset", 16, ' ')
	m.Major = uint32(p.number("major device number", 16, ':'))
	m.Minor = uint32(p.number("minor device number", 16, ' '))
	m.Inode = p.number("inode", 10, ' ')
	if p.err != nil {
		return m, p.err
	}
	if m.Start >= m.End {
		return m, fmt.Errorf("address: 0x%x-0x%x is empty or reversed", m.Start, m.End)
	}
	if err := m.setPerms(perms); err != nil {
		return m, err
	}
	path := bytes.TrimLeft(p.rest, " ")
	if n := len(before); n > 0 && !before[n-1].Deleted && before[n-1].Path == string(path) {
		m.Path = before[n-1].Path
	} else {
		m.setPath(string(path))
	}
	return m, nil
}

// fieldParser takes a line apart and keeps the first error.
type fieldParser struct {
	rest []byte
	err  error
}

// word returns what stands before the next sep, or the rest.
func (p *fieldParser) word(sep byte) []byte {
	w := p.rest
	if i := bytes.IndexByte(w, sep); i >= 0 {
		w, p.rest = w[:i], w[i+1:]
	} else {
		p.rest = nil
	}
	return w
}

// number parses the word before the next sep.
func (p *fieldParser) number(name string, base uint64, sep byte) uint64 {
	w := p.word(sep)
	if p.err != nil {
		return 0
	}
	var v uint64
	ok := len(w) > 0
	for _, c := range w {
		d := uint64(255)
		switch {
		case c >= '0' && c <= '9':
			d = uint64(c - '0')
		case c >= 'a' && c <= 'f':
			d = uint64(c-'a') + 10
		}
		if d >= base || v > (^uint64(0)-d)/base {
			ok = false
			break
		}
		v = v*base + d
	}
	if !ok {
		p.err = fmt.Errorf("%s: %.40q is not a number of base %d that fits into 64 bits", name, w, base)
	}
	return v
}

func (m *Mapping) setPerms(s []byte) error {
	if len(s) != 4 || (s[3] != 'p' && s[3] != 's') {
		return fmt.Errorf("permissions: %q is not of the form rwxp", s)
	}
	for i, bit := range []uint32{ProtRead, ProtWrite, ProtExec} {
		switch s[i] {
		case "rwx"[i]:
			m.Prot |= bit
		case '-':
		default:
			return fmt.Errorf("permissions: %q is not of the form rwxp", s)
		}
	}
	m.Shared = s[3] == 's'
	return nil
}

func (m *Mapping) setPath(s string) {
	s = unescape(s, "\n")
	// A live file may be called "x (deleted)"; only its inode tells (fs/d_path.c has no other sign). Callers that
	// open the file compare device and inode.
	if p, ok := strings.CutSuffix(s, " (deleted)"); ok && strings.HasPrefix(p, "/") {
		s, m.Deleted = p, true
	}
	m.Path = s
}

// ParseSmaps parses /proc/PID/smaps: a line of maps, then "Name:   value kB" lines, for each mapping.
func ParseSmaps(r io.Reader) ([]Mapping, error) {
	var out []Mapping
	var pool []Smaps // made in blocks, for many mappings
	err := eachRawLine(r, func(line []byte) error {
		// A mapping begins with a digit or a small letter, all other lines with a capital.
		if len(line) > 0 && (line[0] < 'A' || line[0] > 'Z') {
			m, err := parseMapping(line, out)
			if err != nil {
				return err
			}
			if len(pool) == 0 {
				pool = make([]Smaps, 64)
			}
			m.Smaps, pool = &pool[0], pool[1:]
			out = append(out, m)
			return nil
		}
		name, value, ok := bytes.Cut(line, []byte(":"))
		if !ok {
			return fmt.Errorf("%.40q has no colon", line)
		}
		if len(out) == 0 {
			return fmt.Errorf("%s: stands before any mapping", name)
		}
		return out[len(out)-1].Smaps.set(name, value)
	})
	return out, err
}

func (s *Smaps) set(name, value []byte) (err error) {
	var dst *uint64
	switch string(name) { // compares without making a string
	case "VmFlags":
		s.VMFlags = strings.Fields(string(value))
		return nil
	case "Rss":
		dst = &s.RSS
	case "Pss":
		dst = &s.PSS
	case "Shared_Clean":
		dst = &s.SharedClean
	case "Shared_Dirty":
		dst = &s.SharedDirty
	case "Private_Clean":
		dst = &s.PrivateClean
	case "Private_Dirty":
		dst = &s.PrivateDirty
	case "Anonymous":
		dst = &s.Anonymous
	case "Swap":
		dst = &s.Swap
	case "Locked":
		dst = &s.Locked
	case "AnonHugePages":
		dst = &s.AnonHuge
	case "KernelPageSize":
		dst = &s.KernelPageSize
	case "ProtectionKey":
		p := fieldParser{rest: bytes.TrimLeft(value, " ")}
		key := p.number("ProtectionKey", 10, ' ')
		if p.err == nil && key > 1<<16 {
			p.err = fmt.Errorf("ProtectionKey: %d", key)
		}
		s.ProtectionKey = uint32(key)
		return p.err
	default:
		return nil
	}
	digits, ok := bytes.CutSuffix(bytes.TrimLeft(value, " "), []byte(" kB"))
	if !ok {
		return fmt.Errorf("%s: %q is not in kB", name, value)
	}
	p := fieldParser{rest: digits}
	v := p.number("size", 10, ' ')
	if p.err == nil && v > 1<<54 {
		p.err = fmt.Errorf("%d kB do not fit into 64 bits of bytes", v)
	}
	if p.err != nil {
		return fmt.Errorf("%s: %w", name, p.err)
	}
	*dst = v << 10
	return nil
}

// kilobytes parses "  123 kB" into bytes.
func kilobytes(name, value string) (uint64, error) {
	n, ok := strings.CutSuffix(strings.TrimSpace(value), " kB")
	if !ok {
		return 0, fmt.Errorf("%s: %q is not in kB", name, value)
	}
	v, err := number(name, n, 10)
	if err == nil && v > 1<<54 {
		err = fmt.Errorf("%s: %d kB do not fit into 64 bits of bytes", name, v)
	}
	return v << 10, err
}
