package volume

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// disk makes a file system in an image file and mounts it.
func disk(t *testing.T, image, at string) {
	t.Helper()
	ok(t, os.MkdirAll(at, 0o755))
	// Nothing is written by a clock of the kernel's while the image is copied.
	command(t, "mount", "-o", "loop,noatime,commit=3600", image, at)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if out, err := exec.CommandContext(ctx, "umount", at).CombinedOutput(); err != nil {
			t.Errorf("umount %s: %v\n%s", at, err, out)
		}
	})
}

func command(t *testing.T, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
}

// TestPowerLoss cuts the power of the destination after each round: what its disk holds at that instant is copied, its
// journal replayed, and everything of the round is there.
func TestPowerLoss(t *testing.T) {
	p := newPair(t)
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	ok(t, os.WriteFile(image, nil, 0o600))
	ok(t, os.Truncate(image, 64<<20))
	command(t, "mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", image)
	at := filepath.Join(dir, "at")
	disk(t, image, at)
	p.to = filepath.Join(at, "deep/volume")
	s, err := OpenStore(filepath.Join(dir, "state"))
	ok(t, err)
	ok(t, s.Claim(Unit{Dir: p.to}, 1, "m", false, nil))
	p.dirs(Options{})
	for round := range 4 {
		for i := range round * maxUnsynced / 2 { // few files are flushed one by one, many by their file system
			p.write(fmt.Sprintf("round%d/sub/file%d", round, i), noise(uint64(round*1000+i), 5000))
		}
		log, err := os.OpenFile(p.write("log/now", "begin "), os.O_WRONLY|os.O_APPEND, 0)
		p.must(err)
		_, err = fmt.Fprintf(log, "round %d\n", round)
		p.must(err)
		p.must(log.Close())
		p.must(os.Rename(filepath.Join(p.from, "log/now"), filepath.Join(p.from, "log", fmt.Sprint(round))))
		p.round(nil)
		after := fmt.Sprintf("%s-%d", image, round)
		b, err := os.ReadFile(image)
		p.must(err)
		p.must(os.WriteFile(after, b, 0o600))
		disk(t, after, after+"-at")
		if err := sameTree(p.from, filepath.Join(after+"-at", "deep/volume")); err != nil {
			t.Errorf("after round %d: %v", round, err)
		}
	}
}
