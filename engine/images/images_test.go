package images

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/checkpoint-restore/go-criu/v8/crit"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/creds"
	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fown"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fs"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/siginfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"github.com/google/go-cmp/cmp"
	"github.com/zeebo/xxh3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"migrate/engine/images/imagespb"
)

func regFile(id uint32, name string) *fdinfo.FileEntry {
	return &fdinfo.FileEntry{
		Type: fdinfo.FdTypes_REG.Enum(), Id: proto.Uint32(id),
		Reg: &regfile.RegFileEntry{
			Id: proto.Uint32(id), Flags: proto.Uint32(0), Pos: proto.Uint64(0), Name: proto.String(name),
			Fown: &fown.FownEntry{Uid: proto.Uint32(0), Euid: proto.Uint32(0), Signum: proto.Uint32(0), PidType: proto.Uint32(0), Pid: proto.Uint32(0)},
		},
	}
}

func sampleThread(tid uint32, leader bool) *Thread {
	info := make([]byte, siginfoSize)
	binary.LittleEndian.PutUint32(info, 10)
	c := &criu_core.CoreEntry{
		Mtype: criu_core.CoreEntry_X86_64.Enum(),
		ThreadCore: &criu_core.ThreadCoreEntry{
			FutexRla: proto.Uint64(0x7000), FutexRlaLen: proto.Uint32(24), Comm: proto.String("worker"),
			SignalsP: &siginfo.SignalQueueEntry{Signals: []*siginfo.SiginfoEntry{{Siginfo: info}}},
			Creds: &creds.CredsEntry{
				Uid: proto.Uint32(1), Gid: proto.Uint32(2), Euid: proto.Uint32(1), Egid: proto.Uint32(2), Suid: proto.Uint32(1),
				Sgid: proto.Uint32(2), Fsuid: proto.Uint32(1), Fsgid: proto.Uint32(2), Secbits: proto.Uint32(0),
				CapInh: []uint32{0, 0}, CapPrm: []uint32{1, 0}, CapEff: []uint32{1, 0}, CapBnd: []uint32{3, 0},
			},
		},
	}
	if leader {
		c.Tc = &criu_core.TaskCoreEntry{
			TaskState: proto.Uint32(TaskAlive), ExitCode: proto.Uint32(0), Personality: proto.Uint32(0), Flags: proto.Uint32(0),
			BlkSigset: proto.Uint64(0), Comm: proto.String("worker"),
		}
	}
	return &Thread{TID: tid, Core: c, Extra: &imagespb.ThreadExtra{Tid: tid, Goarch: "amd64", Regs: make([]byte, 216), Xstate: make([]byte, 832)}}
}

func sampleMM() *mm.MmEntry {
	return &mm.MmEntry{
		MmStartCode: proto.Uint64(0x1000), MmEndCode: proto.Uint64(0x2000), MmStartData: proto.Uint64(0x2000), MmEndData: proto.Uint64(0x3000),
		MmStartStack: proto.Uint64(0x7ffff000), MmStartBrk: proto.Uint64(0x5000), MmBrk: proto.Uint64(0x6000), MmArgStart: proto.Uint64(1),
		MmArgEnd: proto.Uint64(2), MmEnvStart: proto.Uint64(2), MmEnvEnd: proto.Uint64(3), ExeFileId: proto.Uint32(1), MmSavedAuxv: []uint64{6, 4096, 0, 0},
		Vmas: []*vma.VmaEntry{{
			Start: proto.Uint64(0x1000), End: proto.Uint64(0x3000), Pgoff: proto.Uint64(0), Shmid: proto.Uint64(1), Prot: proto.Uint32(5),
			Flags: proto.Uint32(2), Status: proto.Uint32(VMARegular | VMAFilePrivate), Fd: proto.Int64(-1),
		}},
	}
}

func sample() *Checkpoint {
	ids := &criu_core.TaskKobjIdsEntry{VmId: proto.Uint32(1), FilesId: proto.Uint32(7), FsId: proto.Uint32(1), SighandId: proto.Uint32(1)}
	zombie := sampleThread(12, true)
	zombie.Core.Tc.TaskState = proto.Uint32(TaskDead)
	zombie.Extra = nil
	return &Checkpoint{
		Inventory: NewInventory(ids, 1),
		Header:    &imagespb.Header{Version: Version, Goarch: "amd64", Clocks: &imagespb.Clocks{Monotonic: 5}},
		Tree: []*pstree.PstreeEntry{
			{Pid: proto.Uint32(10), Ppid: proto.Uint32(0), Pgid: proto.Uint32(10), Sid: proto.Uint32(10), Threads: []uint32{10, 11}},
			{Pid: proto.Uint32(12), Ppid: proto.Uint32(10), Pgid: proto.Uint32(10), Sid: proto.Uint32(10), Threads: []uint32{12}},
		},
		Processes: []*Process{{
			PID: 10, MM: sampleMM(), IDs: ids, Threads: []*Thread{sampleThread(10, true), sampleThread(11, false)},
			FS:    &fs.FsEntry{CwdId: proto.Uint32(2), RootId: proto.Uint32(2), Umask: proto.Uint32(0o22)},
			FDs:   []*fdinfo.FdinfoEntry{{Id: proto.Uint32(1), Flags: proto.Uint32(0), Type: fdinfo.FdTypes_REG.Enum(), Fd: proto.Uint32(3)}},
			Extra: &imagespb.ProcessExtra{Pid: 10, CoredumpFilter: 0x33},
		}, {PID: 12, Threads: []*Thread{zombie}}},
		Files: []*fdinfo.FileEntry{regFile(1, "/bin/worker"), regFile(2, "/")},
		Blobs: map[string][]byte{"pipe/1": []byte("in the pipe"), "x%2Fy": {}},
	}
}

func same(t *testing.T, want, got *Checkpoint) {
	t.Helper()
	if d := cmp.Diff(want, got, protocmp.Transform()); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

func TestWire(t *testing.T) {
	b, err := sample().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	c, err := Unmarshal(b)
	if err != nil {
		t.Fatal(err)
	}
	same(t, sample(), c)
	b[len(b)/2] ^= 1
	if _, err := Unmarshal(b); !errors.Is(err, ErrDamaged) {
		t.Errorf("a flipped bit: %v", err)
	}
}

func TestLayout(t *testing.T) {
	s := sample()
	l := &Layout{Header: s.Header, Tree: s.Tree, Files: s.Files, Spaces: []*Space{{PID: 10, MM: sampleMM()}, {PID: 12}}}
	b, err := l.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	got, err := UnmarshalLayout(b)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(l, got, protocmp.Transform()); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

func TestDir(t *testing.T) {
	dir := t.TempDir()
	if err := WriteDir(dir, sample()); err != nil {
		t.Fatal(err)
	}
	c, err := ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	same(t, sample(), c)
	if err := os.Symlink("/etc/hostname", filepath.Join(dir, "blob-evil.raw")); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadDir(dir); err == nil {
		t.Error("a link in the directory was followed")
	}
}

// A bit that flips, a file that is lost and one that is added are found in every file but those of the pages, which have a hash elsewhere.
func TestDamagedDir(t *testing.T) {
	sound := t.TempDir()
	if err := WriteDir(sound, sample()); err != nil {
		t.Fatal(err)
	}
	list, err := os.ReadDir(sound)
	if err != nil || len(list) < 10 {
		t.Fatalf("%d files, %v", len(list), err)
	}
	damage := func(what, name string, do func(path string) error) {
		t.Helper()
		dir := t.TempDir()
		if err := errors.Join(os.CopyFS(dir, os.DirFS(sound)), do(filepath.Join(dir, name))); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadDir(dir); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %s: %v", name, what, err)
		}
	}
	for _, e := range list {
		if e.Name() != sumsName {
			damage("a flipped bit", e.Name(), func(path string) error {
				b, err := os.ReadFile(path)
				if b = append(b, 0); len(b) > 1 {
					b = b[:len(b)-1]
					b[len(b)/2] ^= 4
				}
				return errors.Join(err, os.WriteFile(path, b, 0o600))
			})
		}
		damage("a lost file", e.Name(), os.Remove)
	}
	damage("one more file", "core-99.img", func(path string) error { return os.WriteFile(path, []byte("x"), 0o600) })
}

// CRIU's own tools must read what is written here.
func TestCritReadsDir(t *testing.T) {
	dir := t.TempDir()
	if err := WriteDir(dir, sample()); err != nil {
		t.Fatal(err)
	}
	w := NewPageWriter(dir)
	page := bytes.Repeat([]byte{0xaa}, PageSize)
	if err := errors.Join(w.WritePages(10, 0x2000, page), w.WritePages(10, 0x1000, bytes.Repeat([]byte{0xbb}, PageSize)), w.Close()); err != nil {
		t.Fatal(err)
	}
	ps, err := crit.New(nil, nil, dir, false, false).ExplorePs()
	if err != nil || ps.PID != 10 || len(ps.Children) != 1 || ps.Comm != "worker" {
		t.Fatalf("process tree %+v, %v", ps, err)
	}
	fds, err := crit.New(nil, nil, dir, false, false).ExploreFds()
	if err != nil || len(fds) != 1 || fds[0].Files[0].Path != "/bin/worker" {
		t.Fatalf("descriptors %+v, %v", fds, err)
	}
	if _, err := crit.New(nil, nil, dir, false, false).ExploreMems(); err != nil {
		t.Fatal(err)
	}
	mr, err := crit.NewMemoryReader(dir, 10, PageSize)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := mr.GetMemPages(0x2000, 0x2010); err != nil || !bytes.Equal(b.Bytes(), page[:16]) {
		t.Fatalf("memory %x, %v", b, err)
	}
	for name, m := range map[string]proto.Message{
		"inventory.img": sample().Inventory, "core-11.img": &criu_core.CoreEntry{}, "mm-10.img": &mm.MmEntry{},
		"fs-10.img": &fs.FsEntry{}, "ids-10.img": &criu_core.TaskKobjIdsEntry{}, "pagemap-10.img": nil,
	} {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if img, err := crit.New(f, nil, "", false, false).Decode(m); err != nil || len(img.Entries) == 0 {
			t.Errorf("%s: %v", name, err)
		}
		_ = f.Close()
	}
}

func TestValidateNamesFileAndField(t *testing.T) {
	for want, damage := range map[string]func(*Checkpoint){
		"header.version":        func(c *Checkpoint) { c.Header.Version = 9 },
		"inventory.img":         func(c *Checkpoint) { c.Inventory = nil },
		"pstree.img: entry 1":   func(c *Checkpoint) { c.Tree[1].Ppid = proto.Uint32(99) },
		"threads: 10 stands":    func(c *Checkpoint) { c.Tree[1].Threads[0], c.Tree[1].Pid = 10, proto.Uint32(10) },
		"exe_file_id":           func(c *Checkpoint) { c.Processes[0].MM.ExeFileId = proto.Uint32(3) },
		"vmas[0]":               func(c *Checkpoint) { c.Processes[0].MM.Vmas[0].End = proto.Uint64(1) },
		"shmid":                 func(c *Checkpoint) { c.Processes[0].MM.Vmas[0].Shmid = proto.Uint64(5) },
		"fdinfo-7.img":          func(c *Checkpoint) { c.Processes[0].FDs[0].Id = proto.Uint32(9) },
		"files.img: entry 0":    func(c *Checkpoint) { c.Files[0].Type = fdinfo.FdTypes_PIPE.Enum() },
		"cwd_id":                func(c *Checkpoint) { c.Processes[0].FS.CwdId = proto.Uint32(9) },
		"regs: 3 bytes":         func(c *Checkpoint) { c.Processes[0].Threads[1].Extra.Regs = []byte{1, 2, 3} },
		"creds.cap_bnd":         func(c *Checkpoint) { c.Processes[0].Threads[1].Core.ThreadCore.Creds.CapBnd = nil },
		"signals_p.signals[0]":  func(c *Checkpoint) { c.Processes[0].Threads[0].Core.ThreadCore.SignalsP.Signals[0].Siginfo = nil },
		"mm-10.img: has":        func(c *Checkpoint) { c.Processes[0].MM = nil },
		"core-10.img: tc: is":   func(c *Checkpoint) { c.Processes[0].Threads[0].Core.Tc = nil },
		"tc.task_state: 99":     func(c *Checkpoint) { c.Processes[0].Threads[0].Core.Tc.TaskState = proto.Uint32(99) },
		"thread 11: is missing": func(c *Checkpoint) { c.Processes[0].Threads[1].Extra = nil },
	} {
		c := sample()
		damage(c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", want, err)
		}
		if _, err := c.Marshal(); err == nil {
			t.Errorf("%q: it was marshalled", want)
		}
	}
}

// memory is a PageSink that keeps everything; absent pages are not in it.
type memory map[uint64][]byte

func (m memory) WritePages(_ uint32, addr uint64, data []byte) error {
	for ; len(data) > 0; addr, data = addr+PageSize, data[PageSize:] {
		m[addr] = bytes.Clone(data[:PageSize])
	}
	return nil
}

func (m memory) ZeroPages(_ uint32, addr uint64, n uint32) error {
	for i := range uint64(n) {
		m[addr+i*PageSize] = make([]byte, PageSize)
	}
	return nil
}

func TestPagesLastWriteWins(t *testing.T) {
	dir := t.TempDir()
	w, want := NewPageWriter(dir), memory{}
	page := func(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n*PageSize) }
	var b byte
	for _, r := range []Run{
		{Addr: 0x10000, Pages: 100}, {Addr: 0x8000, Pages: 3}, {Addr: 0x1ff000, Pages: 4}, // crosses a chunk
		{Addr: 0x12000, Pages: 2}, {Addr: 0x11000, Pages: 5, Zero: true}, {Addr: 0x13000, Pages: 1}, {Addr: 0x5000, Pages: 9, Zero: true},
		{Addr: 0x6000, Pages: 20},
	} {
		b++
		var data []byte
		if !r.Zero {
			data = page(b, int(r.Pages))
			_ = want.WritePages(1, r.Addr, data)
		} else {
			_ = want.ZeroPages(1, r.Addr, r.Pages)
		}
		if err := w.Send(context.Background(), 1, []Run{r}, data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.ZeroPages(2, 0x40000000, 1<<20); err != nil { // 4 GiB of zeroes
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	got := memory{}
	n, err := ReadPages(context.Background(), dir, 1, got)
	if err != nil || n != uint64(len(want)) {
		t.Fatalf("%d pages instead of %d, %v", n, len(want), err)
	}
	for _, a := range slices.Sorted(maps.Keys(want)) {
		if !bytes.Equal(want[a], got[a]) {
			t.Errorf("page 0x%x: %x instead of %x", a, got[a][:1], want[a][:1])
		}
	}
	if _, err := ReadPages(context.Background(), dir, 3, got); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a space without pages: %v", err)
	}
	if err := os.Truncate(filepath.Join(dir, "pages-1.img"), 5000); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadPages(context.Background(), dir, 1, got); err == nil || !strings.Contains(err.Error(), "pages-1.img") {
		t.Errorf("a cut pages file: %v", err)
	}
}

func TestPagesRefusesBadRanges(t *testing.T) {
	w := NewPageWriter(t.TempDir())
	for _, err := range []error{
		w.WritePages(1, 1, make([]byte, PageSize)), w.WritePages(1, 0, make([]byte, 5)), w.ZeroPages(1, maxAddr-PageSize, 2),
		w.Send(context.Background(), 1, []Run{{Addr: 0, Pages: 2}}, make([]byte, PageSize)),
		w.Send(context.Background(), 1, nil, make([]byte, PageSize)),
	} {
		if err == nil {
			t.Error("a bad range was taken")
		}
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}

// TestNestedNamespaces: what refers to namespaces must be there, and be of one kind each.
func TestNestedNamespaces(t *testing.T) {
	const mnt, net = 0x20000, 0x40000000
	with := func(change func(c *Checkpoint, x *imagespb.Namespaces)) error {
		c := sample()
		c.Namespaces = &Namespaces{Trees: map[uint32][]byte{}, Nested: map[uint32]*Namespaces{2: {}, 3: {}}}
		x := &imagespb.Namespaces{
			Nested:    []*imagespb.NestedNamespace{{Id: 2, State: &imagespb.Namespaces{Own: mnt}}, {Id: 3, State: &imagespb.Namespaces{Own: net}}},
			Processes: []*imagespb.ProcessNamespaces{{Pid: c.Tree[0].GetPid(), Ids: []uint32{2, 3}}},
		}
		c.Header.Namespaces = x
		change(c, x)
		return c.Validate()
	}
	if err := with(func(*Checkpoint, *imagespb.Namespaces) {}); err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(c *Checkpoint, x *imagespb.Namespaces){
		"no images":      func(c *Checkpoint, _ *imagespb.Namespaces) { delete(c.Namespaces.Nested, 3) },
		"the root's id":  func(_ *Checkpoint, x *imagespb.Namespaces) { x.Nested[0].Id = 1 },
		"one id twice":   func(_ *Checkpoint, x *imagespb.Namespaces) { x.Nested[1].Id = 2 },
		"two kinds":      func(_ *Checkpoint, x *imagespb.Namespaces) { x.Nested[0].State.Own = mnt | net },
		"no state":       func(_ *Checkpoint, x *imagespb.Namespaces) { x.Nested[0].State = nil },
		"nested deeper":  func(_ *Checkpoint, x *imagespb.Namespaces) { x.Nested[0].State.Nested = x.Nested[1:] },
		"unknown id":     func(_ *Checkpoint, x *imagespb.Namespaces) { x.Processes[0].Ids[0] = 4 },
		"two of a kind":  func(_ *Checkpoint, x *imagespb.Namespaces) { x.Processes[0].Ids[0] = 3 },
		"process twice":  func(_ *Checkpoint, x *imagespb.Namespaces) { x.Processes = append(x.Processes, x.Processes[0]) },
		"missing mounts": func(_ *Checkpoint, x *imagespb.Namespaces) { x.Nested[0].State.Mounts = []*imagespb.Mount{{Id: 9}} },
	} {
		if err := with(change); err == nil {
			t.Errorf("%s: is taken", what)
		}
	}
}

func FuzzUnmarshal(f *testing.F) {
	b, err := sample().Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b[:len(b)-8])
	f.Add([]byte(wireMagic))
	f.Fuzz(func(_ *testing.T, b []byte) {
		b = pack0(b) // with a right checksum, else nothing behind it is reached
		if c, err := Unmarshal(b); err == nil {
			if _, err := c.Marshal(); err != nil {
				panic(fmt.Sprintf("valid, but cannot be marshalled: %v", err))
			}
		}
		_, _ = UnmarshalLayout(b)
	})
}

// FuzzReadDir feeds one damaged file of an otherwise sound directory.
func FuzzReadDir(f *testing.F) {
	files, err := sample().encode()
	if err != nil {
		f.Fatal(err)
	}
	for i, x := range files {
		f.Add(uint8(i), x.data)
	}
	f.Fuzz(func(_ *testing.T, i uint8, data []byte) {
		m := map[string][]byte{}
		for k, x := range files {
			if m[x.name] = x.data; k == int(i)%len(files) {
				m[x.name] = data
			}
		}
		_, _ = decode(m)
		_ = checkSums(data, m)
		_, _, _ = parsePagemap("pagemap-1.img", data)
	})
}

func pack0(b []byte) []byte {
	return binary.LittleEndian.AppendUint64(bytes.Clone(b), xxh3.Hash(b))
}
