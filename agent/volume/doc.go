// Package volume brings files and directories to another host while a program writes to them.
//
// A unit is a directory with all that is below it, or a single file. The source sends rounds: each walks its units, finds
// what has changed since the round before by the inode and the time of its last change (ctime), reads those files, and sends
// the blocks whose hash is another one now. The last round is sent while the program stands still. Files of a
// program that maps them shared and writable are compared by content in each round, for a write through a mapping
// need not change a time. Whole directories are walked and nothing is watched: see Sender.Round for why.
//
// The destination writes in place: nothing of a unit was there before, or it was what an earlier move had left (Store).
// At the end of each round it flushes what it wrote before it answers.
//
// # Wire
//
// One authenticated connection per move, of the same kind as those of pages. Frames, little-endian:
//
//	offset 0      4      5        8        12       16             24
//	       +------+------+--------+--------+--------+--------------+---- - - - ----+
//	       | MGVF | kind | 0 0 0  | length | 0      | xxh3 of rest | length bytes  |
//	       +------+------+--------+--------+--------+--------------+---- - - - ----+
//
// The sum is over the 16 bytes before it and the payload. The source's frames change the destination's files in the order
// in which they come; sync, list and have are answered. A destination that cannot go on says why and closes.
//
// # Trust
//
// What comes over the wire is outside input. Lengths are bounded; names lead nowhere but below the unit's root, through no
// symbolic link and no mount (openat2(2), RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV); and the destination takes
// only units that it has claimed itself.
//
// # Failure
//
// A connection that breaks is replaced by another, over which the source asks what has arrived. A unit whose move is given up
// is removed again by its record, and what had to make room for it returns (Store.Abort).
package volume
