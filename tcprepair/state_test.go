package tcprepair_test

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"migrate/tcprepair"
)

func sample() *tcprepair.State {
	return &tcprepair.State{
		Local: netip.MustParseAddrPort("10.77.0.50:6379"), Remote: netip.MustParseAddrPort("10.77.0.2:40000"),
		TCP: tcprepair.Established, RecvQueue: []byte("abc"), RecvSeq: 1003, SendQueue: []byte("defgh"), SendSeq: 5, Unsent: 2,
		Window:   tcprepair.Window{SndWl1: 990, SndWnd: 1000, MaxWindow: 2000, RcvWnd: 3000, RcvWup: 1000},
		MSSClamp: 1460, WindowScaling: true, SendScale: 7, RecvScale: 7, SACK: true, Timestamps: true, Timestamp: 12345,
		Settings: tcprepair.Settings{Congestion: "cubic", Options: map[string]int64{"TCP_NODELAY": 1, "SO_PEEK_OFF": -1}},
	}
}

func TestValidate(t *testing.T) {
	if err := sample().Validate(); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		field string
		spoil func(*tcprepair.State)
	}{
		{"TCP", func(s *tcprepair.State) { s.TCP = tcprepair.Listen }},
		{"TCP", func(s *tcprepair.State) { s.TCP = 200 }},
		{"Local", func(s *tcprepair.State) { s.Local = netip.AddrPort{} }},
		{"Local", func(s *tcprepair.State) { s.V6 = true }},
		{"Local", func(s *tcprepair.State) { s.Remote = netip.MustParseAddrPort("224.0.0.1:1") }},
		{"Unsent", func(s *tcprepair.State) { s.Unsent = 6 }},
		{"FinUnsent", func(s *tcprepair.State) { s.FinUnsent = true }},
		{"MSSClamp", func(s *tcprepair.State) { s.MSSClamp = 0 }},
		{"SendScale", func(s *tcprepair.State) { s.SendScale = 15 }},
		{"Window.MaxWindow", func(s *tcprepair.State) { s.Window.MaxWindow = 1 }},
		{"Window.RcvWup", func(s *tcprepair.State) { s.Window.RcvWup = 1004 }},
		{"Window.SndWl1", func(s *tcprepair.State) { s.Window.SndWl1 = 10000 }},
		{"Congestion", func(s *tcprepair.State) { s.Congestion = "a/b" }},
		{"Device", func(s *tcprepair.State) { s.Device = strings.Repeat("x", 16) }},
		{"Options", func(s *tcprepair.State) { s.Options["SO_ATTACH_FILTER"] = 1 }},
		{"Options", func(s *tcprepair.State) { s.Options["SO_MARK"] = 1 << 40 }},
		{"Buffers", func(s *tcprepair.State) { s.Buffers.Recv = 1 << 31 }},
	} {
		s := sample()
		tc.spoil(s)
		if err := s.Validate(); err == nil || !strings.Contains(err.Error(), "field "+tc.field) {
			t.Errorf("%s: %v", tc.field, err)
		}
	}
}

func TestUnacknowledged(t *testing.T) {
	s := sample()
	if n := s.Unacknowledged(); n != 3 {
		t.Errorf("%d bytes, want 3", n)
	}
	s.TCP = tcprepair.CloseWait
	if n := s.Unacknowledged(); n != 4 {
		t.Errorf("%d, want 4: the FIN counts", n)
	}
}

// FuzzState feeds states from outside to the checks and to what computes with them.
func FuzzState(f *testing.F) {
	b, err := json.Marshal(sample())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"V6":true,"Local":"[fe80::1%eth0]:1","Remote":"[::1]:2","TCP":8}`))
	f.Add([]byte(`{"Local":"","Remote":"1.1.1.1:0"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := new(tcprepair.State)
		if json.Unmarshal(b, s) != nil {
			return
		}
		if s.Validate() != nil {
			return
		}
		if n := len(s.AckProbe()); n != 41 && n != 61 {
			t.Errorf("probe of %d bytes", n)
		}
		_ = s.Unacknowledged()
	})
}

func FuzzListener(f *testing.F) {
	f.Add([]byte(`{"Local":"0.0.0.0:80","Backlog":128,"Options":{"SO_REUSEPORT":1}}`))
	f.Fuzz(func(_ *testing.T, b []byte) {
		l := new(tcprepair.Listener)
		if json.Unmarshal(b, l) == nil {
			_ = l.Validate()
		}
	})
}
