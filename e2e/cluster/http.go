//go:build linux

package cluster

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
)

// HTTPConn is an HTTP client with one connection, which is never replaced by another: net/http's own closes connections for reasons
// of its own, such as a writing goroutine that the scheduler leaves waiting.
type HTTPConn struct {
	endpoint string
	conn     net.Conn
	in       *bufio.Reader
	stop     func() bool
}

// DialHTTP connects to an endpoint from where clients are. The connection ends with the context.
func DialHTTP(ctx context.Context, endpoint string) (*HTTPConn, error) {
	conn, err := Dialer(endpoint)(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	return &HTTPConn{endpoint, conn, bufio.NewReader(conn), stop}, nil
}

// Get asks for a path and copies the answer's body to w.
func (c *HTTPConn) Get(path string, w io.Writer) error {
	if _, err := fmt.Fprintf(c.conn, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", path, c.endpoint); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	n, err := io.Copy(w, resp.Body)
	switch {
	case err != nil:
		return fmt.Errorf("%s after %d bytes: %w", path, n, err)
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("%s: %s", path, resp.Status)
	case resp.Close:
		return fmt.Errorf("%s: the server ends the connection", path)
	}
	return resp.Body.Close()
}

// Close ends the connection.
func (c *HTTPConn) Close() error {
	c.stop()
	return c.conn.Close()
}

// DialHTTP connects to an endpoint until the end of the test.
func (s *Scope) DialHTTP(endpoint string) *HTTPConn {
	s.Helper()
	c, err := DialHTTP(s.Ctx, endpoint)
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { _ = c.Close() })
	return c
}
