package pagexfer

import (
	"io"
	"net"
	"time"
)

// pipeEnd is a connection whose writes vanish.
type pipeEnd struct{ io.Reader }

func (*pipeEnd) Write(p []byte) (int, error)      { return len(p), nil }
func (*pipeEnd) Close() error                     { return nil }
func (*pipeEnd) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (*pipeEnd) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (*pipeEnd) SetDeadline(time.Time) error      { return nil }
func (*pipeEnd) SetReadDeadline(time.Time) error  { return nil }
func (*pipeEnd) SetWriteDeadline(time.Time) error { return nil }
