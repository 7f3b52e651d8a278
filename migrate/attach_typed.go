//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// typed is what was typed and has not reached the program's terminal yet: the agent says how far that has come, and the rest is sent again when
// the workload has moved on meanwhile.
type typed struct {
	keys []byte // that detach

	mu      sync.Mutex
	changed chan struct{} // closed and made anew when anything below changes
	waiting []byte
	first   uint64 // offset of waiting
	sent    int    // of waiting
	matched int    // so many of the keys were typed last, and are held back
	left    bool   // all of them were
}

func newTyped(keys []byte) *typed { return &typed{keys: keys, changed: make(chan struct{})} }

// maxTyped bounds what may wait: then the own terminal is not read.
const maxTyped = 64 << 10

func (t *typed) notify() {
	close(t.changed)
	t.changed = make(chan struct{})
}

// add takes what was read, less the keys that detach. A part of these is passed on once it is clear that it is not all of them.
func (t *typed) add(data []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, b := range data {
		if t.left {
			break
		}
		for t.matched > 0 && b != t.keys[t.matched] { // back to the longest beginning that the keys so far end in
			keep := t.matched - 1
			for keep > 0 && !bytes.HasSuffix(t.keys[:t.matched], t.keys[:keep]) {
				keep--
			}
			t.waiting = append(t.waiting, t.keys[:t.matched-keep]...)
			t.matched = keep
		}
		if t.matched < len(t.keys) && b == t.keys[t.matched] {
			t.matched++
			t.left = t.matched == len(t.keys)
			continue
		}
		t.waiting = append(t.waiting, b)
	}
	t.notify()
}

// next is what is to be sent now. left: the user has detached, and all was taken.
func (t *typed) next() (offset uint64, data []byte, changed <-chan struct{}, left bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	offset, data = t.first+uint64(t.sent), bytes.Clone(t.waiting[t.sent:])
	t.sent = len(t.waiting)
	return offset, data, t.changed, t.left && len(t.waiting) == 0
}

// taken drops what has arrived.
func (t *typed) taken(upTo uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if upTo <= t.first {
		return
	}
	n := min(int(upTo-t.first), len(t.waiting))
	t.waiting, t.first, t.sent = t.waiting[n:], t.first+uint64(n), max(t.sent-n, 0)
	t.notify()
}

// resume prepares for another stream: what was not taken is sent again, unless it is not known what was.
func (t *typed) resume(taken uint64, known bool) {
	t.taken(taken)
	t.mu.Lock()
	defer t.mu.Unlock()
	if !known && t.first+uint64(t.sent) > 0 {
		t.waiting = t.waiting[t.sent:]
		t.first = taken
	}
	t.sent = 0
	t.notify()
}

// readFrom reads a file until stop is called or the file ends.
func (t *typed) readFrom(f *os.File) (stop func(), err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		t.read(int(f.Fd()), int(r.Fd()))
	}()
	return func() {
		_ = w.Close() // wakes the reader
		<-done
		_ = r.Close()
	}, nil
}

func (t *typed) read(fd, wake int) {
	buf := make([]byte, 4096)
	for {
		t.mu.Lock()
		full, left, changed := len(t.waiting) > maxTyped, t.left, t.changed
		t.mu.Unlock()
		if left {
			return
		}
		p := []unix.PollFd{{Fd: int32(wake), Events: unix.POLLIN}, {Fd: int32(fd), Events: unix.POLLIN}}
		if full {
			select {
			case <-changed:
				continue
			default:
			}
			p = p[:1]
		}
		if _, err := unix.Poll(p, map[bool]int{true: 50, false: -1}[full]); err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		if p[0].Revents != 0 {
			return
		}
		if len(p) < 2 || p[1].Revents == 0 {
			continue
		}
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil || n <= 0 {
			return
		}
		t.add(buf[:n])
	}
}

// parseKeys reads a list of keys: characters, and ctrl-X.
func parseKeys(s string) ([]byte, error) {
	if s == "" {
		return nil, nil
	}
	var out []byte
	for _, k := range strings.Split(s, ",") {
		c, ctrl := strings.CutPrefix(strings.ToLower(k), "ctrl-")
		switch {
		case ctrl && len(c) == 1 && (c[0] >= 'a' && c[0] <= 'z' || strings.Contains("@[\\]^_", c)):
			out = append(out, strings.ToUpper(c)[0]&0x1f)
		case !ctrl && len(k) == 1:
			out = append(out, k[0])
		default:
			return nil, fmt.Errorf("--detach-keys: %q is no key: write a character or ctrl-X, such as in ctrl-p,ctrl-q", k)
		}
	}
	return out, nil
}
