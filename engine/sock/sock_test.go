package sock

import (
	"math"
	"net/netip"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"

	"migrate/tcprepair"
)

// fill gives every field of a structure a value of its own, so that a field that a codec forgets is noticed.
func fill(v reflect.Value, n *uint64) {
	*n++
	switch v.Kind() {
	case reflect.Struct:
		if a, ok := v.Addr().Interface().(*netip.AddrPort); ok {
			*a = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(*n)}), uint16(*n))
			return
		}
		for i := range v.NumField() {
			fill(v.Field(i), n)
		}
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(*n)
	case reflect.Int32, reflect.Int64, reflect.Int:
		v.SetInt(int64(*n))
	case reflect.String:
		v.SetString(string(rune('a' + *n%26)))
	case reflect.Slice:
		v.SetBytes([]byte{byte(*n), 1, 2})
	case reflect.Map:
		if v.Type().Elem().Kind() == reflect.Slice {
			v.Set(reflect.ValueOf(map[string][]byte{"IP_OPTIONS": {byte(*n)}}))
			return
		}
		v.Set(reflect.ValueOf(map[string]int64{"TCP_NODELAY": 1, "SO_MARK": int64(*n)}))
	}
}

func TestTCPCodecHoldsAllFields(t *testing.T) {
	var n uint64
	want := &tcprepair.State{}
	fill(reflect.ValueOf(want).Elem(), &n)
	got := &tcprepair.State{}
	r := &coder{in: EncodeTCP(want), reading: true}
	if err := r.state(got).finish(); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); d != "" {
		t.Error(d)
	}
	wantL, gotL := &tcprepair.Listener{}, &tcprepair.Listener{}
	fill(reflect.ValueOf(wantL).Elem(), &n)
	r = &coder{in: EncodeListener(wantL), reading: true}
	if err := r.listener(gotL).finish(); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(wantL, gotL, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); d != "" {
		t.Error(d)
	}
	wantI, gotI := &tcprepair.Idle{}, &tcprepair.Idle{}
	fill(reflect.ValueOf(wantI).Elem(), &n)
	r = &coder{in: EncodeIdle(wantI), reading: true}
	if err := r.idle(gotI).finish(); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(wantI, gotI, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); d != "" {
		t.Error(d)
	}
}

func FuzzDecodeTCP(f *testing.F) {
	var n uint64
	s, l := &tcprepair.State{}, &tcprepair.Listener{}
	fill(reflect.ValueOf(s).Elem(), &n)
	fill(reflect.ValueOf(l).Elem(), &n)
	f.Add(EncodeTCP(s))
	f.Add(EncodeListener(l))
	f.Add(EncodeWaiting([]Waiting{{State: s, PeerTimestamp: 5}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := DecodeTCP(b); err == nil {
			again := &coder{in: EncodeTCP(s), reading: true}
			if err := again.state(&tcprepair.State{}).finish(); err != nil {
				t.Error(err)
			}
		}
		_, _ = DecodeListener(b)
		_, _ = DecodeIdle(b)
		if list, err := DecodeWaiting(b); err == nil && !reflect.DeepEqual(EncodeWaiting(list), b) {
			t.Errorf("%x decodes to %v, which encodes otherwise", b, list)
		}
	})
}

func FuzzDecodeInet(f *testing.F) {
	f.Add(EncodeInet(&Inet{Local: netip.MustParseAddrPort("127.0.0.1:53"), Remote: netip.MustParseAddrPort("0.0.0.0:0"), UnicastIf: "eth0",
		Groups: []Membership{{Device: "lo", Group: netip.MustParseAddr("224.0.0.9"), Sources: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}},
		Queue:  []Datagram{{From: netip.MustParseAddrPort("10.0.0.1:5"), To: netip.MustParseAddr("10.0.0.2"), Data: []byte("x")}, {From: netip.MustParseAddrPort("10.0.0.1:5")}}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if u, err := DecodeInet(b); err == nil {
			if _, err := DecodeInet(EncodeInet(u)); err != nil {
				t.Error(err)
			}
		}
	})
}

func FuzzDecodeMore(f *testing.F) {
	f.Add(EncodeMore(&More{Ints: map[string]int64{"IP_TTL": 3, "SO_TIMESTAMP": 1}, Bytes: map[string][]byte{"IP_OPTIONS": {1, 1, 1, 0}}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := DecodeMore(b); err == nil {
			if _, err := DecodeMore(EncodeMore(m)); err != nil {
				t.Error(err)
			}
		}
	})
}

func FuzzDecodeUnix(f *testing.F) {
	f.Add(EncodeUnix(&UnixState{PeerName: []byte("\x00name"), Cred: &Cred{1, 2, 3}, Groups: []uint32{4}, Path: "/path", Reset: true, Weight: 5,
		Packets: []Packet{{Data: []byte("data"), From: []byte("from"), Cred: &Cred{6, 7, 8}, Rights: []uint32{9}, Urgent: true}},
		Pending: []Pending{{Client: 1, Packets: []Packet{{Data: []byte("x")}}}}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := DecodeUnix(b); err == nil {
			if _, err := DecodeUnix(EncodeUnix(s)); err != nil {
				t.Error(err)
			}
		}
	})
}

func FuzzDecodeQueue(f *testing.F) {
	f.Add(EncodeQueue([]Message{{Data: []byte("one")}, {}, {Data: []byte("x"), From: []byte("y")}}))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		msgs, err := DecodeQueue(b)
		if err == nil && !reflect.DeepEqual(EncodeQueue(msgs), b) && len(b) > 0 {
			t.Errorf("%x decodes to %v, which encodes otherwise", b, msgs)
		}
	})
}

func TestDecodeRefusesHugeCounts(t *testing.T) {
	b := EncodeListener(&tcprepair.Listener{})
	for i := range 4 {
		b[len(b)-1-i] = math.MaxUint8
	}
	if _, err := DecodeListener(b); err == nil {
		t.Error("a count of 4294967295 options is accepted")
	}
}
