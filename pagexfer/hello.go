package pagexfer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"
)

// A Hello is what a client says first on each connection.
type Hello struct {
	Token   []byte // names the transfer that the connection belongs to; 1 to 256 bytes
	Index   uint32 // number of this connection in the transfer, from 0
	Streams uint32 // connections that the transfer has
}

// maxStreams bounds the connections of one transfer.
const maxStreams = 64

// ErrRefused is matched by the error of Dial when the server refused the token.
var ErrRefused = errors.New("the page server refused the connection")

// Dial opens n connections with dial and introduces each with the token. It returns when the server has welcomed
// all of them; on an error none is left open.
func Dial(ctx context.Context, dial func(context.Context) (net.Conn, error), n int, token []byte) (conns []net.Conn, err error) {
	if n < 1 || n > maxStreams {
		return nil, fmt.Errorf("pagexfer: %d connections asked for; 1 to %d are possible", n, maxStreams)
	}
	if len(token) == 0 || len(token) > maxToken {
		return nil, fmt.Errorf("pagexfer: a token of %d bytes; 1 to %d are possible", len(token), maxToken)
	}
	defer func() {
		if err != nil {
			for _, c := range conns {
				err = errors.Join(err, closeQuietly(c))
			}
			conns = nil
		}
	}()
	for i := range n {
		c, err := dial(ctx)
		if err != nil {
			return conns, fmt.Errorf("page connection %d of %d: %w", i+1, n, err)
		}
		conns = append(conns, c)
		if err := introduce(ctx, c, Hello{Token: token, Index: uint32(i), Streams: uint32(n)}); err != nil {
			return conns, fmt.Errorf("page connection %d of %d to %v: %w", i+1, n, c.RemoteAddr(), err)
		}
	}
	return conns, nil
}

func introduce(ctx context.Context, c net.Conn, h Hello) error {
	return within(ctx, c, func() error {
		payload := binary.LittleEndian.AppendUint32(nil, h.Index)
		payload = binary.LittleEndian.AppendUint32(payload, h.Streams)
		payload = append(payload, h.Token...)
		if _, err := c.Write(control(kindHello, 0, payload)); err != nil {
			return err
		}
		head, rest, err := newFrameReader(c).next()
		switch {
		case err != nil:
			return fmt.Errorf("waiting for the welcome: %w", err)
		case head.kind == kindFailure:
			return fmt.Errorf("%w: %s", ErrRefused, printable(rest))
		case head.kind != kindWelcome:
			return fmt.Errorf("%w: frame kind %d in the place of the welcome", ErrCorrupt, head.kind)
		}
		return nil
	})
}

// Accept reads the hello of a connection that a client has opened. The server then calls Welcome and gives the
// connection to a Receiver, or calls Refuse. The context bounds how long a client may keep silent.
func Accept(ctx context.Context, c net.Conn) (Hello, error) {
	var hello Hello
	err := within(ctx, c, func() error {
		head, rest, err := newFrameReader(c).next()
		if err != nil {
			return fmt.Errorf("reading the hello of %v: %w", c.RemoteAddr(), err)
		}
		if head.kind != kindHello {
			return fmt.Errorf("%w: frame kind %d in the place of the hello of %v", ErrCorrupt, head.kind, c.RemoteAddr())
		}
		hello.Index, hello.Streams = binary.LittleEndian.Uint32(rest), binary.LittleEndian.Uint32(rest[4:])
		hello.Token = append([]byte(nil), rest[8:]...)
		if hello.Streams < 1 || hello.Streams > maxStreams || hello.Index >= hello.Streams || len(hello.Token) == 0 {
			return fmt.Errorf("%w: hello of %v for connection %d of %d with a token of %d bytes", ErrCorrupt, c.RemoteAddr(),
				hello.Index, hello.Streams, len(hello.Token))
		}
		return nil
	})
	return hello, err
}

// Welcome answers a hello: batches may follow.
func Welcome(ctx context.Context, c net.Conn) error {
	return within(ctx, c, func() error {
		_, err := c.Write(control(kindWelcome, 0, nil))
		return err
	})
}

// Refuse answers a hello with a reason, which the client's error will show, and closes the connection.
func Refuse(ctx context.Context, c net.Conn, reason string) error {
	err := within(ctx, c, func() error {
		_, err := c.Write(failure(0, reason))
		return err
	})
	return errors.Join(err, closeQuietly(c))
}

// within runs f, whose reads and writes on c fail once ctx ends.
func within(ctx context.Context, c net.Conn, f func() error) error {
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		_ = c.SetDeadline(time.Unix(1, 0)) // a connection that takes no deadline is closed by its owner
	})
	err := f()
	if !stop() {
		<-interrupted
		return errors.Join(context.Cause(ctx), err)
	}
	return err
}

// closeQuietly closes c; that it was closed already is no error.
func closeQuietly(c net.Conn) error {
	if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// printable is text of the peer's, made safe to show on a terminal.
func printable(b []byte) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f || r == '\uFFFD' {
			return '?'
		}
		return r
	}, string(b))
}
