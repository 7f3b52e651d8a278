package images

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
)

// sumsName is the file that lists the SHA-256 of all other files of a checkpoint but its pages, over which the header has a hash, in the
// form of sha256sum(1): `sha256sum -c` checks it. It guards against damage, not against somebody who writes the directory.
const sumsName = "SHA256SUMS"

func sumsOf(files []file) file {
	var b bytes.Buffer
	for _, f := range files {
		fmt.Fprintf(&b, "%x  %s\n", sha256.Sum256(f.data), f.name)
	}
	return file{name: sumsName, data: b.Bytes()}
}

// checkSums compares the files with what sumsOf has listed.
func checkSums(list []byte, files map[string][]byte) error {
	left := map[string]bool{}
	for name := range files {
		left[name] = true
	}
	for i, line := range strings.Split(strings.TrimSuffix(string(list), "\n"), "\n") {
		sum, name, ok := strings.Cut(line, "  ")
		want, err := hex.DecodeString(sum)
		if !ok || err != nil || len(want) != sha256.Size {
			return fmt.Errorf("%w: %s: line %d is no SHA-256 and a name", ErrDamaged, sumsName, i+1)
		}
		data, there := files[name]
		if !there || !left[name] {
			return fmt.Errorf("%w: %s: line %d: %q is missing, or listed twice", ErrDamaged, sumsName, i+1, name)
		}
		if have := sha256.Sum256(data); !bytes.Equal(have[:], want) {
			return fmt.Errorf("%w: %s has the SHA-256 %x, and had %x when it was dumped", ErrDamaged, name, have, want)
		}
		delete(left, name)
	}
	if len(left) > 0 {
		return fmt.Errorf("%w: %q not listed in %s", ErrDamaged, slices.Sorted(maps.Keys(left)), sumsName)
	}
	return nil
}

// readSums splits the list off the files of a directory.
func readSums(files map[string][]byte) ([]byte, error) {
	list, ok := files[sumsName]
	if !ok {
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, sumsName, fs.ErrNotExist)
	}
	delete(files, sumsName)
	return list, nil
}
