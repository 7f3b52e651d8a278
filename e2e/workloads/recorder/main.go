// Recorder writes numbered records into a directory as a database does, and checks them.
//
// "write DIR" appends records to a journal and flushes each (fdatasync) before it says so on its standard output; after every
// 1,000 records the journal gets another name and a new one is begun. Beside it stands a table, of which the cell of each
// record is written in place (pwrite), and a counter that is mapped shared and written through the mapping. "check DIR" reads
// all of it and prints how many records there are.
package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	recordSize = 512
	perJournal = 1000
	cells      = 4096
	sayEvery   = 50
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "recorder:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 2 {
		return errors.New("usage: recorder write|check DIR")
	}
	if args[0] == "write" {
		return write(args[1])
	}
	n, err := check(args[1])
	if err == nil {
		fmt.Println(n)
	}
	return err
}

func record(n uint64) []byte {
	b := make([]byte, recordSize)
	binary.LittleEndian.PutUint64(b, n)
	for i := 8; i < recordSize-4; i++ {
		b[i] = byte(n>>(i%8) + uint64(i))
	}
	binary.LittleEndian.PutUint32(b[recordSize-4:], crc32.ChecksumIEEE(b[:recordSize-4]))
	return b
}

func write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	table, err := os.OpenFile(filepath.Join(dir, "table"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	counter, err := mapCounter(filepath.Join(dir, "counter"))
	if err != nil {
		return err
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, unix.SIGTERM)
	var journal *os.File
	for n := uint64(0); ; n++ {
		if n%perJournal == 0 {
			if journal, err = next(dir, journal, n/perJournal); err != nil {
				return err
			}
		}
		b := record(n)
		if _, err := journal.Write(b); err != nil {
			return err
		}
		if err := unix.Fdatasync(int(journal.Fd())); err != nil {
			return err
		}
		if _, err := table.WriteAt(b, int64(n*7919%cells)*recordSize); err != nil {
			return err
		}
		binary.LittleEndian.PutUint64(counter, n+1)
		if n%sayEvery == 0 {
			fmt.Println("flushed", n)
		}
		select {
		case <-end:
			fmt.Println("flushed", n)
			fmt.Println("end")
			return nil
		case <-time.After(time.Millisecond):
		}
	}
}

// next gives the journal its final name and begins another.
func next(dir string, old *os.File, n uint64) (*os.File, error) {
	name := filepath.Join(dir, "journal")
	if old != nil {
		if err := errors.Join(os.Rename(name, name+"-"+strconv.FormatUint(n-1, 10)), old.Close()); err != nil {
			return nil, err
		}
	}
	return os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
}

func mapCounter(name string) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(4096); err != nil {
		return nil, err
	}
	b, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	return b, errors.Join(err, f.Close())
}

// check reads all journals in order.
func check(dir string) (n uint64, err error) {
	for i := uint64(0); ; i++ {
		b, err := os.ReadFile(filepath.Join(dir, "journal-"+strconv.FormatUint(i, 10)))
		last := errors.Is(err, os.ErrNotExist)
		if last {
			b, err = os.ReadFile(filepath.Join(dir, "journal"))
		}
		if err != nil {
			return n, err
		}
		for ; len(b) >= recordSize; n, b = n+1, b[recordSize:] {
			if string(b[:recordSize]) != string(record(n)) {
				return n, fmt.Errorf("record %d is another one: %x", n, b[:16])
			}
		}
		if len(b) > 0 {
			return n, fmt.Errorf("after record %d: %w", n, io.ErrUnexpectedEOF)
		}
		if last {
			break
		}
	}
	table, err := os.ReadFile(filepath.Join(dir, "table"))
	if err != nil {
		return n, err
	}
	for i := n - min(n, cells); i < n; i++ {
		at := i * 7919 % cells * recordSize
		if at+recordSize > uint64(len(table)) || string(table[at:at+recordSize]) != string(record(i)) {
			return n, fmt.Errorf("the table has not record %d", i)
		}
	}
	counter, err := os.ReadFile(filepath.Join(dir, "counter"))
	if err == nil && binary.LittleEndian.Uint64(counter) != n {
		err = fmt.Errorf("the counter says %d of %d records", binary.LittleEndian.Uint64(counter), n)
	}
	return n, err
}
