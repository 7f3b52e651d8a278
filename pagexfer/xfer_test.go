package pagexfer

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"
)

// memory is a sink that keeps pages by space and address.
type memory struct {
	mu    sync.Mutex
	pages map[uint32]map[uint64][]byte
	delay time.Duration
	fail  error
}

func (m *memory) WritePages(space uint32, addr uint64, data []byte) error {
	time.Sleep(m.delay) // stands for a slow sink
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return m.fail
	}
	if m.pages == nil {
		m.pages = map[uint32]map[uint64][]byte{}
	}
	if m.pages[space] == nil {
		m.pages[space] = map[uint64][]byte{}
	}
	for i := 0; i < len(data); i += PageSize {
		m.pages[space][addr+uint64(i)] = bytes.Clone(data[i : i+PageSize])
	}
	return nil
}

func (m *memory) ZeroPages(space uint32, addr uint64, n uint32) error {
	for i := range uint64(n) {
		if err := m.WritePages(space, addr+i*PageSize, make([]byte, PageSize)); err != nil {
			return err
		}
	}
	return nil
}

// discard is a sink that drops everything.
type discard struct{}

func (discard) WritePages(uint32, uint64, []byte) error { return nil }
func (discard) ZeroPages(uint32, uint64, uint32) error  { return nil }

type rig struct {
	sender   *Sender
	receiver *Receiver
	served   chan error // one per connection
}

// pair connects a sender with a receiver over n loopback connections.
func pair(t testing.TB, n int, conf *tls.Config, opts Options, sink Sink) *rig {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := NewReceiver(sink)
	served := make(chan error, n)
	go func() {
		for range n {
			c, err := l.Accept()
			if err != nil {
				served <- err
				continue
			}
			if conf != nil {
				c = tls.Server(c, conf)
			}
			go func() {
				h, err := Accept(ctx, c)
				if err == nil && string(h.Token) != "token" {
					err = Refuse(ctx, c, "no migration has this token")
				} else if err == nil {
					if err = Welcome(ctx, c); err == nil {
						err = r.Serve(ctx, c)
					}
				}
				served <- err
			}()
		}
	}()
	conns, err := Dial(ctx, dialer(l.Addr(), conf), n, []byte("token"))
	if err != nil {
		t.Fatal(err)
	}
	s := NewSender(conns, opts)
	t.Cleanup(func() {
		_ = s.Close()
		cancel()
		_ = l.Close()
	})
	return &rig{s, r, served}
}

func dialer(addr net.Addr, conf *tls.Config) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", addr.String())
		if err == nil && conf != nil {
			c = tls.Client(c, conf)
		}
		return c, err
	}
}

// tlsConfig is good for both ends: the certificate is its own authority.
func tlsConfig(t testing.TB) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "host"}, DNSNames: []string{"host"},
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, RootCAs: roots, ClientCAs: roots,
		ClientAuth: tls.RequireAndVerifyClientCert, ServerName: "host", MinVersion: tls.VersionTLS13}
}

// fill makes a batch of n pages, at the addresses given by first, with every third page zero.
func fill(s *Sender, rng *mrand.ChaCha8, first uint64, n int, compressible bool) ([]Run, []byte) {
	data, runs := s.Buffer(), []Run{}
	for i := range n {
		run := Run{Addr: first + uint64(i)*PageSize, Pages: 1, Zero: i%3 == 2}
		if !run.Zero {
			page := data[len(data) : len(data)+PageSize]
			_, _ = rng.Read(page)
			if compressible {
				copy(page[64:], bytes.Repeat([]byte("the same words again "), 200))
			}
			data = data[:len(data)+PageSize]
		}
		runs = append(runs, run)
	}
	return runs, data
}

func TestRoundTrip(t *testing.T) {
	for _, codec := range []Codec{Off, S2, Zstd, Auto} {
		for _, streams := range []int{1, 3} {
			for _, compressible := range []bool{false, true} {
				t.Run(fmt.Sprintf("%v/%d/%t", codec, streams, compressible), func(t *testing.T) {
					roundTrip(t, codec, streams, compressible)
				})
			}
		}
	}
}

func roundTrip(t *testing.T, codec Codec, streams int, compressible bool) {
	var got, want memory
	r := pair(t, streams, tlsConfig(t), Options{Codec: codec}, &got)
	rng := mrand.NewChaCha8([32]byte{1})
	ctx := t.Context()
	var sent Totals
	for i := range 40 {
		space := uint32(i % 3)
		runs, data := fill(r.sender, rng, 0x7f0000000000+uint64(i)*BatchBytes, BatchPages, compressible)
		at := 0
		for _, run := range runs {
			if run.Zero {
				_ = want.ZeroPages(space, run.Addr, run.Pages)
			} else {
				_ = want.WritePages(space, run.Addr, data[at:at+PageSize])
				at += PageSize
			}
		}
		sent.countRuns(runs)
		if err := r.sender.Send(ctx, space, runs, data); err != nil {
			t.Fatal(err)
		}
	}
	totals, err := r.sender.Flush(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if totals.Pages != sent.Pages || totals.ZeroPages != sent.ZeroPages {
		t.Errorf("the receiver counted %+v, sent were %+v", totals, sent)
	}
	if raw := sent.Pages * PageSize; compressible && codec != Off && codec != Auto && totals.WireBytes > raw/3 {
		t.Errorf("%d bytes of compressible pages took %d bytes", raw, totals.WireBytes)
	} else if !compressible && totals.WireBytes > raw+raw/100 {
		t.Errorf("%d bytes of random pages took %d bytes", raw, totals.WireBytes)
	}
	if st := r.sender.Stats(); st != totals {
		t.Errorf("the sender counts %+v, the receiver %+v", st, totals)
	}
	for space, pages := range want.pages {
		for addr, page := range pages {
			if !bytes.Equal(page, got.pages[space][addr]) {
				t.Fatalf("page 0x%x of space %d differs", addr, space)
			}
		}
	}
	if err := r.sender.Close(); err != nil {
		t.Error(err)
	}
	for range streams {
		if err := <-r.served; err != nil {
			t.Error(err)
		}
	}
}

func TestManyZeroRunsCostOnlyTheirHeaders(t *testing.T) {
	var got memory
	r := pair(t, 2, nil, Options{}, &got)
	var runs []Run
	for i := range 1000 {
		runs = append(runs, Run{Addr: uint64(i) * 2 * PageSize, Pages: 1, Zero: true})
	}
	if err := r.sender.Send(t.Context(), 7, runs, r.sender.Buffer()); err != nil {
		t.Fatal(err)
	}
	totals, err := r.sender.Flush(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if totals.ZeroPages != 1000 || totals.Pages != 0 || totals.WireBytes > 1000*runSize+20*headerSize {
		t.Errorf("totals %+v", totals)
	}
	if len(got.pages[7]) != 1000 {
		t.Errorf("%d pages written", len(got.pages[7]))
	}
}

func TestFlushWaitsForASlowSink(t *testing.T) {
	got := &memory{delay: 2 * time.Millisecond}
	r := pair(t, 3, nil, Options{}, got)
	rng := mrand.NewChaCha8([32]byte{2})
	for round := range 5 {
		for i := range 10 {
			runs, data := fill(r.sender, rng, uint64(round*10+i)*BatchBytes, 4, false)
			if err := r.sender.Send(t.Context(), 1, runs, data); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := r.sender.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		got.mu.Lock()
		n := len(got.pages[1])
		got.mu.Unlock()
		if n != (round+1)*40 {
			t.Fatalf("after flush %d the sink holds %d pages", round, n)
		}
	}
}

// TestClosedReceiver: after Close the sink is not called any more, whatever the sender sends.
func TestClosedReceiver(t *testing.T) {
	got := &memory{}
	r := pair(t, 3, nil, Options{}, got)
	rng := mrand.NewChaCha8([32]byte{3})
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for i := range uint64(1000) {
			runs, data := fill(r.sender, rng, i*BatchBytes, 4, false)
			if err := r.sender.Send(t.Context(), 1, runs, data); err != nil {
				return
			}
		}
		_, _ = r.sender.Flush(t.Context())
	}()
	count := func() int {
		got.mu.Lock()
		defer got.mu.Unlock()
		return len(got.pages[1])
	}
	for count() == 0 {
		time.Sleep(time.Millisecond)
	}
	r.receiver.Close()
	n := count()
	for range 3 {
		if err := <-r.served; !errors.Is(err, ErrReceiverClosed) {
			t.Errorf("a connection ended with %v", err)
		}
	}
	<-sent
	if more := count(); more != n {
		t.Errorf("%d pages were written after the receiver was closed", more-n)
	}
}

func TestConcurrentFlushesAndACancelledOne(t *testing.T) {
	r := pair(t, 3, nil, Options{}, discard{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 50 {
		_, _ = r.sender.Flush(ctx) // may or may not get through; must not stop the others
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				if _, err := r.sender.Flush(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func TestTheSendersErrorNamesTheSinksReason(t *testing.T) {
	r := pair(t, 2, nil, Options{}, &memory{fail: errors.New("no room in memory")})
	rng := mrand.NewChaCha8([32]byte{3})
	var err error
	for i := 0; err == nil && i < 1000; i++ {
		runs, data := fill(r.sender, rng, uint64(i)*BatchBytes, BatchPages, false)
		err = r.sender.Send(t.Context(), 1, runs, data)
	}
	if !errors.Is(err, ErrReceiver) || !bytes.Contains([]byte(err.Error()), []byte("no room in memory")) {
		t.Errorf("error %v", err)
	}
	if _, e := r.sender.Flush(t.Context()); e == nil {
		t.Error("a flush after the failure succeeded")
	}
}

func TestSendEndsWithItsContextWhenTheReceiverStalls(t *testing.T) {
	got := &memory{}
	got.mu.Lock() // nothing gets written
	r := pair(t, 1, nil, Options{}, got)
	rng := mrand.NewChaCha8([32]byte{4})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	var err error
	for i := 0; err == nil && i < 10000; i++ {
		runs, data := fill(r.sender, rng, uint64(i)*BatchBytes, BatchPages, false)
		err = r.sender.Send(ctx, 1, runs, data)
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	if n := len(r.sender.pool.lent); n > 0 {
		t.Errorf("%d buffers were not given back", n)
	}
	got.mu.Unlock()
	if _, err := r.sender.Flush(t.Context()); err != nil {
		t.Errorf("a flush once the receiver goes on: %v", err)
	}
}

func TestAStalledConnectionCountsAsLost(t *testing.T) {
	got := &memory{}
	got.mu.Lock()
	defer got.mu.Unlock()
	r := pair(t, 1, nil, Options{Stall: 200 * time.Millisecond}, got)
	rng := mrand.NewChaCha8([32]byte{4})
	var err error
	for i := 0; err == nil && i < 10000; i++ {
		runs, data := fill(r.sender, rng, uint64(i)*BatchBytes, BatchPages, false)
		err = r.sender.Send(t.Context(), 1, runs, data)
	}
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("error %v", err)
	}
	<-r.sender.Failed()
}

func TestAWrongTokenIsRefused(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		if _, err := Accept(t.Context(), c); err == nil {
			_ = Refuse(t.Context(), c, "no migration has this \x1b token")
		}
	}()
	_, err = Dial(t.Context(), dialer(l.Addr(), nil), 2, []byte("other"))
	if !errors.Is(err, ErrRefused) || !bytes.Contains([]byte(err.Error()), []byte("no migration has this ? token")) {
		t.Errorf("error %v", err)
	}
}

func TestASilentClientIsNotWaitedFor(t *testing.T) {
	a, b := net.Pipe()
	defer func() { _, _ = a.Close(), b.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Accept(ctx, b); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

func TestSendRefusesBadBatches(t *testing.T) {
	r := pair(t, 1, nil, Options{}, discard{})
	page := make([]byte, PageSize)
	for name, runs := range map[string][]Run{
		"unaligned":      {{Addr: 12, Pages: 1}},
		"no pages":       {{Addr: 0, Pages: 0}},
		"too little":     {{Addr: 0, Pages: 2}},
		"kernel address": {{Addr: 1 << 63, Pages: 1}},
		"wraps":          {{Addr: maxAddr - PageSize, Pages: 2, Zero: true}},
	} {
		if err := r.sender.Send(t.Context(), 1, runs, page); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestBandwidthLimit(t *testing.T) {
	const rate, total = 8 << 20, 28 << 20 // so low that a machine with other work to do keeps up
	r := pair(t, 2, tlsConfig(t), Options{Bandwidth: rate}, discard{})
	rng := mrand.NewChaCha8([32]byte{5})
	late := watchNaps(t)
	start := time.Now()
	for r.sender.Stats().WireBytes < total {
		runs, data := fill(r.sender, rng, 0, BatchPages, false)
		if err := r.sender.Send(t.Context(), 1, runs, data); err != nil {
			t.Fatal(err)
		}
	}
	totals, err := r.sender.Flush(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	got, lost := float64(totals.WireBytes)/took.Seconds(), late().Seconds()/took.Seconds()
	t.Logf("%.2f MiB/s with a limit of %d MiB/s; naps were late for %.1f%% of the time", got/(1<<20), rate>>20, 100*lost)
	// What is not sent in time for want of a processor is not made up for (TestLimiter has the exact rate).
	if got > 1.05*rate || got < 0.95*rate && lost < 0.02 {
		t.Errorf("%.2f MiB/s with a limit of %d MiB/s", got/(1<<20), rate>>20)
	}
}

// watchNaps finds out for how long in all the naps of a program that sleeps most of the time are late.
func watchNaps(t *testing.T) (late func() time.Duration) {
	t.Helper()
	stop, done := make(chan struct{}), make(chan time.Duration, 1)
	go func() {
		var all time.Duration
		for {
			select {
			case <-stop:
				done <- all
				return
			default:
			}
			const nap = burstTime / 2
			began := time.Now()
			time.Sleep(nap) // how late it ends is what is measured
			all += time.Since(began) - nap
		}
	}()
	return func() time.Duration { close(stop); return <-done }
}

// TestLimiter: who waits as long as it is told sends at the rate, whatever the sizes; who comes late is not given more than a burst.
func TestLimiter(t *testing.T) {
	const rate = 8 << 20
	rng := mrand.New(mrand.NewPCG(1, 2))
	for _, tardy := range []time.Duration{0, burstTime / 2, 3 * burstTime} {
		var l limiter
		l.set(rate)
		start := time.Unix(1000, 0)
		now, sent := start, 0
		for sent < 80<<20 {
			n := l.piece(1 + rng.IntN(1<<20))
			now = now.Add(l.reserve(n, now))
			if tardy > 0 {
				now = now.Add(time.Duration(rng.Int64N(int64(tardy))))
			}
			sent += n
		}
		got := float64(sent) / now.Sub(start).Seconds()
		if got > 1.01*rate || got < 0.99*rate && tardy <= burstTime/2 {
			t.Errorf("up to %v late: %.2f MiB/s with a limit of %d MiB/s", tardy, got/(1<<20), rate>>20)
		}
	}
}

// The link is far slower than any compressor, also on a machine that others keep busy; TestChooser has the exact rates.
func TestAutoCompressesOnASlowLinkAndNotRandomData(t *testing.T) {
	for _, compressible := range []bool{true, false} {
		r := pair(t, 1, nil, Options{Codec: Auto, Bandwidth: 16 << 20}, discard{})
		rng := mrand.NewChaCha8([32]byte{6})
		for i := range 160 {
			runs, data := fill(r.sender, rng, uint64(i)*BatchBytes, BatchPages, compressible)
			if err := r.sender.Send(t.Context(), 1, runs, data); err != nil {
				t.Fatal(err)
			}
		}
		totals, err := r.sender.Flush(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ratio := float64(totals.WireBytes) / float64(totals.Pages*PageSize)
		if compressible && ratio > 0.9 || !compressible && ratio < 1 {
			t.Errorf("compressible %t: %.2f of the bytes were sent", compressible, ratio)
		}
	}
}
