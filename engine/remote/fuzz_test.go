package remote

import "testing"

func FuzzParseMapping(f *testing.F) {
	f.Add("7eff642ab000-7eff642ad000 r-xp 00000000 00:00 0                          [vdso]")
	f.Add("00400000-00401000 r-xp 00000000 00:01 42 /memfd:a b (deleted)")
	f.Add("2-1 ---p 0 0 0")
	f.Fuzz(func(t *testing.T, line string) {
		if m, err := parseMapping(line); err == nil && (m.end <= m.start || len(m.perms) != 4) {
			t.Errorf("%q is %+v", line, m)
		}
	})
}

func FuzzParseStatusField(f *testing.F) {
	f.Add("Name:\tx\nSigBlk:\tfffffffffffbfeff\n", "SigBlk")
	f.Add("Tgid:\t-1\n", "Tgid")
	f.Fuzz(func(t *testing.T, status, field string) {
		_, _ = parseStatusField(status, field)
	})
}

// FuzzBatchDecode reads back batches from a tracee that wrote what it liked into its own memory.
func FuzzBatchDecode(f *testing.F) {
	f.Add(make([]byte, 2*RecordSize+16))
	f.Add([]byte("short"))
	f.Fuzz(func(t *testing.T, image []byte) {
		var b Batch
		data := b.Buffer(16)
		b.Try(1, data)
		b.Call(2)
		if err := b.Decode(image); err == nil && len(image) != b.Size() {
			t.Errorf("%d bytes were taken for a batch of %d", len(image), b.Size())
		}
	})
}

// FuzzPlace checks that files end where they belong, whatever numbers they arrive on.
func FuzzPlace(f *testing.F) {
	f.Add([]byte{3, 4, 5}, []byte{4, 5, 3})
	f.Add([]byte{3, 4, 5, 6}, []byte{9, 3, 4, 6})
	f.Fuzz(func(t *testing.T, got, want []byte) {
		n := min(len(got), len(want), 60)
		var numbers []int
		var files []PushFile
		seenGot, seenWant := map[byte]bool{}, map[byte]bool{}
		table := map[int]int{} // the tracee's descriptors: number -> file
		for i := range n {
			if seenGot[got[i]] || seenWant[want[i]] {
				return
			}
			seenGot[got[i]], seenWant[want[i]] = true, true
			numbers = append(numbers, int(got[i]))
			files = append(files, PushFile{FD: int(want[i])})
			table[int(got[i])] = i
		}
		var b Batch
		place(&b, numbers, files)
		simulate(t, &b, table)
		for i, file := range files {
			if at, ok := table[file.FD]; !ok || at != i {
				t.Errorf("from %v to %v: number %d holds file %d (%v)", got[:n], want[:n], file.FD, at, ok)
			}
		}
		if len(table) != n {
			t.Errorf("from %v to %v: %d numbers are open", got[:n], want[:n], len(table))
		}
	})
}
