package sock

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func pair(t *testing.T, typ int) (a, b int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fds[0]); _ = unix.Close(fds[1]) })
	return fds[0], fds[1]
}

// TestPeekAndFill moves a queue to another pair, twice from the same source, which must keep what it has.
func TestPeekAndFill(t *testing.T) {
	big := strings.Repeat("b", 300<<10)
	for _, c := range []struct {
		name string
		typ  int
		send []string
		ends bool
	}{
		{"stream", unix.SOCK_STREAM, []string{"one", "two", big[:150<<10]}, true},
		{"datagrams", unix.SOCK_DGRAM, []string{"one", "", big[:100<<10], "end"}, false},
		{"records", unix.SOCK_SEQPACKET, []string{big, "two"}, false},
		{"empty", unix.SOCK_DGRAM, nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := pair(t, c.typ)
			if err := unix.SetsockoptInt(a, unix.SOL_SOCKET, unix.SO_SNDBUF, 4<<20); err != nil {
				t.Fatal(err)
			}
			for _, s := range c.send {
				if _, err := unix.Write(a, []byte(s)); err != nil {
					t.Fatal(err)
				}
			}
			again := 2
			if slices.Contains(c.send, "") {
				again = 1 // see Peek
			}
			for range again {
				list, err := PeekUnix(b, c.typ == unix.SOCK_STREAM, c.ends)
				if err != nil {
					t.Fatal(err)
				}
				to, at := pair(t, c.typ)
				var packets []Packet
				for _, p := range list {
					packets = append(packets, p.Packet)
				}
				if err := FillUnix(to, packets, Filling{}); err != nil {
					t.Skip(err) // the limits of this user
				}
				checkQueue(t, at, c.typ, c.send)
			}
			if again > 1 {
				checkQueue(t, b, c.typ, c.send)
			}
		})
	}
}

func checkQueue(t *testing.T, fd, typ int, want []string) {
	t.Helper()
	if typ == unix.SOCK_STREAM {
		want = []string{strings.Join(want, "")}
	}
	buf := make([]byte, 1<<20)
	for _, w := range want {
		n, err := unix.Read(fd, buf)
		if err != nil || string(buf[:n]) != w {
			t.Fatalf("read %d bytes %.20q (%v), want %d bytes %.20q", n, buf[:max(n, 0)], err, len(w), w)
		}
	}
	if _, err := unix.Read(fd, buf); err != unix.EAGAIN {
		t.Errorf("read at the end: %v", err)
	}
}

func TestPeekAtTheEnd(t *testing.T) {
	for _, typ := range []int{unix.SOCK_STREAM, unix.SOCK_SEQPACKET} {
		a, b := pair(t, typ)
		if _, err := unix.Write(a, []byte("last")); err != nil {
			t.Fatal(err)
		}
		if err := unix.Shutdown(a, unix.SHUT_WR); err != nil {
			t.Fatal(err)
		}
		msgs, err := PeekUnix(b, typ == unix.SOCK_STREAM, true)
		if err != nil || len(msgs) != 1 || string(msgs[0].Data) != "last" {
			t.Errorf("peeked %v (%v)", msgs, err)
		}
	}
}

func TestPeekBringsRightsAndCredentials(t *testing.T) {
	a, b := pair(t, unix.SOCK_DGRAM)
	if err := unix.Sendmsg(a, []byte("x"), unix.UnixRights(0), nil, 0); err != nil {
		t.Fatal(err)
	}
	list, err := PeekUnix(b, false, false)
	if err != nil || len(list) != 1 || len(list[0].FDs) != 1 || list[0].Cred != nil {
		t.Errorf("a descriptor in flight: %v, %v", list, err)
	}
	ClosePeeked(list)
	a, b = pair(t, unix.SOCK_STREAM)
	if err := unix.SetsockoptInt(b, unix.SOL_SOCKET, unix.SO_PASSCRED, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(a, []byte("x")); err != nil {
		t.Fatal(err)
	}
	list, err = PeekUnix(b, true, true)
	if err != nil || len(list) != 1 || list[0].Cred == nil || int(list[0].Cred.PID) != unix.Getpid() {
		t.Errorf("credentials: %v, %v", list, err)
	}
}

// TestOptions gives one socket's options to another one.
func TestOptions(t *testing.T) {
	a, b := pair(t, unix.SOCK_DGRAM)
	f := unix.SockFilter{Code: unix.BPF_RET, K: 0xffff}
	if err := unix.SetsockoptSockFprog(a, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &f}); err != nil {
		t.Fatal(err)
	}
	ints := map[int]int{unix.SO_LOCK_FILTER: 1, unix.SO_TIMESTAMPNS_NEW: 1, unix.SO_PEEK_OFF: 3, unix.SO_RXQ_OVFL: 1, unix.SO_SNDBUF: 50000, unix.SO_PASSCRED: 1}
	for opt, v := range ints {
		if err := unix.SetsockoptInt(a, unix.SOL_SOCKET, opt, v); err != nil {
			t.Fatal(opt, err)
		}
	}
	o, err := Options(a)
	if err != nil {
		t.Fatal(err)
	}
	m, err := SaveMore(a)
	if err != nil {
		t.Fatal(err)
	}
	if m, err = DecodeMore(EncodeMore(m)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(SetEarly(b, o, m), SetOptions(b, o, m)); err != nil {
		t.Skip(err) // the limits of this user
	}
	for opt := range ints {
		x, _ := unix.GetsockoptInt(a, unix.SOL_SOCKET, opt)
		if y, err := unix.GetsockoptInt(b, unix.SOL_SOCKET, opt); err != nil || x != y {
			t.Errorf("option %d is %d (%v), was %d", opt, y, err, x)
		}
	}
	if p, err := filter(b); err != nil || len(p) != 1 || p[0] != unix.BPF_RET|0xffff<<32 {
		t.Errorf("filter %x, %v", p, err)
	}
}

func TestDiag(t *testing.T) {
	d, err := NewDiag()
	if err != nil {
		t.Skip(err)
	}
	defer d.Close()
	a, b := pair(t, unix.SOCK_STREAM)
	var sa, sb unix.Stat_t
	_, _ = unix.Fstat(a, &sa), unix.Fstat(b, &sb)
	u, err := d.Unix(uint32(sa.Ino))
	if err != nil || !u.HasPeer || u.Peer != uint32(sb.Ino) || u.State != 1 || u.Type != unix.SOCK_STREAM {
		t.Errorf("%+v (%v), want peer %d", u, err, sb.Ino)
	}
	if _, err := d.Unix(1); !errors.Is(err, ErrNoSocket) {
		t.Errorf("a socket that does not exist: %v", err)
	}
}

func FuzzUnixDiag(f *testing.F) {
	ok := make([]byte, 32+12)
	ok[0], ok[4], ok[32], ok[34] = byte(len(ok)), diagByFamily, 12, attrVFS
	f.Add(ok)
	f.Add(bytes.Repeat([]byte{1}, 20))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = parseUnixDiag(b) })
}

func FuzzClosing(f *testing.F) {
	ok := make([]byte, 16+inetMsgSize)
	ok[0], ok[4], ok[16] = byte(len(ok)), diagByFamily, unix.AF_INET
	f.Add(ok)
	f.Fuzz(func(_ *testing.T, b []byte) { _, _, _ = parseTCP(b) })
}

func FuzzDatagrams(f *testing.F) {
	ok := make([]byte, 16+inetMsgSize+8)
	ok[0], ok[4], ok[16], ok[16+inetMsgSize], ok[16+inetMsgSize+2] = byte(len(ok)), diagByFamily, unix.AF_INET, 5, attrInetShutdown
	f.Add(ok)
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = parseDatagrams(b, map[uint32]DatagramInfo{}) })
}

func FuzzPackets(f *testing.F) {
	ok := make([]byte, 16+packetMsg+8)
	ok[0], ok[4], ok[16], ok[16+4], ok[16+packetMsg], ok[16+packetMsg+2] = byte(len(ok)), diagByFamily, unix.AF_PACKET, 1, 8, attrPacketFanout
	f.Add(ok)
	f.Fuzz(func(_ *testing.T, b []byte) { _, _, _ = parsePackets(b, 1) })
}

func TestPeerIn(t *testing.T) {
	table := "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n" +
		"  255: 00000000:00FF 0100007F:0000 01 00000000:00000000 00:00000000 00000000     0        0 4711 2 0000000000000000 0\n"
	if a, ok := PeerIn([]byte(table), 4711); !ok || a.String() != "127.0.0.1" {
		t.Errorf("peer %v, %v", a, ok)
	}
}

func TestMulticastGroups(t *testing.T) {
	v4 := "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n1\tlo        :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n" +
		"\t\t\t\tFB0000E0     1 0:00000000\t\t0\n"
	if g := igmp([]byte(v4)); len(g) != 2 || g[1].Group.String() != "224.0.0.251" || g[1].Device != "lo" {
		t.Errorf("groups %v", g)
	}
	v6 := "1    lo              ff020000000000000000000000000001     1 0000000C 0\n2    eth0            ff0200000000000000000001ff000050     2 00000004 0\n" +
		"2    eth0            ff010000000000000000000000000001     1 00000008 0\n2    eth0            ff0200000000000000000000000000fb     1 00000004 0\n"
	if g := igmp6([]byte(v6)); len(g) != 4 || g[3].Group.String() != "ff02::fb" || g[3].Device != "eth0" {
		t.Errorf("groups %v", g)
	}
}
