//go:build linux

package ns

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/userns"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"migrate/engine/images"
	"migrate/engine/remote"
	"migrate/engine/thread"
)

// Requests of ioctl_nsfs(2), which x/sys lacks.
const (
	getUserNS = 0xb701
	getParent = 0xb702
)

// noSetuidFixup is SECBIT_NO_SETUID_FIXUP of capabilities(7): a change of ids leaves the capabilities as they are.
const noSetuidFixup = 1 << 2

// dumpUser reads the maps of the user namespace. It must be the next one below this program's, and own the other namespaces
// of the tree: they are made anew by one clone(2), which makes it so.
func dumpUser(d *dumper) error {
	if err := d.checkOwners(); err != nil {
		return err
	}
	e := &userns.UsernsEntry{}
	for name, dst := range map[string]*[]*userns.UidGidExtent{"uid_map": &e.UidMap, "gid_map": &e.GidMap} {
		text, err := d.fs.Bytes(d.root.PID, name)
		if err != nil {
			return err
		}
		if *dst, err = parseMap(string(text)); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if len(*dst) == 0 {
			d.refuse(name, "it has not been written yet", "")
		}
	}
	groups, err := d.fs.Bytes(d.root.PID, "setgroups")
	if err != nil {
		return err
	}
	d.header.SetgroupsDenied = strings.TrimSpace(string(groups)) == "deny"
	d.out.User = e
	return nil
}

// checkOwners refuses namespaces that do not belong to the user namespace, and one that is not this program's child.
func (d *dumper) checkOwners() error {
	var own unix.Stat_t
	if err := unix.Stat("/proc/self/ns/user", &own); err != nil {
		return err
	}
	parent, err := d.related("user", getParent)
	if err != nil {
		return err
	}
	if parent != own.Ino {
		d.refuse("the process", "its user namespace is not the next one below this program's", "dump it from the namespace that is around it")
	}
	var user unix.Stat_t
	if err := unix.Stat(d.fs.Path(d.root.PID, "ns", "user"), &user); err != nil {
		return err
	}
	for _, k := range kinds {
		if k.flag == unix.CLONE_NEWUSER || d.own&k.flag == 0 {
			continue
		}
		owner, err := d.related(k.link, getUserNS)
		if err != nil {
			return err
		}
		if owner != user.Ino {
			d.refuse("the process", "its "+k.Name+" does not belong to its user namespace", "")
		}
	}
	return nil
}

// related is the inode number of a namespace that another one names (ioctl_nsfs(2)); 0 if it is out of reach.
func (d *dumper) related(link string, request uint) (ino uint64, err error) {
	f, err := d.fs.Open(d.root.PID, "ns", link)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }() // a namespace's handle: nothing is lost
	return relatedTo(f, request)
}

// relatedTo is related of an open namespace.
func relatedTo(f *os.File, request uint) (ino uint64, err error) {
	fd, err := unix.IoctlRetInt(int(f.Fd()), request)
	if errors.Is(err, unix.EPERM) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("%s: ioctl 0x%x: %w", f.Name(), request, err)
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	return st.Ino, err
}

// parseMap parses /proc/PID/uid_map: first id inside, first id outside, count (user_namespaces(7)).
func parseMap(text string) ([]*userns.UidGidExtent, error) {
	var out []*userns.UidGidExtent
	for s := bufio.NewScanner(strings.NewReader(text)); s.Scan(); {
		v, err := numbers(s.Text())
		if err != nil || len(v) != 3 {
			return nil, fmt.Errorf("the line %q: %w", s.Text(), err)
		}
		out = append(out, &userns.UidGidExtent{First: proto.Uint32(uint32(v[0])), LowerFirst: proto.Uint32(uint32(v[1])), Count: proto.Uint32(uint32(v[2]))})
	}
	return out, nil
}

// IDInside is an id of this program's user namespace as one with that map knows it.
func IDInside(m []*userns.UidGidExtent, id uint32) (uint32, bool) {
	for _, x := range m {
		if id >= x.GetLowerFirst() && uint64(id) < uint64(x.GetLowerFirst())+uint64(x.GetCount()) {
			return id - x.GetLowerFirst() + x.GetFirst(), true
		}
	}
	return 0, false
}

// idOutside is the inverse of IDInside.
func idOutside(m []*userns.UidGidExtent, id uint32) (uint32, bool) {
	for _, x := range m {
		if id >= x.GetFirst() && uint64(id) < uint64(x.GetFirst())+uint64(x.GetCount()) {
			return id - x.GetFirst() + x.GetLowerFirst(), true
		}
	}
	return 0, false
}

// rootOf is the id inside as which a namespace is set up: that of root or, where root is not mapped, the first one that is.
func rootOf(m []*userns.UidGidExtent) uint32 {
	if _, ok := idOutside(m, 0); ok || len(m) == 0 {
		return 0
	}
	return m[0].GetFirst()
}

// restoreUser maps the ids and makes the root of the tree root in its user namespace, as which it sets the others up.
func restoreUser(r *restorer) error {
	if r.in.User == nil {
		return errors.New("userns-1.img: is missing")
	}
	dir := fmt.Sprintf("/proc/%d/", r.caller.PID())
	if r.header.GetSetgroupsDenied() { // before the map of groups, afterwards it cannot be denied any more
		if err := writeFile(dir+"setgroups", "deny"); err != nil {
			return err
		}
	}
	uids, gids := r.in.User.GetUidMap(), r.in.User.GetGidMap()
	for name, m := range map[string][]*userns.UidGidExtent{"uid_map": uids, "gid_map": gids} {
		var text strings.Builder
		for _, x := range m {
			fmt.Fprintf(&text, "%d %d %d\n", x.GetFirst(), x.GetLowerFirst(), x.GetCount())
		}
		if err := writeFile(dir+name, text.String()); err != nil {
			return err
		}
	}
	uid, gid := rootOf(uids), rootOf(gids)
	var b remote.Batch
	b.Call(unix.SYS_PRCTL, unix.PR_SET_SECUREBITS, noSetuidFixup, 0, 0, 0)
	if !r.header.GetSetgroupsDenied() {
		b.Call(unix.SYS_SETGROUPS, 0, 0)
	}
	b.Call(unix.SYS_SETRESGID, gid, gid, gid)
	b.Call(unix.SYS_SETRESUID, uid, uid, uid)
	b.Call(unix.SYS_PRCTL, unix.PR_SET_SECUREBITS, 0, 0, 0, 0)
	// A change of ids has made it undumpable, and what /proc has of it root's outside.
	b.Call(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 1, 0, 0, 0)
	if err := r.caller.Run(r.ctx, &b); err != nil {
		return fmt.Errorf("becoming user %d of group %d in it: %w", uid, gid, err)
	}
	return nil
}

// asOwner makes the calling thread, which is thrown away afterwards, one of the root of the tree's user namespace, with all
// capabilities outside: files of others cannot be in a file system of that namespace, and some settings only root may write.
func (r *restorer) asOwner() error {
	if err := unix.Prctl(unix.PR_SET_SECUREBITS, noSetuidFixup, 0, 0, 0); err != nil {
		return fmt.Errorf("SECBIT_NO_SETUID_FIXUP: %w", err)
	}
	return becomeOwner(r.in)
}

// AsOwner runs fn, which makes files for a tree, as asOwner would, if the tree has a user namespace for itself.
func AsOwner(in *images.Namespaces, fn func() error) error {
	if in == nil || in.User == nil {
		return fn()
	}
	return thread.ThrowAway(func() error {
		r := &restorer{in: in}
		if err := r.asOwner(); err != nil {
			return err
		}
		return fn()
	})
}

func becomeOwner(in *images.Namespaces) error {
	if in.User == nil {
		return nil
	}
	uid, ok1 := idOutside(in.User.GetUidMap(), rootOf(in.User.GetUidMap()))
	gid, ok2 := idOutside(in.User.GetGidMap(), rootOf(in.User.GetGidMap()))
	if !ok1 || !ok2 {
		return errors.New("the user namespace maps no ids")
	}
	return setThreadIDs(uid, gid)
}
