package volume

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"migrate/engine/kernel/kerneltest"
)

// pair is a source and a destination on one machine.
type pair struct {
	*testing.T
	from, to string // directories
	sender   *Sender
	receiver *Receiver
	served   chan error
}

// newPair makes both ends of a volume. The directories have room for files of other users.
func newPair(t *testing.T) *pair {
	kerneltest.Root(t)
	dir := t.TempDir()
	p := &pair{T: t, from: filepath.Join(dir, "from"), to: filepath.Join(dir, "to")}
	for _, d := range []string{p.from, p.to} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// open connects the ends.
func (p *pair) open(from, to []Unit, o Options) {
	p.Helper()
	var err error
	if p.sender, err = NewSender(from, o); err != nil {
		p.Fatal(err)
	}
	p.receiver = NewReceiver(to)
	p.connect()
	p.Cleanup(func() {
		p.receiver.Close()
		if err := p.sender.Close(); err != nil {
			p.Error(err)
		}
	})
}

func (p *pair) dirs(o Options) { p.open([]Unit{{Dir: p.from}}, []Unit{{Dir: p.to}}, o) }

// connect gives both ends a new connection.
func (p *pair) connect() net.Conn {
	p.Helper()
	near, far := tcpPair(p.T)
	p.served = make(chan error, 1)
	served := p.served
	go func() { served <- p.receiver.Serve(context.Background(), far) }()
	if err := p.sender.Attach(near); err != nil {
		p.Fatal(err)
	}
	return near
}

func tcpPair(t *testing.T) (near, far net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			c = nil
		}
		accepted <- c
	}()
	if near, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if far = <-accepted; far == nil {
		t.Fatal("no connection")
	}
	return near, far
}

func (p *pair) round(mapped func(string) bool) Stats {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.Context(), time.Minute)
	defer cancel()
	st, err := p.sender.Round(ctx, mapped)
	if err != nil {
		p.Fatal(err)
	}
	return st
}

// write writes a file of the source.
func (p *pair) write(name, text string) string {
	p.Helper()
	f := filepath.Join(p.from, name)
	if err := os.MkdirAll(filepath.Dir(f), 0o755); err != nil {
		p.Fatal(err)
	}
	if err := os.WriteFile(f, []byte(text), 0o644); err != nil {
		p.Fatal(err)
	}
	return f
}

func (p *pair) must(err error) {
	p.Helper()
	if err != nil {
		p.Fatal(err)
	}
}

// same checks that both directories hold the same.
func (p *pair) same() {
	p.Helper()
	if err := sameTree(p.from, p.to); err != nil {
		p.Error(err)
	}
}

type seen struct {
	entry  Entry
	blocks []block
	links  uint32
	disk   int64
}

func look(dir string) (map[string]seen, error) {
	root, err := openRoot(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }()
	list, err := walk(root, Unit{Dir: dir})
	if err != nil {
		return nil, err
	}
	out := map[string]seen{}
	for i := range list {
		f := &list[i]
		if f.kind() == 0 {
			continue
		}
		var s seen
		parent, base := int(root.Fd()), "."
		if f.path != "" {
			if parent, base, err = openParent(root, f.path); err != nil {
				return nil, err
			}
		}
		s.entry, err = entryOf(parent, base, f)
		if err != nil {
			return nil, err
		}
		if f.path != "" {
			_ = unix.Close(parent)
		}
		s.entry.ATime = 0 // reading changes it
		s.links, s.disk = uint32(f.st.Nlink), f.st.Blocks
		if s.entry.Type == TypeFile {
			file, err := os.Open(filepath.Join(dir, f.path))
			if err != nil {
				return nil, err
			}
			s.blocks, err = hashFile(file, &f.st)
			if err := errors.Join(err, file.Close()); err != nil {
				return nil, err
			}
		}
		out[f.path] = s
	}
	return out, nil
}

func sameTree(from, to string) error {
	a, err := look(from)
	if err != nil {
		return err
	}
	b, err := look(to)
	if err != nil {
		return err
	}
	var errs []error
	for name, x := range a {
		y, ok := b[name]
		if !ok {
			errs = append(errs, fmt.Errorf("%q is missing", name))
		} else if fmt.Sprint(x.entry) != fmt.Sprint(y.entry) || fmt.Sprint(x.blocks) != fmt.Sprint(y.blocks) || x.links != y.links {
			errs = append(errs, fmt.Errorf("%q is %+v (%d links), want %+v (%d links); content the same: %v", name, y.entry, y.links, x.entry, x.links, fmt.Sprint(x.blocks) == fmt.Sprint(y.blocks)))
		}
	}
	for name := range b {
		if _, ok := a[name]; !ok {
			errs = append(errs, fmt.Errorf("%q should not be there", name))
		}
	}
	return errors.Join(errs...)
}
