//go:build linux

package ns

import (
	"fmt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/utsns"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

func dumpUTS(d *dumper) error {
	return Inside(d.root.PID, unix.CLONE_NEWUTS, func() error {
		var u unix.Utsname
		if err := unix.Uname(&u); err != nil {
			return fmt.Errorf("uname: %w", err)
		}
		d.out.UTS = &utsns.UtsnsEntry{
			Nodename: proto.String(unix.ByteSliceToString(u.Nodename[:])), Domainname: proto.String(unix.ByteSliceToString(u.Domainname[:])),
		}
		return nil
	})
}

func restoreUTS(r *restorer) error {
	u := r.in.UTS
	if u == nil {
		return nil
	}
	return r.inside(unix.CLONE_NEWUTS, func() error {
		if err := unix.Sethostname([]byte(u.GetNodename())); err != nil {
			return fmt.Errorf("host name %q: %w", u.GetNodename(), err)
		}
		if err := unix.Setdomainname([]byte(u.GetDomainname())); err != nil {
			return fmt.Errorf("domain name %q: %w", u.GetDomainname(), err)
		}
		return nil
	})
}
