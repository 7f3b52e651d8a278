//go:build linux

package files

import (
	"testing"

	"golang.org/x/sys/unix"

	"migrate/engine/kernel/kerneltest"
)

// FuzzInotifyEvents reads events from outside and makes those that can be made: with or without an error, what is made is as
// much as was asked for.
func FuzzInotifyEvents(f *testing.F) {
	kerneltest.Root(f)
	f.Add(appendEvent(appendEvent(nil, inotifyEvent{1, unix.IN_CREATE, 0, "a"}), inotifyOverflow))
	f.Add(appendEvent(appendEvent(nil, inotifyEvent{1, unix.IN_MOVED_FROM, 3, "a"}), inotifyEvent{2, unix.IN_MOVED_TO, 3, "b"}))
	f.Add(appendEvent(appendEvent(nil, inotifyEvent{7, unix.IN_DELETE_SELF, 0, ""}), inotifyEvent{7, unix.IN_IGNORED, 0, ""}))
	f.Add([]byte{1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		events, err := parseEvents(b)
		if err != nil {
			return
		}
		fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
		if err != nil {
			kerneltest.Lack(t, "an inotify instance: "+err.Error())
		}
		defer func() { _ = unix.Close(fd) }()
		_ = queueEvents(fd, events)
	})
}

// TestInotifyEvents makes events of every kind in a new queue and reads them.
func TestInotifyEvents(t *testing.T) {
	kerneltest.Root(t)
	for name, want := range map[string][]inotifyEvent{
		"one":      {{3, unix.IN_OPEN | unix.IN_ISDIR, 0, ""}},
		"overflow": {{1, unix.IN_CREATE, 0, "x"}, {1, unix.IN_CREATE, 0, "y"}, inotifyOverflow},
		"again":    {{1, unix.IN_CREATE, 0, "x"}, {1, unix.IN_DELETE, 0, "x"}, {1, unix.IN_CREATE | unix.IN_ISDIR, 0, "x"}, {1, unix.IN_DELETE | unix.IN_ISDIR, 0, "x"}},
		"ends":     {{9, unix.IN_ATTRIB, 0, ""}, {9, unix.IN_DELETE_SELF, 0, ""}, {9, unix.IN_IGNORED, 0, ""}, {4, unix.IN_IGNORED, 0, ""}},
		"file":     {{5, unix.IN_OPEN, 0, ""}, {5, unix.IN_MODIFY, 0, ""}, {5, unix.IN_ACCESS, 0, ""}, {5, unix.IN_MOVE_SELF, 0, ""}, {5, unix.IN_CLOSE_WRITE, 0, ""}},
	} {
		t.Run(name, func(t *testing.T) {
			fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = unix.Close(fd) }()
			if err := queueEvents(fd, want); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 65536)
			n, err := unix.Read(fd, buf)
			if err != nil {
				t.Fatal(err)
			}
			got, err := parseEvents(buf[:n])
			if err != nil || len(got) != len(want) {
				t.Fatalf("%d events, not %d (%v): %v", len(got), len(want), err, got)
			}
			for i := range want {
				if got[i] != want[i] {
					t.Errorf("event %d is %v, not %v", i, got[i], want[i])
				}
			}
			if n, err := unix.Read(fd, buf); err != unix.EAGAIN {
				t.Errorf("%d more bytes (%v)", n, err)
			}
		})
	}
	t.Run("unmount", func(t *testing.T) {
		if got, overflow := plan([]inotifyEvent{{1, unix.IN_UNMOUNT, 0, ""}, {1, unix.IN_IGNORED, 0, ""}}, 100); len(got) != 0 || !overflow {
			t.Errorf("%v, overflow %v", got, overflow)
		}
	})
}
