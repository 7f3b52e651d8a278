//go:build linux

package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// argProgram is the name under which this binary is the program that is dumped and restored.
const argProgram = "migrate-vm-program"

// chain is what the program computes, and what its output is compared with: a sum over all numbers so far and over memory
// that it changes. Whoever loses a page, a register or a number gets other sums from then on.
type chain struct {
	memory [512][4096]byte
	sum    [sha256.Size]byte
	n      uint64
}

// next returns the next line of output.
func (c *chain) next() string {
	c.n++
	page := &c.memory[c.n*211%uint64(len(c.memory))]
	h := sha256.New()
	_, _ = h.Write(c.sum[:]) // never fails
	_, _ = h.Write(page[:])
	_, _ = h.Write(binary.LittleEndian.AppendUint64(nil, c.n))
	c.sum = [sha256.Size]byte(h.Sum(nil))
	for i := range page {
		page[i] += c.sum[i%len(c.sum)]
	}
	return fmt.Sprintf("%d %x", c.n, c.sum)
}

// program writes a line of a chain to the file every few milliseconds. Each goes through a pipe and a pair of sockets, and so
// through two goroutines, before it is written.
func program(path string) error {
	out, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	pipeOut, pipeIn, err := os.Pipe()
	if err != nil {
		return err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	socketIn, socketOut := os.NewFile(uintptr(pair[0]), "socket"), os.NewFile(uintptr(pair[1]), "socket")
	ended := make(chan error, 2)
	go func() { _, err := io.Copy(socketIn, pipeOut); ended <- errors.Join(errors.New("the pipe ended"), err) }()
	go func() { _, err := io.Copy(out, socketOut); ended <- errors.Join(errors.New("the socket ended"), err) }()
	c := &chain{}
	for tick := time.Tick(5 * time.Millisecond); ; {
		select {
		case <-tick:
			if _, err := fmt.Fprintln(pipeIn, c.next()); err != nil {
				return err
			}
		case err := <-ended:
			return err
		}
	}
}

// verify returns how many lines the program has written, all of which must be those of the chain.
func verify(path string) (lines uint64, err error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	c := &chain{}
	for r := bufio.NewReader(f); ; {
		got, err := r.ReadString('\n')
		if errors.Is(err, io.EOF) {
			return c.n, nil // what follows is not complete yet
		}
		if err != nil {
			return c.n, err
		}
		if want := c.next() + "\n"; got != want {
			return c.n, fmt.Errorf("line %d of the program's output is %q, want %q", c.n, got, want)
		}
	}
}
