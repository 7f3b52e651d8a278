package pagexfer

import (
	"context"
	"crypto/tls"
	"io"
	mrand "math/rand/v2"
	"net"
	"testing"
	"time"
)

const benchBytes = 512 << 20

// BenchmarkRatio sends the same random bytes through a page stream and through a plain TLS connection of the same
// kind, by turns, and reports the page stream's throughput as a share of the plain one's.
func BenchmarkRatio(b *testing.B) {
	region := make([]byte, 64<<20)
	_, _ = mrand.NewChaCha8([32]byte{7}).Read(region)
	conf := tlsConfig(b)
	for _, streams := range []int{1, 2} {
		for _, codec := range []Codec{Off, Auto} {
			b.Run(codec.String()+"/"+string(rune('0'+streams)), func(b *testing.B) {
				var plain, pages time.Duration
				for range b.N {
					plain += plainTLS(b, conf, region)
					pages += pageStream(b, conf, region, streams, codec)
				}
				b.ReportMetric(float64(plain)/float64(pages), "ratio")
				b.ReportMetric(float64(b.N)*benchBytes/1e6/plain.Seconds(), "plain-MB/s")
				b.ReportMetric(float64(b.N)*benchBytes/1e6/pages.Seconds(), "pages-MB/s")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

func plainTLS(b *testing.B, conf *tls.Config, region []byte) time.Duration {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	done := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		t := tls.Server(c, conf)
		_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{t}, make([]byte, BatchBytes))
		if err == nil {
			_, err = t.Write([]byte{1})
		}
		done <- err
	}()
	c, err := dialer(l.Addr(), conf)(context.Background())
	if err != nil {
		b.Fatal(err)
	}
	t := c.(*tls.Conn)
	if err := t.Handshake(); err != nil {
		b.Fatal(err)
	}
	start := time.Now()
	for sent := 0; sent < benchBytes; sent += BatchBytes {
		if _, err := t.Write(region[sent%len(region):][:BatchBytes]); err != nil {
			b.Fatal(err)
		}
	}
	if err := t.CloseWrite(); err != nil {
		b.Fatal(err)
	}
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	return time.Since(start)
}

func pageStream(b *testing.B, conf *tls.Config, region []byte, streams int, codec Codec) time.Duration {
	r := pair(b, streams, conf, Options{Codec: codec}, discard{})
	start := time.Now()
	for sent := 0; sent < benchBytes; sent += BatchBytes {
		// The copy stands for the read from the process.
		data := append(r.sender.Buffer(), region[sent%len(region):][:BatchBytes]...)
		if err := r.sender.Send(b.Context(), 1, []Run{{Addr: uint64(sent), Pages: BatchPages}}, data); err != nil {
			b.Fatal(err)
		}
	}
	if _, err := r.sender.Flush(b.Context()); err != nil {
		b.Fatal(err)
	}
	return time.Since(start)
}
