package volume

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
)

func sample() Entry {
	return Entry{Path: "a/b", Type: TypeFile, Mode: 0o4755, UID: 1, GID: 2, Size: 1 << 40, ATime: -1, MTime: 5,
		Xattrs: []Xattr{{"user.x", []byte("y")}, {"system.posix_acl_access", []byte{2, 0, 0, 0}}}}
}

func TestEntryRoundTrip(t *testing.T) {
	for _, e := range []Entry{sample(), {Type: TypeDir, Mode: 0o1777}, {Path: "l", Type: TypeSymlink, Target: "../../etc"}, {Path: "d", Type: TypeChar, Device: 0x103}} {
		unit, got, err := decodeEntry(encodeEntry(7, &e))
		if err != nil || unit != 7 || !reflect.DeepEqual(got, e) {
			t.Errorf("%+v came back as %d %+v, %v", e, unit, got, err)
		}
	}
}

// TestPathsStayBelow lists names that lead out of a root, or nowhere.
func TestPathsStayBelow(t *testing.T) {
	for _, p := range []string{"..", "a/..", "../a", "/a", "a/", "a//b", "./a", "a/./b", "a\x00b", strings.Repeat("n", 256), strings.Repeat("n/", 3000) + "n"} {
		if err := checkPath(p); !errors.Is(err, ErrCorrupt) {
			t.Errorf("path %.40q: %v", p, err)
		}
		e := Entry{Path: p, Type: TypeFile}
		if _, _, err := decodeEntry(encodeEntry(0, &e)); err == nil {
			t.Errorf("an entry with path %.40q was taken", p)
		}
	}
	for _, p := range []string{"", "a", "a/b", "...", "a..b", ".a"} {
		if err := checkPath(p); err != nil {
			t.Error(err)
		}
	}
}

func TestEntriesThatCannotBe(t *testing.T) {
	for _, e := range []Entry{
		{Path: "a"}, {Path: "a", Type: types}, {Path: "a", Type: TypeFile, Mode: 0o10000}, {Path: "", Type: TypeFile}, {Path: "a", Type: TypeSymlink},
		{Path: "a", Type: TypeFile, Target: "b"}, {Path: "a", Type: TypeFile, Size: 1 << 63}, {Path: "a", Type: TypeFile, Xattrs: []Xattr{{stalePrefix + "x", nil}}},
	} {
		if _, _, err := decodeEntry(encodeEntry(0, &e)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%+v: %v", e, err)
		}
	}
}

func FuzzFrame(f *testing.F) {
	e := sample()
	f.Add(appendFrame(nil, kindEntry, encodeEntry(1, &e)))
	f.Add(appendFrame(nil, kindListed, encodeListed([]listed{{"a", TypeDir, 0, 2}}, true)))
	f.Add(appendFrame(nil, kindHashes, encodeHashes([]block{{1}}, false)))
	f.Add(appendFrame(nil, kindRename, encodeNames(1, "a", "b")))
	f.Add(appendFrame(nil, kindHole, encodeSpan(span{1, 2})))
	f.Fuzz(func(t *testing.T, b []byte) {
		k, p, _, err := readFrame(bytes.NewReader(b), nil)
		if err == nil && !bytes.Equal(appendFrame(nil, k, p), b[:frameHeader+len(p)]) {
			t.Fatal("a frame reads as another one")
		}
		if err != nil {
			p = b // the decoders see bytes whose sum was right
		}
		if unit, e, err := decodeEntry(p); err == nil {
			if again := encodeEntry(unit, &e); !bytes.Equal(again, p) {
				t.Fatalf("%+v is written as %x, was %x", e, again, p)
			}
		}
		if unit, paths, err := decodeNames(p, 2); err == nil && !bytes.Equal(encodeNames(unit, paths...), p) {
			t.Fatal("names")
		}
		_, _ = decodeSpan(p)
		_, _, _ = decodeData(p)
		_, _, _ = decodeListed(p)
		_, _, _ = decodeHashes(p)
	})
}
