//go:build linux

package restore

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine/images"
	"migrate/engine/images/imagespb"
	"migrate/engine/kernel/kerneltest"
	"migrate/engine/ns"
	"migrate/engine/procfs"
	"migrate/engine/remote"
)

// layoutOfProcess describes a process as far as this package's tests need it.
func layoutOfProcess(t *testing.T, pid int, vpid uint32, threads ...uint32) *images.Layout {
	t.Helper()
	maps, err := procfs.Host.Maps(pid)
	if err != nil {
		t.Fatal(err)
	}
	l := &images.Layout{Header: &imagespb.Header{}, Tree: []*pstree.PstreeEntry{{Pid: proto.Uint32(vpid), Ppid: proto.Uint32(1), Pgid: proto.Uint32(vpid), Sid: proto.Uint32(vpid), Threads: append([]uint32{vpid}, threads...)}}}
	space := &images.Space{PID: vpid, MM: &mm.MmEntry{}}
	ids := map[string]uint64{}
	for _, m := range maps {
		v := area(m.Start>>12, m.End>>12, m.Prot, images.VMARegular, 0)
		v.Pgoff, v.Fdflags = proto.Uint64(m.Offset), proto.Uint32(unix.O_RDWR)
		switch {
		case m.Path == "[vsyscall]":
			v.Status = proto.Uint32(images.VMAVsyscall)
		case m.Path == "[vdso]":
			v.Status = proto.Uint32(images.VMAVDSO)
		case strings.HasPrefix(m.Path, "[vvar"):
			v.Status = proto.Uint32(images.VMAVvar)
		case strings.HasPrefix(m.Path, "/dev/zero"):
			v.Status, v.Flags, v.Shmid = proto.Uint32(images.VMAAnonShared), proto.Uint32(unix.MAP_SHARED), proto.Uint64(1)
			l.Header.Objects = []*imagespb.Object{{Id: 1, Size: m.Size()}}
		case strings.HasPrefix(m.Path, "/"):
			if ids[m.Path] == 0 {
				ids[m.Path] = uint64(len(ids) + 1)
				id := proto.Uint32(uint32(ids[m.Path]))
				l.Files = append(l.Files, &fdinfo.FileEntry{Id: id, Reg: &regfile.RegFileEntry{Id: id, Name: proto.String(m.Path)}})
			}
			v.Shmid, v.Status = proto.Uint64(ids[m.Path]), proto.Uint32(images.VMAFilePrivate)
			if m.Shared {
				v.Status, v.Flags = proto.Uint32(images.VMAFileShared), proto.Uint32(unix.MAP_SHARED)
			}
		default:
			v.Status, v.Flags = proto.Uint32(images.VMAAnonPrivate), proto.Uint32(unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
			if m.Path == "[stack]" {
				v.Flags = proto.Uint32(unix.MAP_PRIVATE | unix.MAP_ANONYMOUS | unix.MAP_GROWSDOWN)
			}
		}
		space.MM.Vmas = append(space.MM.Vmas, v)
	}
	l.Spaces = []*images.Space{space}
	return l
}

// ranges prints the mappings of a process, without the names that only a finished restore gives, and without the stub.
func ranges(t *testing.T, pid int, stub uint64) string {
	t.Helper()
	maps, err := procfs.Host.Maps(pid)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, m := range maps {
		if stub != 0 && m.Start >= stub && m.End <= stub+1<<20 {
			continue
		}
		path := m.Path
		if path == "[heap]" || path == "[stack]" {
			path = ""
		}
		fmt.Fprintf(&b, "%x-%x %d %t %x %s\n", m.Start, m.End, m.Prot, m.Shared, m.Offset, path)
	}
	return b.String()
}

// start compiles and starts a workload in a directory of its own and returns its process id when it is ready.
func start(t *testing.T, name string) int {
	t.Helper()
	dir := t.TempDir()
	program := dir + "/program"
	if out, err := exec.Command("gcc", "-O1", "-pthread", "-o", program, "../../e2e/workloads/c/"+name+".c").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cmd := exec.Command(program)
	cmd.Dir, cmd.SysProcAttr = dir, &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) // with its children
		_ = cmd.Wait()
	})
	for range 1000 {
		if _, err := os.Stat(dir + "/ready"); err == nil {
			return cmd.Process.Pid
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("the workload does not get ready")
	return 0
}

func TestSkeletonHasTheMappings(t *testing.T) {
	kerneltest.Root(t)
	for _, name := range []string{"anon_private", "mappings"} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			pid := start(t, name)
			init, err := ns.StartInit(ctx, ns.Spec{})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = init.Kill(context.Background()) }()
			layout := layoutOfProcess(t, pid, 77, 78, 90)
			s, err := Prepare(ctx, Env{Parent: init.PID}, layout)
			if err != nil {
				t.Fatal(err)
			}
			p := s.procs[77]
			stub, _ := p.trap.Region()
			if got, want := ranges(t, p.PID, uint64(stub)), ranges(t, pid, 0); got != want {
				t.Errorf("mappings:\n%s\nwant:\n%s", got, want)
			}
			heap := layout.Spaces[0].MM.Vmas[len(layout.Spaces[0].MM.Vmas)/2]
			for _, v := range layout.Spaces[0].MM.Vmas {
				if v.GetStatus() == images.VMAAnonPrivate && v.GetProt() == 3 {
					heap = v
				}
			}
			content := bytes.Repeat([]byte("12345678"), 512)
			if err := s.WritePages(77, heap.GetStart(), content); err != nil {
				t.Fatal(err)
			}
			// The program goes on meanwhile: a thread and a mapping come, others go; what stays keeps its content.
			next := layoutOfProcess(t, pid, 77, 78, 95)
			vmas := next.Spaces[0].MM.Vmas
			next.Spaces[0].MM.Vmas = append([]*vma.VmaEntry{area(0x20000, 0x20010, 3, images.VMAAnonPrivate, 0)}, vmas...)
			next.Spaces[0].MM.Vmas[0].Flags = proto.Uint32(unix.MAP_PRIVATE | unix.MAP_ANONYMOUS)
			if err := s.Follow(ctx, next); err != nil {
				t.Fatal(err)
			}
			back := make([]byte, 4096)
			if err := p.trap.Memory().Read(remote.Addr(heap.GetStart()), back); err != nil || !bytes.Equal(back, content) {
				t.Errorf("the content of memory that stayed is lost (%v)", err)
			}
			if tids, err := procfs.Host.Tasks(p.PID); err != nil || len(tids) != 3 {
				t.Errorf("threads %v, %v", tids, err)
			}
			if err := s.Destroy(ctx); err != nil {
				t.Fatal(err)
			}
			if st, err := procfs.Host.Stat(p.PID); err == nil && st.State != 'Z' {
				t.Errorf("pid %d is still there in state %c", p.PID, st.State)
			}
		})
	}
}

func area(start, end uint64, prot, status uint32, shmid uint64) *vma.VmaEntry {
	return &vma.VmaEntry{Start: proto.Uint64(start << 12), End: proto.Uint64(end << 12), Prot: proto.Uint32(prot), Status: proto.Uint32(status), Flags: proto.Uint32(2), Shmid: proto.Uint64(shmid), Pgoff: proto.Uint64(start << 12)}
}
