package sock

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/sk-opts"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// ErrOption marks an option that no record has room for; it wraps nothing that a retry would change.
var ErrOption = errors.New("the option is not carried")

// Options reads those options of level SOL_SOCKET that CRIU's record has a place for, of a socket that is not a TCP
// connection; SaveMore reads the others. One that is set and cannot be carried gives an error that matches ErrOption.
func Options(fd int) (*sk_opts.SkOptsEntry, error) {
	program, err := filter(fd)
	if err != nil {
		return nil, err
	}
	o := &sk_opts.SkOptsEntry{SoFilter: program}
	for _, f := range []struct {
		opt int
		to  **uint32
	}{
		{unix.SO_SNDBUF, &o.SoSndbuf}, {unix.SO_RCVBUF, &o.SoRcvbuf}, {unix.SO_PRIORITY, &o.SoPriority},
		{unix.SO_RCVLOWAT, &o.SoRcvlowat}, {unix.SO_MARK, &o.SoMark}, {unix.SO_OOBINLINE, &o.SoOobinline},
		{unix.SO_BUF_LOCK, &o.SoBufLock},
	} {
		v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, f.opt)
		if err != nil {
			if f.opt == unix.SO_BUF_LOCK { // since 5.15
				continue
			}
			return nil, fmt.Errorf("read socket option %d: %w", f.opt, err)
		}
		*f.to = proto.Uint32(uint32(v))
	}
	for _, f := range boolOptions(o) {
		v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, f.opt)
		if err == nil {
			*f.to = proto.Bool(v != 0)
		} else if !quiet(err) {
			return nil, fmt.Errorf("read socket option %d: %w", f.opt, err)
		}
	}
	return o, rareOptions(fd, o)
}

// rareOptions reads those that are no integers.
func rareOptions(fd int, o *sk_opts.SkOptsEntry) error {
	snd, err := unix.GetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO)
	if err != nil {
		return fmt.Errorf("read SO_SNDTIMEO: %w", err)
	}
	rcv, err := unix.GetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO)
	if err != nil {
		return fmt.Errorf("read SO_RCVTIMEO: %w", err)
	}
	o.SoSndTmoSec, o.SoSndTmoUsec = proto.Uint64(uint64(snd.Sec)), proto.Uint64(uint64(snd.Usec))
	o.SoRcvTmoSec, o.SoRcvTmoUsec = proto.Uint64(uint64(rcv.Sec)), proto.Uint64(uint64(rcv.Usec))
	var b [16]byte
	if _, err := getsockopt(fd, unix.SOL_SOCKET, unix.SO_LINGER, b[:8]); err != nil {
		return fmt.Errorf("read SO_LINGER: %w", err)
	}
	if binary.NativeEndian.Uint32(b[:]) != 0 {
		o.SoLinger = proto.Uint32(binary.NativeEndian.Uint32(b[4:]))
	}
	n, err := getsockopt(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, b[:])
	if err != nil && !quiet(err) {
		return fmt.Errorf("read SO_BINDTODEVICE: %w", err)
	}
	if dev := unix.ByteSliceToString(b[:n]); dev != "" {
		o.SoBoundDev = proto.String(dev)
	}
	return nil
}

type boolOption struct {
	opt int
	to  **bool
}

func boolOptions(o *sk_opts.SkOptsEntry) []boolOption {
	return []boolOption{
		{unix.SO_REUSEADDR, &o.Reuseaddr}, {unix.SO_PASSCRED, &o.SoPasscred}, {unix.SO_PASSSEC, &o.SoPasssec},
		{unix.SO_DONTROUTE, &o.SoDontroute}, {unix.SO_NO_CHECK, &o.SoNoCheck}, {unix.SO_REUSEPORT, &o.SoReuseport},
		{unix.SO_BROADCAST, &o.SoBroadcast}, {unix.SO_KEEPALIVE, &o.SoKeepalive},
	}
}

// SetEarly sets the options that bind(2) looks at. m may be nil.
func SetEarly(fd int, o *sk_opts.SkOptsEntry, m *More) error {
	if o.GetReuseaddr() {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return fmt.Errorf("set SO_REUSEADDR: %w", err)
		}
	}
	if o.GetSoReuseport() {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
			return fmt.Errorf("set SO_REUSEPORT: %w", err)
		}
	}
	if dev := o.GetSoBoundDev(); dev != "" {
		if err := unix.BindToDevice(fd, dev); err != nil {
			return fmt.Errorf("bind to interface %q: %w", dev, err)
		}
	}
	return m.set(fd, early)
}

// SetOptions gives a socket all recorded options, after its queues have been filled. Values that the socket has
// already are not set again. m may be nil.
func SetOptions(fd int, o *sk_opts.SkOptsEntry, m *More) error {
	if err := m.set(fd, late); err != nil {
		return err
	}
	if err := setCommon(fd, o); err != nil { // SO_PRIORITY, which IP_TOS overwrites, comes after m's
		return err
	}
	if err := setFilter(fd, o.GetSoFilter()); err != nil {
		return err
	}
	return m.set(fd, last)
}

func setCommon(fd int, o *sk_opts.SkOptsEntry) error {
	for _, f := range boolOptions(o) {
		if *f.to == nil {
			continue
		}
		want := 0
		if **f.to {
			want = 1
		}
		if err := setInt(fd, f.opt, want); err != nil {
			return err
		}
	}
	for _, f := range []struct {
		opt  int
		from *uint32
	}{
		{unix.SO_PRIORITY, o.SoPriority}, {unix.SO_RCVLOWAT, o.SoRcvlowat}, {unix.SO_MARK, o.SoMark}, {unix.SO_OOBINLINE, o.SoOobinline},
	} {
		if f.from == nil {
			continue
		}
		if err := setInt(fd, f.opt, int(*f.from)); err != nil {
			return err
		}
	}
	if o.SoLinger != nil {
		l := unix.Linger{Onoff: 1, Linger: int32(*o.SoLinger)}
		if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &l); err != nil {
			return fmt.Errorf("set SO_LINGER: %w", err)
		}
	}
	for _, f := range []struct {
		opt       int
		sec, usec uint64
	}{
		{unix.SO_SNDTIMEO, o.GetSoSndTmoSec(), o.GetSoSndTmoUsec()}, {unix.SO_RCVTIMEO, o.GetSoRcvTmoSec(), o.GetSoRcvTmoUsec()},
	} {
		if f.sec == 0 && f.usec == 0 {
			continue
		}
		tv := unix.Timeval{Sec: int64(f.sec), Usec: int64(f.usec)}
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, f.opt, &tv); err != nil {
			return fmt.Errorf("set socket option %d to %d s %d us: %w", f.opt, f.sec, f.usec, err)
		}
	}
	return setBuffers(fd, o)
}

func setInt(fd, opt, want int) error {
	have, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, opt)
	if err == nil && have == want {
		return nil
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, opt, want); err != nil {
		return fmt.Errorf("set socket option %d to %d: %w", opt, want, err)
	}
	return nil
}

// setBuffers sets the sizes of the buffers, whatever the limits of the system, and then who may change them.
func setBuffers(fd int, o *sk_opts.SkOptsEntry) error {
	for _, f := range []struct {
		get, force int
		want       uint32
	}{
		{unix.SO_SNDBUF, unix.SO_SNDBUFFORCE, o.GetSoSndbuf()}, {unix.SO_RCVBUF, unix.SO_RCVBUFFORCE, o.GetSoRcvbuf()},
	} {
		have, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, f.get)
		if err == nil && have == int(f.want) {
			continue
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, f.force, int(f.want/2)); err != nil { // the kernel doubles it
			return fmt.Errorf("set the size of a socket buffer to %d bytes: %w", f.want, err)
		}
	}
	if o.SoBufLock == nil {
		return nil
	}
	return setInt(fd, unix.SO_BUF_LOCK, int(*o.SoBufLock))
}

// quiet tells whether an error of getsockopt means only that this kernel or socket has no such option.
func quiet(err error) bool {
	return errors.Is(err, unix.ENOPROTOOPT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)
}
