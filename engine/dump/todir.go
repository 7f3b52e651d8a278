//go:build linux

package dump

import (
	"context"
	"errors"
	"fmt"
	"os"

	"migrate/engine"
	"migrate/engine/images"
	"migrate/engine/span"
)

// ErrObstacles means that the tree has something that is not carried.
var ErrObstacles = errors.New("the tree has something that is not carried")

// ObstacleError lists what is not carried. It matches ErrObstacles.
type ObstacleError struct{ List []engine.Obstacle }

func (e *ObstacleError) Error() string {
	text := fmt.Sprintf("%v: %v", ErrObstacles, e.List[0])
	if n := len(e.List) - 1; n > 0 {
		text += fmt.Sprintf(" (and %d more)", n)
	}
	return text
}

// Unwrap makes the error match ErrObstacles.
func (*ObstacleError) Unwrap() error { return ErrObstacles }

// ToDir writes a checkpoint of the tree into dir, which must not exist or be empty. The tree is stopped when it returns,
// for the caller to let go or to destroy. On failure the tree runs on and the directory is as it was.
func ToDir(ctx context.Context, s *Source, dir string) (err error) {
	in, end := span.Begin(ctx, "obstacles")
	obstacles, err := s.Obstacles(in)
	end()
	if err != nil {
		return err
	}
	if len(obstacles) > 0 {
		return &ObstacleError{obstacles}
	}
	made, err := claimDir(dir)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, clearDir(dir, made))
		}
	}()
	if err := span.Do(ctx, "freeze", s.Freeze); err != nil {
		return err
	}
	if err := s.write(ctx, dir); err != nil {
		return errors.Join(err, s.Thaw(context.WithoutCancel(ctx)))
	}
	return nil
}

// write writes the stopped tree.
func (s *Source) write(ctx context.Context, dir string) (err error) {
	pages := images.NewPageWriter(dir)
	defer func() { err = errors.Join(err, pages.Close()) }()
	if err := span.Do(ctx, "layout", func(ctx context.Context) error { _, err := s.Layout(ctx); return err }); err != nil {
		return err
	}
	if err := span.Do(ctx, "pages", func(ctx context.Context) error { _, err := s.Round(ctx, newPageDir(pages)); return err }); err != nil {
		return err
	}
	in, end := span.Begin(ctx, "state")
	cp, err := s.State(in)
	end()
	if err != nil {
		return err
	}
	cp.Header.MemoryDigest = s.Digest().Bytes()
	return span.Do(ctx, "write", func(context.Context) error { return images.WriteDir(dir, cp) })
}

// claimDir makes the directory of a checkpoint, or takes an empty one.
func claimDir(dir string) (made bool, err error) {
	err = os.Mkdir(dir, 0o700)
	if err == nil || !errors.Is(err, os.ErrExist) {
		return err == nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false, err
	}
	if len(entries) > 0 {
		return false, fmt.Errorf("%s is not empty: give a directory that is new or empty, so that no checkpoint is overwritten", dir)
	}
	return false, nil
}

func clearDir(dir string, made bool) error {
	if made {
		return os.RemoveAll(dir)
	}
	entries, err := os.ReadDir(dir)
	errs := []error{err}
	for _, e := range entries {
		errs = append(errs, os.RemoveAll(dir+"/"+e.Name()))
	}
	return errors.Join(errs...)
}
