// Package mem carries the memory of a process: what is mapped where (Layout), which pages changed since the last
// look (Tracker), the pages themselves out of a running program (Source) and into a stopped one (Writer), and a hash
// over all of them that both sides keep and compare (Digest).
//
// A page has an address and a space: the id of its process as the tree knows it, or an object of shared memory
// (ObjectSpace). The source goes in rounds:
//
//	source                                   destination
//	Source.Follow   reads the mappings  -->  the skeleton maps the same; Writer.Follow
//	Source.Round    reads the pages     -->  Writer.WritePages, Writer.ZeroPages
//	... again while the program runs, and once more when it is stopped ...
//	Source.Digest                       ==   Writer.Digest
//
// Within a round every page travels at most once, so pages of one round may arrive in any order; all of a round must
// have been written before the next Follow. Both sides forget the pages of what was unmapped or mapped anew by the
// same rule (Diff), so that their digests agree.
//
// No tracker sees every write. What one can miss is found by comparing hashes (Suspect), and what was mapped anew is
// sent whole. A page that cannot be read, because its mapping just vanished, is tried again in the next round; in the
// last one, when nothing can vanish, it is an error.
//
// Locks: a Digest has one, which is never held during a system call. A Source and a Writer are used by one goroutine
// at a time, but Writer.WritePages and Writer.ZeroPages may run in parallel for different pages.
package mem

import "migrate/arch"

const (
	// PageSize is the size of a page in bytes.
	PageSize = arch.PageSize
	// BatchBytes is the capacity of a Sink's buffers: how much is read from a program at once.
	BatchBytes = 256 << 10

	// chunkSize is what one page of page tables maps on both processors: the unit in which memory is known to be
	// populated or not.
	chunkSize  = 2 << 20
	chunkPages = chunkSize / PageSize
)
