//go:build linux

package mem

import (
	"os/exec"
	"testing"
	"time"

	"migrate/engine/kernel/kerneltest"
)

// TestReplaced: the memory of a process is another one once it has executed another program.
func TestReplaced(t *testing.T) {
	kerneltest.Root(t)
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "read x; exec sleep 1000")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	s, err := NewSource(cmd.Process.Pid, 1, NewHashes(cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	if replaced, err := s.Replaced(); err != nil || replaced {
		t.Fatalf("before: %v, %v", replaced, err)
	}
	if _, err := in.Write([]byte("go\n")); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		replaced, err := s.Replaced()
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("after: %v, %v", replaced, err)
		}
		if replaced {
			return
		}
	}
}
