// Package pagexfer carries the pages of address spaces from one host to another, over a few parallel connections
// that the caller has already opened and authenticated. It knows pages, runs of pages and connections; it does
// not know processes.
//
// A Sender takes batches: up to 64 pages (256 KiB) of one address space, described by runs of {address, pages,
// zero}. A run of zero pages costs only its 16 bytes. Batches go out over whichever connection is free, so two
// batches may arrive in either order: between two sends of the same page there must be a Flush, which returns
// once the receiver has written all that was sent before it. The Receiver hands the pages to a Sink, from one
// goroutine per connection. Buffers are bounded: a slow sink stops the reading, which fills the socket, which
// blocks Send.
//
// # The wire
//
// Each connection carries frames, in both directions. Integers are little-endian.
//
//	offset 0       4     5      6       7    8        12       16      20      24      32      40
//	       +-------+-----+------+-------+----+--------+--------+-------+-------+-------+-------+------ - - ----+---- - - ----+
//	       | magic | ver | kind | codec | 0  | space  | runs   | raw   | wire  | seq   | sum   | runs * 16     | wire bytes  |
//	       | MPGX  | 1   |      |       |    |        |        |       |       |       |       | (batch only)  | of payload  |
//	       +-------+-----+------+-------+----+--------+--------+-------+-------+-------+-------+------ - - ----+---- - - ----+
//
//	kind   1 hello: payload {index u32, streams u32, token}; the first frame, client to server
//	       2 welcome: empty; the answer to hello
//	       3 batch: runs and pages
//	       4 flush: payload {id u64}
//	       5 flushed: payload {id, pages, zero pages, wire bytes: u64 each}, totals of this connection so far
//	       6 bye: empty; the sender has ended in order
//	       7 failure: payload is text for people, up to 1 KiB; the last frame of its direction
//	codec  of a batch's payload: 0 off, 1 s2 block, 2 zstd frame
//	space  the address space that a batch belongs to
//	raw    bytes of payload before compression; for a batch the sum of the non-zero runs' pages
//	wire   bytes of payload that follow
//	seq    number of this frame in its direction of this connection, from 0
//	sum    xxh3-64 of everything after the header, seeded with the xxh3-64 of the header's first 32 bytes
//
//	run    offset 0         8        12      16
//	              +---------+--------+-------+
//	              | address | pages  | flags |    flags: bit 0 zero pages, all other bits 0
//	              +---------+--------+-------+
//
// The payload of a batch holds the pages of its non-zero runs, in their order.
//
// # Failure
//
// The first error of any connection ends the Sender: all calls return it from then on, and the connections are
// closed. Nothing is sent twice and nothing is resumed; the caller starts a new Sender and sends everything again.
// The checksum is no protection against an attacker; that is the task of the connection (TLS 1.3).
package pagexfer
