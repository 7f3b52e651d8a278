package demo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
)

// Serve is the built-in server of the demo, for machines without redis-server: PING, SET, GET, INCR in memory, over
// the redis protocol. It returns when ctx ends, after its connections are closed.
func Serve(ctx context.Context, l net.Listener) error {
	s := &server{values: map[string]string{}}
	var conns sync.WaitGroup
	defer conns.Wait()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept on %s: %w", l.Addr(), err)
		}
		conns.Go(func() { s.serve(ctx, c) })
	}
}

type server struct {
	mu     sync.Mutex
	values map[string]string
}

// serve answers one client until it goes away or breaks the protocol.
func (s *server) serve(ctx context.Context, c net.Conn) {
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	defer func() { _ = c.Close() }()
	r, w := bufio.NewReader(c), bufio.NewWriter(c)
	for {
		args, err := readCommand(r)
		if err != nil {
			return
		}
		if _, err := io.WriteString(w, s.answer(args)); err != nil {
			return
		}
		if r.Buffered() == 0 && w.Flush() != nil {
			return
		}
	}
}

func (s *server) answer(args []string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case len(args) == 1 && args[0] == "PING":
		return "+PONG\r\n"
	case len(args) == 3 && args[0] == "SET":
		s.values[args[1]] = args[2]
		return "+OK\r\n"
	case len(args) == 2 && args[0] == "GET":
		v, ok := s.values[args[1]]
		if !ok {
			return "$-1\r\n"
		}
		return fmt.Sprintf("$%d\r\n%s\r\n", len(v), v)
	case len(args) == 2 && args[0] == "INCR":
		n, err := strconv.ParseInt(s.values[args[1]], 10, 64)
		if err != nil && s.values[args[1]] != "" && !errors.Is(err, strconv.ErrRange) {
			return "-ERR value is not an integer or out of range\r\n"
		}
		n++
		s.values[args[1]] = strconv.FormatInt(n, 10)
		return fmt.Sprintf(":%d\r\n", n)
	}
	return "-ERR unknown command\r\n"
}
