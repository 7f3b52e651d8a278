//go:build linux

package moves

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"migrate/e2e/cluster"
)

// sleeper is a program that notices nothing; python3 programs for tests of what is refused end with it.
const sleeper = "\nimport time\nprint('up', flush=True)\ntime.sleep(1000)\n"

// refused plans and moves a target that must not move, and checks that both say why before anything happens.
func (s *scope) refused(target []string, to string, words ...string) {
	s.Helper()
	for _, verb := range []string{"plan", "move"} {
		args := append([]string{cluster.Migrate, verb}, target...)
		began := time.Now()
		text := s.Fails(0, "host1", append(args, "--to", to)...)
		s.mention(text, words...)
		if d := time.Since(began); d > 15*time.Second {
			s.Errorf("%s took %v to be refused", verb, d)
		}
		if n := strings.Count(strings.TrimSpace(text), "\n"); verb == "move" && n > 8 {
			s.Errorf("the error has %d lines:\n%s", n+1, text)
		}
	}
}

// instance is what ps says of a workload.
type instance struct {
	Name      string `json:"name"`
	Host      string `json:"host"`
	PID       int    `json:"pid"`
	Epoch     uint64 `json:"epoch"`
	State     string `json:"state"`
	Migration string `json:"migration"`
}

func (s *scope) ps(name string) instance {
	s.Helper()
	return s.psOn("host1", name)
}

// psOn is ps as a given host answers.
func (s *scope) psOn(host, name string) instance {
	s.Helper()
	var list []instance
	if err := json.Unmarshal([]byte(s.On(host, cluster.Migrate, "ps", "--all", "-o", "json")), &list); err != nil {
		s.Fatal(err)
	}
	for _, w := range list {
		if w.Name == name {
			return w
		}
	}
	s.Fatalf("ps does not list %q: %+v", name, list)
	return instance{}
}

// unmoved checks that a workload is exactly as it was: the same process, of the same epoch, not moving, not stopped and not
// traced.
func (s *scope) unmoved(before instance) {
	s.Helper()
	if now := s.ps(before.Name); now != before {
		s.Errorf("%s was %+v and is %+v", before.Name, before, now)
	}
	s.runs(before.Host, before.PID)
}

// runs checks that a process of a host is neither stopped nor traced nor frozen.
func (s *scope) runs(host string, pid int) {
	s.Helper()
	state, tracer := "D", ""
	s.until("a process to be in no call that is short", func() bool { // that it waits for its memory, say, is nobody's doing
		for line := range strings.Lines(s.On(host, "cat", "/proc/"+strconv.Itoa(pid)+"/status")) {
			switch f := strings.Fields(line); {
			case len(f) > 1 && f[0] == "State:":
				state = f[1]
			case len(f) > 1 && f[0] == "TracerPid:":
				tracer = f[1]
			}
		}
		return state != "D"
	})
	if state != "R" && state != "S" || tracer != "0" {
		s.Errorf("pid %d on %s has state %q and tracer %q", pid, host, state, tracer)
	}
	frozen := s.On(host, "sh", "-c", `cat /sys/fs/cgroup/unified$(sed -n 's/^0:://p' /proc/`+strconv.Itoa(pid)+`/cgroup)/cgroup.freeze 2>/dev/null || true`)
	if strings.TrimSpace(frozen) == "1" {
		s.Errorf("pid %d on %s is in a frozen cgroup", pid, host)
	}
}

// TestRefusedTargets names processes and hosts that no move can be about.
func TestRefusedTargets(t *testing.T) {
	s := begin(t, time.Minute)
	s.Workload("still", "", "sleep", "1000")
	before := s.ps("still")
	untouched := s.asleep("host1", before.PID)
	s.refused([]string{"--pid", "99999"}, "host2", "99999")
	s.refused([]string{"--pid", "-3"}, "host2", "-3")
	s.refused([]string{"--pid", "1"}, "host2", "pid 1")
	s.refused([]string{"nobody"}, "host2", `"nobody"`)
	s.refused([]string{"still"}, "host9", "host9")
	s.refused([]string{"still"}, "host1", "host1", "same host")
	s.refused([]string{"still", "--host", "host2"}, "host3", "still", "host1", "host2")
	for _, flags := range [][]string{{"--strategy", "magic"}, {"--on-timeout", "hope"}, {"--bandwidth", "fast"}, {"--compress", "zip"}, {"--max-downtime", "-1s"}} {
		text := s.Fails(0, "host1", append([]string{cluster.Migrate, "move", "still", "--to", "host2"}, flags...)...)
		s.mention(text, flags[0], flags[1])
	}
	s.Fails(0, "host1", cluster.Migrate, "move", "still")
	s.Fails(0, "host1", cluster.Migrate, "move", "--to", "host2")
	s.Fails(0, "host1", cluster.Migrate, "move", "still", "--pid", "1", "--to", "host2")
	untouched()
	s.unmoved(before)
	s.Move("still", "host2") // and nothing of all this is in the way of a good move
}

// TestKernelThread refuses a thread of the kernel. No virtual host sees one, so the machine's own is asked for.
func TestKernelThread(t *testing.T) {
	s := begin(t, time.Minute)
	comm, err := os.ReadFile("/proc/2/comm")
	if err != nil || strings.TrimSpace(string(comm)) != "kthreadd" {
		t.Skip("no kernel thread can be seen from here; engine/task tests the rule")
	}
	dir := filepath.Join(t.TempDir(), "dump")
	out, err := exec.CommandContext(s.Ctx, filepath.Join(cluster.Share, "migrate"), "dump", "--pid", "2", "--dir", dir).CombinedOutput()
	if err == nil {
		t.Fatalf("a kernel thread was dumped: %s", out)
	}
	s.mention(string(out), "pid 2", "kernel thread")
}

// syscallByNumber is Python that makes a system call, which must not fail.
func syscallByNumber(name string, args ...any) string {
	list := make([]string, len(args))
	for i, a := range args {
		list[i] = fmt.Sprint(a)
	}
	return fmt.Sprintf("import ctypes\nassert ctypes.CDLL(None).syscall(%s) >= 0, '%s'", strings.Join(list, ", "), name)
}

// TestNotCarried refuses, by name, programs with something that does not move, and leaves them as they were.
func TestNotCarried(t *testing.T) {
	for _, c := range []struct {
		name, script string
		words        []string
	}{
		{"userfaultfd", syscallByNumber("userfaultfd", unix.SYS_USERFAULTFD, 1), []string{"userfaultfd", "fd "}},
		{"perf", `import ctypes
attr = ctypes.create_string_buffer(b'\x01\0\0\0\x70\0\0\0', 128)
` + syscallByNumber("perf_event_open", unix.SYS_PERF_EVENT_OPEN, "attr", 0, -1, -1, 0), []string{"perf event", "fd "}},
		{"vsock", "import socket\ns = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM, 0)", []string{"socket", "fd "}},
		{"pinned", `import ctypes, mmap
buffer, setup = mmap.mmap(-1, 64 << 10), ctypes.create_string_buffer(120)
ring = ctypes.CDLL(None).syscall(` + fmt.Sprint(unix.SYS_IO_URING_SETUP) + `, 4, setup)
assert ring >= 0, 'io_uring_setup'
vector = (ctypes.c_size_t * 2)(ctypes.addressof(ctypes.c_char.from_buffer(buffer)), len(buffer))
` + syscallByNumber("io_uring_register", unix.SYS_IO_URING_REGISTER, "ring", 0 /* IORING_REGISTER_BUFFERS */, "vector", 1),
			[]string{"64 kB", "memory that is pinned for a device or io_uring"}},
		{"secret", `import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype, libc.mmap.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
secret = libc.syscall(` + fmt.Sprint(unix.SYS_MEMFD_SECRET) + `, 0)
os.ftruncate(secret, 4096)
assert libc.mmap(None, 4096, 3, 1, secret, 0) != ctypes.c_void_p(-1).value
os.close(secret)`, []string{"secret memory", "no descriptor"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := begin(t, time.Minute)
			name := "bad-" + c.name
			s.Workload(name, "", "/usr/bin/python3", "-c", c.script+sleeper)
			s.Logs(name, "up\n")
			before := s.ps(name)
			untouched := s.asleep("host1", before.PID)
			s.refused([]string{name}, "host2", append(c.words, "pid "+strconv.Itoa(before.PID))...)
			s.Fails(3, "host1", cluster.Migrate, "plan", name, "--to", "host2")
			untouched()
			s.unmoved(before)
		})
	}
}

// TestMissingFile refuses to move to a host that lacks a file of the program: one that it has open, and the one that it runs.
func TestMissingFile(t *testing.T) {
	s := begin(t, time.Minute)
	for path, words := range map[string][]string{"/srv/only-on-host1": nil, "/srv/differs": {"bytes"}} {
		if err := cluster.Hosts.Host("host1").WriteFile(s.Ctx, path, []byte("what host1 has\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if words != nil {
			if err := cluster.Hosts.Host("host2").WriteFile(s.Ctx, path, []byte("short\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		name := "holds-" + filepath.Base(path)
		s.Workload(name, "", "/usr/bin/python3", "-c", "f = open('"+path+"')\nf.readline()"+sleeper)
		s.Logs(name, "up\n")
		before := s.ps(name)
		untouched := s.asleep("host1", before.PID)
		s.refused([]string{name}, "host2", append(words, path, "host2")...)
		untouched()
		s.unmoved(before)
	}

	sleep, err := os.ReadFile("/bin/sleep")
	if err != nil {
		t.Fatal(err)
	}
	const program = "/srv/own-program"
	if err := cluster.Hosts.Host("host1").WriteFile(s.Ctx, program, sleep, 0o755); err != nil {
		t.Fatal(err)
	}
	s.Workload("own-program", "", program, "1000")
	before := s.ps("own-program")
	s.refused([]string{"own-program"}, "host2", program, "host2")
	s.unmoved(before)
}

// TestAddressInUse refuses to bring an address to where somebody has it.
func TestAddressInUse(t *testing.T) {
	s := begin(t, time.Minute)
	const ip, endpoint = "10.77.0.72", "10.77.0.72:8080"
	bin, err := cluster.Build(s.Ctx, "migrate/e2e/workloads/goserver", "goserver")
	if err != nil {
		t.Fatal(err)
	}
	s.Workload("claimed", ip+"/24", bin, "0.0.0.0:8080")
	s.AwaitListener(endpoint)
	c := s.counter(endpoint)
	c.add(5)
	before := s.ps("claimed")
	s.float("host2", ip+"/24")
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second) // that of the test is over
		defer cancel()
		(&scope{&cluster.Scope{T: t, Ctx: ctx}}).unfloat("host2", ip+"/24")
	})
	s.refused([]string{"claimed"}, "host2", ip, "host2")
	c.add(5)
	s.unmoved(before)
}

// TestMovingAlready refuses a second move of a workload, wherever it would go, and a stop.
func TestMovingAlready(t *testing.T) {
	s := begin(t, time.Minute)
	g := s.busy("twice", "10.77.0.73")
	id := g.slowMove("host2")
	s.refused([]string{"twice"}, "host3", "twice", "moving", id)
	s.refused([]string{"twice"}, "host2", "twice", "moving", id)
	s.On("host3", cluster.Migrate, "cancel", id)
	g.stays(id, "cancelled")
	s.unmoved(g.before)
}

// TestCtrlC interrupts the command during the copy.
func TestCtrlC(t *testing.T) {
	s := begin(t, time.Minute)
	name := "interrupted-" + rand.Text()[:4] // of no move that this test has begun before
	g := s.busy(name, "10.77.0.74")
	cmd := cluster.Hosts.Host("host1").Command(s.Ctx, append([]string{cluster.Migrate, "move", name, "--to", "host2"}, slow...)...)
	var text strings.Builder
	cmd.Stdout, cmd.Stderr = &text, &text
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	id := g.awaitCopy("")
	if err := cmd.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	s.exits(1, cmd.Wait())
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("the cancellation took %v", d)
	}
	s.mention(text.String(), "source_running", "interrupted")
	g.stays(id, "interrupted")
	s.unmoved(g.before)
	s.Move(name, "host2") // what was cancelled is not in the way
	g.goesOn()
}

// TestCancel cancels from another host, by the id.
func TestCancel(t *testing.T) {
	s := begin(t, time.Minute)
	g := s.busy("cancelled", "10.77.0.75")
	id := g.slowMove("host2")
	// An operator's word that would lose the program is not taken while it runs at a host that answers.
	s.mention(s.Fails(1, "host2", cluster.Migrate, "resolve", id, "--run-at", "host2", "--fenced", "host1", "--accept-loss"), "migrate cancel "+id)
	s.On("host2", cluster.Migrate, "cancel", id)
	g.stays(id, "cancelled")
	s.unmoved(g.before)
	s.Fails(0, "host1", cluster.Migrate, "cancel", "m-nonsense")
	r := s.Move("cancelled", "host2")
	s.mention(s.Fails(0, "host1", cluster.Migrate, "cancel", r.ID), r.ID) // the ownership has moved
	g.goesOn()
}

// TestMessageQueueOfWorkload refuses to move a workload with a POSIX message queue that nobody has open.
func TestMessageQueueOfWorkload(t *testing.T) {
	s := begin(t, time.Minute)
	s.Workload("queue", "", "/usr/bin/python3", "-c", `
import ctypes, os
libc = ctypes.CDLL(None)
fd = libc.mq_open(b"/left-behind", os.O_CREAT | os.O_RDWR, 0o600, None)
assert fd >= 0
os.close(fd)`+sleeper)
	s.Logs("queue", "up\n")
	before := s.ps("queue")
	s.refused([]string{"queue"}, "host2", "POSIX message queue /left-behind", "mq_unlink")
	s.unmoved(before)
}
