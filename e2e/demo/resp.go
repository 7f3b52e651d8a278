package demo

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// maxBulk bounds a string of the protocol that this package accepts, in bytes.
const maxBulk = 1 << 20

// errProtocol marks bytes that are not RESP2 (redis.io/docs, "Redis serialization protocol").
var errProtocol = errors.New("not the redis protocol")

// appendCommand appends a command as an array of bulk strings.
func appendCommand(b []byte, args ...string) []byte {
	b = fmt.Appendf(b, "*%d\r\n", len(args))
	for _, a := range args {
		b = fmt.Appendf(b, "$%d\r\n%s\r\n", len(a), a)
	}
	return b
}

// readCommand reads a command sent as an array of bulk strings.
func readCommand(r *bufio.Reader) ([]string, error) {
	n, err := readLength(r, '*', 64)
	if err != nil {
		return nil, err
	}
	args := make([]string, 0, max(n, 0))
	for range n {
		s, err := readBulk(r)
		if err != nil {
			return nil, err
		}
		args = append(args, s)
	}
	return args, nil
}

// reply is an answer: an integer, a string or an error of the server.
type reply struct {
	number int64
	text   string
	null   bool
}

func readReply(r *bufio.Reader) (reply, error) {
	kind, err := r.ReadByte()
	if err != nil {
		return reply{}, err
	}
	if kind == '$' {
		if err := r.UnreadByte(); err != nil {
			return reply{}, err
		}
		s, err := readBulk(r)
		if errors.Is(err, errNull) {
			return reply{null: true}, nil
		}
		return reply{text: s}, err
	}
	line, err := readLine(r)
	if err != nil {
		return reply{}, err
	}
	switch kind {
	case ':':
		v, err := strconv.ParseInt(line, 10, 64)
		if err != nil {
			return reply{}, fmt.Errorf("%w: integer reply %q", errProtocol, line)
		}
		return reply{number: v}, nil
	case '+':
		return reply{text: line}, nil
	case '-':
		return reply{}, fmt.Errorf("the server answers: %s", line)
	}
	return reply{}, fmt.Errorf("%w: reply of type %q", errProtocol, kind)
}

var errNull = errors.New("null")

func readBulk(r *bufio.Reader) (string, error) {
	n, err := readLength(r, '$', maxBulk)
	if err != nil {
		return "", err
	}
	if n < 0 {
		return "", errNull
	}
	b := make([]byte, n+2)
	if _, err := io.ReadFull(r, b); err != nil {
		return "", err
	}
	if string(b[n:]) != "\r\n" {
		return "", fmt.Errorf("%w: a string of %d bytes does not end in a line end", errProtocol, n)
	}
	return string(b[:n]), nil
}

func readLength(r *bufio.Reader, kind byte, limit int) (int, error) {
	line, err := readLine(r)
	if err != nil {
		return 0, err
	}
	if len(line) < 2 || line[0] != kind {
		return 0, fmt.Errorf("%w: %q where a length after %q should be", errProtocol, line, kind)
	}
	n, err := strconv.Atoi(line[1:])
	if err != nil || n < -1 || n > limit {
		return 0, fmt.Errorf("%w: length %q is not between -1 and %d", errProtocol, line[1:], limit)
	}
	return n, nil
}

func readLine(r *bufio.Reader) (string, error) {
	line, err := r.ReadSlice('\n')
	if err != nil {
		return "", err
	}
	if len(line) < 2 || line[len(line)-2] != '\r' {
		return "", fmt.Errorf("%w: line %q", errProtocol, line)
	}
	return string(line[:len(line)-2]), nil
}
