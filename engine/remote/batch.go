package remote

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// RecordSize is the size of one call record, in bytes:
//
//	 0       4       8                              56       64
//	+-------+-------+------+------+-- ... --+------+--------+
//	|  nr   | flags | arg0 | arg1 |         | arg5 | result |
//	+-------+-------+------+------+-- ... --+------+--------+
//
// All little-endian. Bit i (0..5) of flags says that arg i is not a value but the index of an earlier record
// of the batch, whose result is to be used; bit 31 says that an error result ends the batch. A record that was
// not run keeps the result notRun.
const RecordSize = 64

const (
	flagStopOnError = 1 << 31
	// notRun is no result of any system call: errors are -4095..-1, and it is no address.
	notRun = -1 << 62 // 0xc000000000000000
)

// A Batch is a list of system calls that a tracee runs in one go, with the data that they read and the buffers
// that they fill. The zero value is an empty batch. A Batch is filled, run once by a Caller, then read.
type Batch struct {
	calls []*Result
	data  []byte // what the calls read and fill; placed after the records
	ptrs  []pointer
}

// pointer is a word of the data that is to hold the address of another place in the data.
type pointer struct{ at, to int }

// Result is the place of one call in a batch. Passed as an argument of a later call of the same batch, it stands
// for the value that the call will have returned.
type Result struct {
	batch   *Batch
	index   int
	nr      uint64
	args    [6]uint64
	refs    uint32 // bit i: args[i] is a record index
	local   uint32 // bit i: args[i] is an offset into the batch's data
	lenient bool
	value   int64
}

// Data stands for memory of the tracee that lives as long as the batch runs.
type Data struct {
	batch *Batch
	off   int
	size  int
}

// Call appends a system call. An argument is an integer of any type, an Addr, a bool, a *Result or a *Data.
// A call that fails ends the batch; see Try.
func (b *Batch) Call(nr int, args ...any) *Result { return b.add(nr, false, args) }

// Try appends a system call whose failure does not end the batch.
func (b *Batch) Try(nr int, args ...any) *Result { return b.add(nr, true, args) }

func (b *Batch) add(nr int, lenient bool, args []any) *Result {
	r := &Result{batch: b, index: len(b.calls), nr: uint64(nr), lenient: lenient, value: notRun}
	if len(args) > len(r.args) {
		panic(fmt.Sprintf("remote: system call %d with %d arguments", nr, len(args)))
	}
	for i, a := range args {
		r.setArg(i, a)
	}
	b.calls = append(b.calls, r)
	return r
}

func (r *Result) setArg(i int, a any) {
	switch v := a.(type) {
	case *Result:
		if v.batch != r.batch || v.index >= r.index {
			panic("remote: a result is used before it exists or in another batch")
		}
		r.refs |= 1 << i
		r.args[i] = uint64(v.index)
	case *Data:
		if v.batch != r.batch {
			panic("remote: data of another batch")
		}
		r.local |= 1 << i
		r.args[i] = uint64(v.off)
	case Addr:
		r.args[i] = uint64(v)
	case int:
		r.args[i] = uint64(v)
	case int32:
		r.args[i] = uint64(v)
	case int64:
		r.args[i] = uint64(v)
	case uint:
		r.args[i] = uint64(v)
	case uint32:
		r.args[i] = uint64(v)
	case uint64:
		r.args[i] = v
	case uintptr:
		r.args[i] = uint64(v)
	case bool:
		if v {
			r.args[i] = 1
		}
	default:
		panic(fmt.Sprintf("remote: an argument of type %T", a))
	}
}

// Bytes places p in the tracee for the time of the batch, 16-byte aligned.
func (b *Batch) Bytes(p []byte) *Data {
	d := b.Buffer(len(p))
	copy(b.data[d.off:], p)
	return d
}

// String places s and a terminating zero byte in the tracee.
func (b *Batch) String(s string) *Data { return b.Bytes(append([]byte(s), 0)) }

// Buffer reserves n zero bytes in the tracee, 16-byte aligned, to be read with Data.Bytes after the run.
func (b *Batch) Buffer(n int) *Data {
	off := (len(b.data) + 15) &^ 15
	b.data = append(b.data, make([]byte, off+n-len(b.data))...)
	return &Data{batch: b, off: off, size: n}
}

// Bytes returns what the memory held when the batch ended. The slice belongs to the batch.
func (d *Data) Bytes() []byte { return d.batch.data[d.off : d.off+d.size] }

// SetPointer makes the eight bytes of d at off hold the address that target will have in the tracee, plus delta.
// It serves structures that hold pointers, such as iovec and msghdr.
func (d *Data) SetPointer(off int, target *Data, delta int) {
	d.batch.ptrs = append(d.batch.ptrs, pointer{at: d.off + off, to: target.off + delta})
}

// Value returns what the call returned. The error is the call's errno, or ErrNotRun when an earlier call of the
// batch failed or the batch never ran.
func (r *Result) Value() (uint64, error) {
	switch {
	case r.value == notRun:
		return 0, fmt.Errorf("system call %d (%s): %w", r.index, callName(r.nr), ErrNotRun)
	case r.value < 0 && r.value >= -4095:
		return 0, fmt.Errorf("system call %d (%s): %w", r.index, callName(r.nr), unix.Errno(-r.value))
	}
	return uint64(r.value), nil
}

// Err is the error of Value alone.
func (r *Result) Err() error { _, err := r.Value(); return err }

// Len returns the number of calls.
func (b *Batch) Len() int { return len(b.calls) }

// Size returns the number of bytes that the batch takes in the tracee.
func (b *Batch) Size() int { return len(b.calls)*RecordSize + len(b.data) }

// Encode lays the batch out as it will stand at base in the tracee: the records, then the data.
func (b *Batch) Encode(base Addr) []byte {
	data := base.Add(uint64(len(b.calls) * RecordSize))
	out := make([]byte, b.Size())
	le := binary.LittleEndian
	for i, r := range b.calls {
		rec := out[i*RecordSize:]
		flags := r.refs
		if !r.lenient {
			flags |= flagStopOnError
		}
		le.PutUint32(rec, uint32(r.nr))
		le.PutUint32(rec[4:], flags)
		for k, a := range r.args {
			if r.local&(1<<k) != 0 {
				a += uint64(data)
			}
			le.PutUint64(rec[8+8*k:], a)
		}
		le.PutUint64(rec[56:], 1<<63|1<<62) // notRun
	}
	d := out[len(b.calls)*RecordSize:]
	copy(d, b.data)
	for _, p := range b.ptrs {
		le.PutUint64(d[p.at:], uint64(data)+uint64(p.to))
	}
	return out
}

// Decode takes the results and the data from what stood at the batch's place when it ended. It returns the
// error of the first call that failed and was not a Try.
func (b *Batch) Decode(image []byte) error {
	if len(image) != b.Size() {
		return fmt.Errorf("remote: a batch of %d bytes came back as %d bytes", b.Size(), len(image))
	}
	for i, r := range b.calls {
		r.value = int64(binary.LittleEndian.Uint64(image[i*RecordSize+56:]))
	}
	copy(b.data, image[len(b.calls)*RecordSize:])
	for _, r := range b.calls {
		if err := r.Err(); err != nil && !r.lenient {
			return err
		}
	}
	return nil
}
