//go:build linux

package bench

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strconv"
	"time"

	"migrate/coordinator/pki"
	"migrate/e2e/lab"
)

// The two ends of the plain TLS stream are this program, started again inside the hosts with partVariable set.
const (
	partVariable  = "BENCH_PART"
	streamProgram = "stream"
	streamAddress = ":7499"
	tlsDir        = "/etc/migrate/tls" // where the lab puts a host's certificate

	writeSize = 256 << 10 // as much as the page stream has in a frame
	bufferLen = 256 << 20 // more than any cache, so that every write reads memory
)

// stream sends n random bytes over one TLS 1.3 connection between two hosts, with the hosts' certificates, and returns the
// bytes per second that the receiver saw.
func (r *rig) stream(ctx context.Context, from, to *lab.Host, n int64) (rate float64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // kills the receiver if the sender failed
	program := filepath.Join(r.share, streamProgram)
	out, in := io.Pipe()
	receiver := to.Command(ctx, program, strconv.FormatInt(n, 10))
	receiver.Env, receiver.Stdout = []string{partVariable + "=receive"}, in
	if err := receiver.Start(); err != nil {
		return 0, err
	}
	ended := make(chan error, 1)
	go func() {
		err := receiver.Wait()
		_ = in.Close() // a pipe in memory
		ended <- err
	}()
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		return 0, fmt.Errorf("the receiver on %s does not listen: %w", to.Name(), <-ended)
	}
	sender := from.Command(ctx, program, to.Name(), to.Addr().String()+streamAddress, strconv.FormatInt(n, 10))
	sender.Env = []string{partVariable + "=send"}
	if _, err := sender.Output(); err != nil {
		cancel()
		return 0, errors.Join(err, <-ended)
	}
	var ns int64
	if !lines.Scan() {
		return 0, fmt.Errorf("the receiver on %s says nothing: %w", to.Name(), <-ended)
	}
	if _, err := fmt.Sscan(lines.Text(), &ns); err != nil {
		return 0, fmt.Errorf("the receiver says %q: %w", lines.Text(), err)
	}
	return float64(n) / (float64(ns) / 1e9), <-ended
}

func streamPart(part string, args []string) error {
	switch {
	case part == "receive" && len(args) == 1:
		n, err := strconv.ParseInt(args[0], 10, 64)
		if err != nil {
			return err
		}
		return receive(n)
	case part == "send" && len(args) == 3:
		n, err := strconv.ParseInt(args[2], 10, 64)
		if err != nil {
			return err
		}
		return send(args[0], args[1], n)
	}
	return fmt.Errorf("%s=%s with %d arguments is not known", partVariable, part, len(args))
}

// receive prints a line when it listens, and the nanoseconds from the end of the handshake to the last byte.
func receive(n int64) (err error) {
	conf, err := pki.ServerTLS(tlsDir)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", streamAddress)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	fmt.Println("listening")
	raw, err := l.Accept()
	if err != nil {
		return err
	}
	c := tls.Server(raw, conf)
	defer func() { err = errors.Join(err, c.Close()) }()
	if err := c.Handshake(); err != nil {
		return err
	}
	if v := c.ConnectionState().Version; v != tls.VersionTLS13 {
		return fmt.Errorf("the connection has TLS version %#x", v)
	}
	one := make([]byte, 1)
	if _, err := io.ReadFull(c, one); err != nil { // the sender has its bytes ready
		return err
	}
	began := time.Now()
	buf := make([]byte, writeSize)
	for left := n; left > 0; {
		k, err := c.Read(buf[:min(int64(len(buf)), left)])
		left -= int64(k)
		if err != nil && left > 0 {
			return err
		}
	}
	took := time.Since(began)
	if _, err := c.Write(one); err != nil {
		return err
	}
	fmt.Println(took.Nanoseconds())
	return nil
}

// send sends n random bytes and waits until the receiver has all of them.
func send(name, address string, n int64) (err error) {
	conf, err := pki.ClientTLS(tlsDir, name)
	if err != nil {
		return err
	}
	data := make([]byte, min(n, bufferLen))
	if _, err := rand.Read(data); err != nil {
		return err
	}
	c, err := tls.Dial("tcp", address, conf)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if _, err := c.Write([]byte{1}); err != nil {
		return err
	}
	for off := int64(0); off < n; {
		at := off % int64(len(data))
		k, err := c.Write(data[at:min(at+writeSize, int64(len(data)), at+n-off)])
		off += int64(k)
		if err != nil {
			return err
		}
	}
	_, err = io.ReadFull(c, make([]byte, 1))
	return err
}
