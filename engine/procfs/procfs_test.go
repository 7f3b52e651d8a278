package procfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func fixture[T any](t *testing.T, parser func(io.Reader) (T, error), name string) T {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	v, err := parser(bytes.NewReader(b))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return v
}

func want(t *testing.T, what string, got, want any) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s: (-want +got)\n%s", what, d)
	}
}

func TestStat(t *testing.T) {
	s := fixture(t, ParseStat, "6.18/stat")
	want(t, "comm", s.Comm, "a b) (c\n")
	want(t, "state", s.State, byte('R'))
	want(t, "start brk", s.StartBrk, uint64(93977306218496))
	want(t, "env end", s.EnvEnd, uint64(140725872459727))
	want(t, "exit signal", s.ExitSignal, 17)
	old := fixture(t, ParseStat, "4.19/stat")
	want(t, "tty", old.TTY, int32(34816))
	want(t, "start brk of an old kernel", old.StartBrk, uint64(0))
}

func TestStatus(t *testing.T) {
	s := fixture(t, ParseStatus, "4.19/status")
	want(t, "name", s.Name, `worker\1`)
	want(t, "umask", s.Umask, uint32(0o77))
	want(t, "uid", s.UID, [4]uint32{1000, 1001, 1002, 1003})
	want(t, "groups", s.Groups, []uint32{4, 24, 4294967294})
	want(t, "nspid", s.NSPID, []int{201, 4})
	want(t, "cpus", s.CPUsAllowed, []int{0, 2, 8, 9, 10, 11})
	want(t, "ambient", s.CapAmb, Set(1))
	want(t, "seccomp", s.Seccomp, 2)
	want(t, "no_new_privs", s.NoNewPrivs, true)
	want(t, "size", s.VMSize, uint64(4176<<10))
	want(t, "queued", s.SigQueued, uint64(3))
	want(t, "signal 10 private", s.SigPnd.HasSignal(10), true)
	want(t, "signal 15 shared", s.ShdPnd.HasSignal(15), true)
	want(t, "thp", s.HasTHP, false)
	want(t, "name of 6.18", fixture(t, ParseStatus, "6.18/status").Name, "a b) (c\n")
}

func TestMaps(t *testing.T) {
	ms := fixture(t, ParseMaps, "6.18/maps")
	last := ms[len(ms)-1]
	want(t, "last", last.Path, "[vsyscall]")
	for i, line := range []struct {
		in   string
		want Mapping
	}{
		{"7f0000000000-7f0000001000 rw-s 00001000 00:05 77                         /dev/zero (deleted)",
			Mapping{Start: 0x7f0000000000, End: 0x7f0000001000, Prot: 3, Shared: true, Offset: 0x1000, Minor: 5, Inode: 77, Path: "/dev/zero", Deleted: true}},
		{"400000-401000 --xp 00000000 fe:00 9 /a b\\012c", Mapping{Start: 0x400000, End: 0x401000, Prot: 4, Major: 0xfe, Inode: 9, Path: "/a b\nc"}},
		{"400000-401000 ---p 00000000 00:00 0 ", Mapping{Start: 0x400000, End: 0x401000}},
	} {
		got, err := ParseMaps(strings.NewReader(line.in + "\n"))
		if err != nil {
			t.Fatalf("%d: %v", i, err)
		}
		want(t, line.in, got, []Mapping{line.want})
	}
}

func TestSmaps(t *testing.T) {
	ms := fixture(t, ParseSmaps, "6.18/smaps")
	want(t, "number", len(ms), 4)
	want(t, "heap", ms[2].Path, "[heap]")
	want(t, "dontdump of the vdso", ms[3].Smaps.Has("de"), true)
	if ms[2].Smaps.RSS == 0 || ms[2].Smaps.KernelPageSize != 4096 {
		t.Errorf("heap: %+v", ms[2].Smaps)
	}
}

func TestLimits(t *testing.T) {
	l := fixture(t, ParseLimits, "6.18/limits")
	want(t, "open files", l[7], Limit{20000, 20000})
	want(t, "name", LimitName(7), "Max open files")
	want(t, "stack", l[3], Limit{8388608, Unlimited})
}

func TestTimers(t *testing.T) {
	want(t, "timers", fixture(t, ParseTimers, "6.18/timers"), []Timer{
		{ID: 2, Signal: 34, Notify: NotifyNone, Target: 1, Clock: 7},
		{ID: 1, Signal: 34, Value: 5, Notify: NotifySignal | NotifyThreadID, Target: 1},
		{ID: 0, Signal: 34, Value: 0x1122334455667788, Notify: NotifySignal, Target: 1, Clock: 1},
	})
}

func TestFDInfo(t *testing.T) {
	set := Set(1<<9 | 1<<33)
	base := FDInfo{Flags: 0o2000002, MntID: 17, Ino: 26}
	with := func(fn func(*FDInfo)) *FDInfo { c := base; fn(&c); return &c }
	for name, w := range map[string]*FDInfo{
		"6.18/fdinfo.eventfd": with(func(i *FDInfo) {
			i.EventFD = &EventFDInfo{Count: 7, ID: 1, Semaphore: true, HasSemaphore: true}
		}),
		"6.18/fdinfo.timerfd": with(func(i *FDInfo) {
			i.TimerFD = &TimerFDInfo{Clock: 1, Value: 99_998_738_728, Interval: 1_000_000_500}
		}),
		"6.18/fdinfo.signalfd": with(func(i *FDInfo) { i.Flags, i.SignalFD = 2, &set }),
		"6.18/fdinfo.epoll": with(func(i *FDInfo) {
			i.IsEpoll = true
			i.Epoll = []EpollTarget{{FD: 3, Events: 0x80000019, Data: 3, Ino: 0x1a, Dev: 0x10}, {FD: 4, Events: 0x19, Data: 4, Ino: 0x1a, Dev: 0x10}}
		}),
		"6.18/fdinfo.pidfd": with(func(i *FDInfo) { i.MntID, i.Ino, i.PIDFD = 4, 10577, &PIDFDInfo{PID: 1, NSPID: []int{1}} }),
		"6.18/fdinfo.file":  {Pos: 100, Flags: 0o2102002, MntID: 43, Ino: 9978033, Locks: []string{"1: FLOCK  ADVISORY  WRITE 1 fe:00:9978033 0 EOF"}},
		"6.18/fdinfo.inotify": {MntID: 17, Ino: 26, Inotify: []InotifyWatch{
			{WD: 2, Ino: 0x4c8, Dev: 0xfe00000, Mask: 0x300, HandleType: 1, Handle: "c804000000000000"},
			{WD: 1, Ino: 0x3c4a3, Dev: 0xfe00000, Mask: 0x100, HandleType: 1, Handle: "a3c4030000000000"}}},
		"6.1/fdinfo.epoll": {Flags: 2, MntID: 15, Ino: 2080, IsEpoll: true,
			Epoll: []EpollTarget{{FD: 7, Events: 0x40000001, Data: ^uint64(0), Pos: 12, Ino: 0x61af, Dev: 7}}},
		"6.1/fdinfo.eventfd": {Flags: 0o4002, MntID: 15, Ino: 2080, EventFD: &EventFDInfo{Count: ^uint64(1), ID: 54}},
		"6.1/fdinfo.iouring": {Flags: 0o2000002, MntID: 15, Ino: 2080, Other: []string{"SqMask:\t0x7f", "SqHead:\t0", "UserFiles:\t0"}},
	} {
		want(t, name, fixture(t, ParseFDInfo, name), w)
	}
}

func TestSystem(t *testing.T) {
	a := fixture(t, ParseAuxv, "6.18/auxv")
	if v, ok := AuxValue(a, AuxPageSz); !ok || v != 4096 {
		t.Errorf("page size %d, %v", v, ok)
	}
	want(t, "cgroup", fixture(t, ParseCgroups, "6.18/cgroup"), []CgroupPath{
		{Hierarchy: 9, Controllers: []string{"name=systemd"}, Path: "/"},
		{Hierarchy: 2, Controllers: []string{"cpu", "cpuacct"}, Path: "/"}, {Path: "/lab/host1"}})
	m := fixture(t, ParseMounts, "6.18/mountinfo")
	want(t, "mount point", m[2].Mountpoint, "/mnt/x y")
	want(t, "offsets", fixture(t, ParseClockOffsets, "6.18/timens_offsets"), ClockOffset{})
	o, err := ParseClockOffsets(strings.NewReader("monotonic         -2 500000000\nboottime  7 1\n"))
	if err != nil || o.Monotonic != -1500*time.Millisecond || o.Boottime != 7*time.Second+1 {
		t.Errorf("offsets %+v, %v", o, err)
	}
}

func TestLive(t *testing.T) {
	if _, err := os.Stat("/proc/self/status"); err != nil {
		t.Skip("no /proc here")
	}
	pid := os.Getpid()
	tasks, err := Host.Tasks(pid)
	if err != nil || len(tasks) < 2 || tasks[0] != pid {
		t.Errorf("tasks %v, %v", tasks, err)
	}
	if _, err := Host.ThreadStatus(pid, tasks[1]); err != nil {
		t.Error(err)
	}
	if _, err := Host.Smaps(pid); err != nil {
		t.Error(err)
	}
	if _, err := Host.Stat(1 << 23); !errors.Is(err, ErrGone) {
		t.Errorf("a process that cannot exist: %v", err)
	}
	if id, err := Host.BootID(); err != nil || len(id) != 36 {
		t.Errorf("boot id %q, %v", id, err)
	}
	if up, err := Host.Uptime(); err != nil || up == 0 {
		t.Errorf("uptime %v, %v", up, err)
	}
}

func TestBadInputNamesTheField(t *testing.T) {
	for in, part := range map[string]string{
		"zz-1000 r--p 0 0:0 0":                           "start",
		"2000-1000 r--p 0 0:0 0":                         "reversed",
		"1000-2000 rwx 0 0:0 0":                          "permissions",
		"1000-2000 rwxp 0 0:0 0x9":                       "inode",
		"1000-2000 rwxp 0 00 9":                          "device",
		"1000-3000 r--p 0 0:0 0\n2000-4000 r--p 0 0:0 0": "line 2: address",
	} {
		if _, err := ParseMaps(strings.NewReader(in)); err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%q: %v, want an error with %q", in, err, part)
		}
	}
	if _, err := ParseStatus(strings.NewReader("Uid:\t1 2\n")); err == nil || !strings.Contains(err.Error(), "Uid") {
		t.Error(err)
	}
	if _, err := ParseStatus(strings.NewReader("Cpus_allowed_list:\t0-4294967295\n")); err == nil {
		t.Error("a list of four billion processors was taken")
	}
}

// fuzz feeds a parser with every fixture whose name contains part.
func fuzz[T any](f *testing.F, parser func(io.Reader) (T, error), part string) {
	for _, dir := range []string{"6.18", "6.1", "4.19"} {
		names, _ := filepath.Glob(filepath.Join("testdata", dir, part+"*"))
		for _, n := range names {
			b, err := os.ReadFile(n)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
		}
	}
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = parser(bytes.NewReader(b)) })
}

func FuzzStat(f *testing.F)    { fuzz(f, ParseStat, "stat") }
func FuzzStatus(f *testing.F)  { fuzz(f, ParseStatus, "status") }
func FuzzMaps(f *testing.F)    { fuzz(f, ParseMaps, "maps") }
func FuzzSmaps(f *testing.F)   { fuzz(f, ParseSmaps, "smaps") }
func FuzzLimits(f *testing.F)  { fuzz(f, ParseLimits, "limits") }
func FuzzTimers(f *testing.F)  { fuzz(f, ParseTimers, "timers") }
func FuzzFDInfo(f *testing.F)  { fuzz(f, ParseFDInfo, "fdinfo") }
func FuzzAuxv(f *testing.F)    { fuzz(f, ParseAuxv, "auxv") }
func FuzzCgroups(f *testing.F) { fuzz(f, ParseCgroups, "cgroup") }
func FuzzClocks(f *testing.F)  { fuzz(f, ParseClockOffsets, "timens") }

// BenchmarkParseMaps parses 50,000 mappings, as the freeze of a program with that many does.
func BenchmarkParseMaps(b *testing.B) {
	var text bytes.Buffer
	for i := range 50_000 {
		fmt.Fprintf(&text, "%x-%x rw-p 00000000 fe:00 %d %20s/usr/lib/x86_64-linux-gnu/libc.so.6\n", 0x7f0000000000+i*8192, 0x7f0000000000+i*8192+4096, i/5, "")
	}
	b.SetBytes(int64(text.Len()))
	for b.Loop() {
		if m, err := ParseMaps(bytes.NewReader(text.Bytes())); err != nil || len(m) != 50_000 {
			b.Fatal(len(m), err)
		}
	}
}

func BenchmarkParseSmaps(b *testing.B) {
	text, err := os.ReadFile("testdata/6.18/smaps")
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		if _, err := ParseSmaps(bytes.NewReader(text)); err != nil {
			b.Fatal(err)
		}
	}
}

func TestDescends(t *testing.T) {
	is := func(want int) func(int) bool { return func(pid int) bool { return pid == want } }
	self, parent := os.Getpid(), os.Getppid()
	if !Host.Descends(self, is(parent)) {
		t.Errorf("%d does not descend from its parent %d", self, parent)
	}
	if Host.Descends(self, is(self)) || Host.Descends(parent, is(self)) || Host.Descends(1<<30, is(self)) {
		t.Error("a process that is not below another descends from it")
	}
}
