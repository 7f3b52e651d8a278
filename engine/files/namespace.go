//go:build linux

package files

import (
	"context"
	"fmt"
	"math"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	ns_file "github.com/checkpoint-restore/go-criu/v8/crit/images/ns"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine/procfs"
)

// nsGetType is NS_GET_NSTYPE (ioctl_ns(2)).
const nsGetType = 0xb703

var nsPath = regexp.MustCompile(`^/proc/\d+/ns/[a-z_]+$`)

// nsLinks are the names below /proc/PID/ns that may lead to a namespace of a type, by the CLONE_* flag of the type.
var nsLinks = map[int][]string{
	unix.CLONE_NEWNS: {"mnt"}, unix.CLONE_NEWUTS: {"uts"}, unix.CLONE_NEWIPC: {"ipc"}, unix.CLONE_NEWNET: {"net"}, unix.CLONE_NEWUSER: {"user"},
	unix.CLONE_NEWCGROUP: {"cgroup"}, unix.CLONE_NEWPID: {"pid", "pid_for_children"}, unix.CLONE_NEWTIME: {"time", "time_for_children"},
}

// A handle of a namespace that a process of the tree is in becomes one of the namespace that this process is in at the
// destination. Its record's ns_id is the process, as the tree knows it, and its blob the name of the link below /proc/PID/ns. Of
// another namespace, while it lives on the same host, the blob is the path of a link of another process.
var kindNamespace = &Kind{
	Name: "namespace", Type: fdinfo.FdTypes_NS, Carried: true,
	Note:  "a handle of a namespace that a process of the tree is in; of another one only by migrate dump and restore on one host, while some process is in it or the tree alone has it",
	match: func(d *description) bool { return d.format() == unix.S_IFREG && d.magic() == magicNS },
	check: func(_ context.Context, dm *Dumper, d *description) []problem {
		if _, _, err := dm.namespaceOf(d); err != nil {
			return []problem{{reason: err.Error()}}
		}
		return nil
	},
	dump: dumpNamespace, open: openNamespace,
}

func nsBlob(id uint32) string { return fmt.Sprintf("ns-%d", id) }

// namespaceOf finds who is in a namespace: a process of the tree, or the path of a link of another one.
func (d *Dumper) namespaceOf(desc *description) (vpid int, link string, err error) {
	typ, err := unix.IoctlRetInt(desc.fd, nsGetType)
	if err != nil {
		return 0, "", fmt.Errorf("NS_GET_NSTYPE: %w", err)
	}
	is := func(name string) bool {
		var st unix.Stat_t
		return unix.Stat(name, &st) == nil && st.Ino == desc.stat.Ino && st.Dev == desc.stat.Dev
	}
	for _, p := range d.procs {
		for _, name := range nsLinks[typ] {
			if is(procfs.Host.Path(p.PID, "ns", name)) {
				return p.VPID, name, nil
			}
		}
	}
	if typ == unix.CLONE_NEWNET && d.opts.SameHost && !d.isUsed(desc.stat.Ino, typ) {
		return 0, nestedLink, nil
	}
	if d.opts.SameHost {
		pids, err := procfs.Host.PIDs()
		if err != nil {
			return 0, "", err
		}
		for _, pid := range pids {
			if pid == os.Getpid() {
				continue // it will not be there
			}
			for _, name := range nsLinks[typ] {
				if at := procfs.Host.Path(pid, "ns", name); is(at) {
					return 0, at, nil
				}
			}
		}
	}
	return 0, "", fmt.Errorf("it is a handle of a namespace that no process of the tree is in (%s)", desc.path())
}

// nestedLink stands for a nested namespace that no process of the tree is in (imagespb.NestedNamespace).
const nestedLink = "nested"

// isUsed tells whether some process, of the tree or not, is in a namespace.
func (d *Dumper) isUsed(ino uint64, typ int) bool {
	pids, err := procfs.Host.PIDs()
	if err != nil {
		return true
	}
	for _, pid := range append(pids, os.Getpid()) {
		for _, name := range nsLinks[typ] {
			var st unix.Stat_t
			if unix.Stat(procfs.Host.Path(pid, "ns", name), &st) == nil && st.Ino == ino {
				return true
			}
		}
	}
	return false
}

func dumpNamespace(_ context.Context, r *dump, d *description) (*fdinfo.FileEntry, error) {
	vpid, link, err := r.namespaceOf(d)
	if err != nil {
		return nil, err
	}
	typ, err := unix.IoctlRetInt(d.fd, nsGetType)
	if err != nil {
		return nil, fmt.Errorf("NS_GET_NSTYPE: %w", err)
	}
	if link == nestedLink {
		id := nestedID(r.cp.Header, d.stat.Ino)
		if id == 0 {
			return nil, fmt.Errorf("a namespace that is not among those of the tree: %w", ErrNotCarried)
		}
		link += "\x00" + strconv.FormatUint(uint64(id), 10)
	} else if vpid == 0 {
		link += "\x00" + strconv.FormatUint(d.stat.Ino, 10)
	}
	r.blob(nsBlob(d.id), []byte(link))
	return &fdinfo.FileEntry{Nsf: &ns_file.NsFileEntry{Id: proto.Uint32(d.id), NsId: proto.Uint32(uint32(vpid)), NsCflag: proto.Uint32(uint32(typ)),
		Flags: proto.Uint32(uint32(d.flags))}}, nil
}

func openNamespace(_ context.Context, r *Restorer, e *fdinfo.FileEntry) error {
	link := string(r.cp.Blobs[nsBlob(e.GetId())])
	var ino uint64
	if name, id := outsideNamespace(link); name == nestedLink && e.Nsf.GetNsId() == 0 {
		return r.openNested(e, id)
	}
	if vpid := int(e.Nsf.GetNsId()); vpid != 0 {
		if r.cp.Process(uint32(vpid)) == nil {
			return fmt.Errorf("it is a namespace of process %d, which is not in the tree", vpid)
		}
		if !slices.Contains(nsLinks[int(e.Nsf.GetNsCflag())], link) {
			return fmt.Errorf("blob %s names %.40q, which is no link to a namespace", nsBlob(e.GetId()), link)
		}
		pid, err := r.pid(vpid)
		if err != nil {
			return err
		}
		link = procfs.Host.Path(pid, "ns", link)
	} else if link, ino = outsideNamespace(link); !nsPath.MatchString(link) || ino == 0 {
		return fmt.Errorf("blob %s names no namespace", nsBlob(e.GetId()))
	}
	f, err := os.Open(link)
	if err != nil {
		return fmt.Errorf("namespace: %w", err)
	}
	r.files[e.GetId()] = f
	fd, err := rawFD(f)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	var fs unix.Statfs_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("%s: %w", link, err)
	}
	if err := unix.Fstatfs(fd, &fs); err != nil || int64(fs.Type) != magicNS || ino != 0 && st.Ino != ino {
		return fmt.Errorf("%s is not the namespace of the dump (%w)", link, err)
	}
	return nil
}

// openNested opens a handle of a nested namespace anew, by way of /proc, as a program does.
func (r *Restorer) openNested(e *fdinfo.FileEntry, id uint64) error {
	var f *os.File
	if r.env.Nested != nil && id <= math.MaxUint32 {
		f = r.env.Nested(uint32(id))
	}
	if f == nil {
		return fmt.Errorf("blob %s: namespace %d is not there", nsBlob(e.GetId()), id)
	}
	fd, err := rawFD(f)
	if err != nil {
		return err
	}
	again, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return fmt.Errorf("namespace: %w", err)
	}
	r.files[e.GetId()] = again
	return nil
}

// outsideNamespace takes the blob of a namespace outside of the tree apart: a path, a zero byte, an inode number.
func outsideNamespace(blob string) (link string, ino uint64) {
	link, text, _ := strings.Cut(blob, "\x00")
	ino, _ = strconv.ParseUint(text, 10, 64) // 0 is no inode
	return link, ino
}
