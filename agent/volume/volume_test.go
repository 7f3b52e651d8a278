package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// noise is bytes that do not compress.
func noise(seed uint64, n int) string {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return string(b)
}

func TestAllKinds(t *testing.T) {
	p := newPair(t)
	big := p.write("data/big", noise(1, 3*segmentSize+17))
	p.write("data/empty", "")
	small := p.write("a", "small")
	p.must(os.Link(small, filepath.Join(p.from, "data", "other name of a")))
	p.must(os.Symlink("../../../etc/passwd", filepath.Join(p.from, "data/link")))
	p.must(unix.Mkfifo(filepath.Join(p.from, "fifo"), 0o640))
	p.must(unix.Mknod(filepath.Join(p.from, "null"), unix.S_IFCHR|0o666, 1<<8|3))
	p.must(os.Chown(small, 12, 34))
	p.must(os.Chmod(small, 0o4711|os.ModeSetuid))
	p.must(os.Lchown(filepath.Join(p.from, "data/link"), 5, 6))
	p.must(unix.Setxattr(big, "user.note", []byte("kept"), 0))
	// An access control list: user::rw- user:7:rwx group::r-- mask::rwx other::--- (acl(5)).
	acl := []byte{2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 7, 0, 7, 0, 0, 0, 4, 0, 4, 0, 255, 255, 255, 255, 16, 0, 7, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255}
	p.must(unix.Setxattr(big, "system.posix_acl_access", acl, 0))
	p.must(unix.Setxattr(filepath.Join(p.from, "data"), "system.posix_acl_default", acl, 0))
	// cap_net_raw=ep, in the form of capabilities(7), VFS_CAP_REVISION_2.
	p.must(unix.Setxattr(small, "security.capability", []byte{1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0))
	old := time.Unix(1_000_000_000, 123456789)
	p.must(os.Chtimes(big, old, old))
	p.must(os.Chtimes(filepath.Join(p.from, "data"), old, old))
	p.must(os.Chmod(p.from, 0o1770|os.ModeSticky))
	p.dirs(Options{Compress: true})
	p.round(nil)
	p.same()
	time.Sleep(racyTime) // so that no file is read again for having been too young
	p.round(nil)
	if st := p.round(nil); st.Changed != 0 || st.Read != 0 {
		t.Errorf("nothing has changed, and %+v was sent", st)
	}
}

// TestSparse keeps holes where they are, and makes them.
func TestSparse(t *testing.T) {
	p := newPair(t)
	f, err := os.Create(filepath.Join(p.from, "sparse"))
	p.must(err)
	p.must(f.Truncate(1 << 30))
	for _, at := range []int64{4096, 5 << 20, 1<<30 - 4096} {
		_, err := f.WriteAt([]byte(noise(uint64(at), 4096)), at)
		p.must(err)
	}
	p.must(f.Sync())
	p.dirs(Options{})
	if st := p.round(nil); st.Sent > 1<<20 {
		t.Errorf("%d bytes were sent for 12 KiB of content", st.Sent)
	}
	p.same()
	p.must(unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 5<<20, 4096))
	p.must(f.Sync())
	p.round(nil)
	p.same()
	p.must(f.Close())
	var a, b unix.Stat_t
	p.must(unix.Stat(filepath.Join(p.from, "sparse"), &a))
	p.must(unix.Stat(filepath.Join(p.to, "sparse"), &b))
	if b.Blocks > a.Blocks+64 {
		t.Errorf("the copy takes %d sectors, the original %d", b.Blocks, a.Blocks)
	}
}

// TestDifference sends little for a little change.
func TestDifference(t *testing.T) {
	p := newPair(t)
	name := p.write("file", noise(1, 8<<20))
	p.dirs(Options{})
	p.round(nil)
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	p.must(err)
	_, err = f.WriteAt([]byte("changed"), 5<<20+12345)
	p.must(err)
	if st := p.round(nil); st.Sent > 2*blockSize {
		t.Errorf("%d bytes were sent for a change of 7", st.Sent)
	}
	p.same()
	p.must(f.Truncate(1 << 20))
	_, err = f.WriteAt([]byte("and longer again"), 3<<20)
	p.must(errors.Join(err, f.Close()))
	p.round(nil)
	p.same()
	p.must(os.Rename(name, filepath.Join(p.from, "renamed")))
	if st := p.round(nil); st.Sent > 1<<20 {
		t.Errorf("%d bytes were sent for another name", st.Sent)
	}
	p.same()
}

// TestSameTime changes a file in a way that its time of change does not show.
func TestSameTime(t *testing.T) {
	p := newPair(t)
	name := p.write("mapped", strings.Repeat("a", 4096))
	p.dirs(Options{})
	p.round(nil)
	p.sender.units[0].known["mapped"].racy = false // as after a while
	var st unix.Stat_t
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	p.must(err)
	_, err = f.WriteString("b")
	p.must(errors.Join(err, f.Close()))
	p.must(unix.Stat(name, &st))
	p.sender.units[0].known["mapped"].ctime = nsec(st.Ctim)
	if st := p.round(nil); st.Changed != 0 {
		t.Fatal("the test has not hidden the change")
	}
	p.round(func(path string) bool { return path == name })
	got, err := os.ReadFile(filepath.Join(p.to, "mapped"))
	p.must(err)
	if got[0] != 'b' {
		t.Error("a write through a mapping was missed")
	}
}

// TestChanges makes random changes between rounds and compares after each.
func TestChanges(t *testing.T) {
	p := newPair(t)
	p.dirs(Options{Compress: true})
	r := rand.New(rand.NewPCG(7, 7))
	name := func() string {
		return filepath.Join(p.from, []string{"", "d1", "d2", "d1/d3"}[r.IntN(4)], fmt.Sprint("f", r.IntN(6)))
	}
	for i := range 40 {
		for range 1 + r.IntN(8) {
			a, b := name(), name()
			_ = os.MkdirAll(filepath.Dir(a), 0o755) // what is in the way is part of the chaos
			switch r.IntN(9) {
			case 0, 1, 2:
				_ = os.WriteFile(a, []byte(noise(r.Uint64(), r.IntN(3*blockSize))), 0o600)
			case 3:
				_ = os.Rename(a, b)
			case 4:
				_ = os.Link(a, b)
			case 5:
				_ = os.RemoveAll(a)
			case 6:
				_ = os.Symlink("nowhere", a)
			case 7:
				_ = os.RemoveAll(filepath.Dir(a) + "/d3")
				_ = os.Chmod(a, os.FileMode(r.IntN(0o777)))
			case 8:
				if f, err := os.OpenFile(a, os.O_RDWR, 0); err == nil {
					_, _ = f.WriteAt([]byte("change"), int64(r.IntN(blockSize)))
					_ = f.Close()
				}
			}
		}
		if i%10 == 9 {
			p.connect() // what has arrived is asked for
		}
		p.round(nil)
		if p.same(); t.Failed() {
			t.Fatalf("after round %d", i)
		}
	}
}

// TestResume breaks the connection in the middle and goes on over another.
func TestResume(t *testing.T) {
	p := newPair(t)
	for i := range 8 {
		p.write(fmt.Sprint("f", i), noise(uint64(i), 4<<20))
	}
	p.open([]Unit{{Dir: p.from}}, []Unit{{Dir: p.to}}, Options{Bandwidth: 8 << 20}) // so that seconds are left of it when half has come
	ctx, cancel := context.WithCancel(t.Context())
	half := filepath.Join(p.to, "f4")
	go func() {
		for ctx.Err() == nil {
			if _, err := os.Stat(half); err == nil {
				cancel()
			}
			time.Sleep(time.Millisecond)
		}
	}()
	if _, err := p.sender.Round(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Fatalf("the round ended with %v", err)
	}
	if err := <-p.served; err != nil && !errors.Is(err, unix.ECONNRESET) && !strings.Contains(err.Error(), "EOF") {
		t.Log(err)
	}
	p.sender.SetBandwidth(0)
	p.connect()
	if st := p.round(nil); st.Sent > 20<<20 {
		t.Errorf("%d bytes were sent again", st.Sent)
	}
	p.same()
}

// TestSingleFiles moves files of a directory that is not moved.
func TestSingleFiles(t *testing.T) {
	p := newPair(t)
	p.write("log", "one\n")
	p.write("not mine", "")
	p.must(os.WriteFile(filepath.Join(p.to, "theirs"), []byte("stays"), 0o600))
	p.open([]Unit{{p.from, "log"}}, []Unit{{p.to, "log"}}, Options{})
	p.round(nil)
	p.write("log", "one\ntwo\n")
	p.round(nil)
	names, err := os.ReadDir(p.to)
	p.must(err)
	got, err := os.ReadFile(filepath.Join(p.to, "log"))
	p.must(err)
	if len(names) != 2 || string(got) != "one\ntwo\n" {
		t.Errorf("%v, %q", names, got)
	}
}

// TestFailureIsTold: the source hears why the destination cannot go on.
func TestFailureIsTold(t *testing.T) {
	p := newPair(t)
	p.write("x", "")
	p.dirs(Options{})
	p.must(os.RemoveAll(p.to))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err := p.sender.Round(ctx, nil)
	var remote *RemoteError
	if !errors.As(err, &remote) || !strings.Contains(remote.Text, p.to) {
		t.Errorf("%v", err)
	}
}

// TestHostileSource sends what must not be done.
func TestHostileSource(t *testing.T) {
	p := newPair(t)
	outside := filepath.Join(filepath.Dir(p.to), "outside")
	p.must(os.Mkdir(outside, 0o755))
	p.must(os.WriteFile(filepath.Join(outside, "precious"), []byte("x"), 0o600))
	p.must(os.Symlink(outside, filepath.Join(p.to, "way")))
	p.must(os.Symlink(filepath.Join(outside, "precious"), filepath.Join(p.to, "file")))
	entry := func(unit uint32, e Entry) []byte { return appendFrame(nil, kindEntry, encodeEntry(unit, &e)) }
	file := entry(0, Entry{Path: "ok", Type: TypeFile, Size: 10})
	for name, frames := range map[string][]byte{
		"through a link":      entry(0, Entry{Path: "way/new", Type: TypeFile}),
		"directory in a link": entry(0, Entry{Path: "way/new", Type: TypeDir}),
		"onto a link":         entry(0, Entry{Path: "file", Type: TypeFile}),
		"onto a link to dir":  entry(0, Entry{Path: "way", Type: TypeDir}),
		"above":               entry(0, Entry{Path: "../new", Type: TypeFile}),
		"absolute":            entry(0, Entry{Path: "/new", Type: TypeFile}),
		"another unit":        entry(1, Entry{Path: "new", Type: TypeFile}),
		"root as a file":      entry(0, Entry{Path: "", Type: TypeFile}),
		"own name":            entry(0, Entry{Path: ".migrate-1", Type: TypeDir}),
		"remove through link": appendFrame(nil, kindRemove, encodeNames(0, "way/precious")),
		"remove root":         appendFrame(nil, kindRemove, encodeNames(0, "")),
		"link out":            appendFrame(nil, kindLink, encodeNames(0, "way/precious", "mine")),
		"rename out":          appendFrame(nil, kindRename, encodeNames(0, "file", "way/new")),
		"have through link":   appendFrame(nil, kindHave, encodeNames(0, "way/precious")),
		"data without file":   appendFrame(nil, kindData, make([]byte, 9)),
		"data beyond":         append(bytes.Clone(file), appendFrame(nil, kindData, append(make([]byte, 8), make([]byte, 11)...))...),
		"hole beyond":         append(bytes.Clone(file), appendFrame(nil, kindHole, encodeSpan(span{5, 6}))...),
		"packed nonsense":     append(bytes.Clone(file), appendFrame(nil, kindPacked, []byte{0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 15})...),
		"sync in a file":      append(bytes.Clone(file), appendFrame(nil, kindSync, nil)...),
		"answer":              appendFrame(nil, kindSynced, nil),
		"bad sum":             append(file[:len(file)-1:len(file)-1], file[len(file)-1]^1),
	} {
		near, far := tcpPair(t)
		done := make(chan error, 1)
		go func() { done <- NewReceiver([]Unit{{Dir: p.to}}).Serve(t.Context(), far) }()
		_, err := near.Write(frames)
		p.must(err)
		_ = near.SetReadDeadline(time.Now().Add(20 * time.Second))
		k, _, _, err := readFrame(near, nil)
		_ = near.Close()
		if err != nil || k != kindFailure {
			t.Errorf("%s: answered by %v, %v", name, k, err)
		}
		if err := <-done; err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	names, err := os.ReadDir(outside)
	p.must(err)
	got, err := os.ReadFile(filepath.Join(outside, "precious"))
	p.must(err)
	if len(names) != 1 || string(got) != "x" {
		t.Errorf("outside: %v, %q", names, got)
	}
}
