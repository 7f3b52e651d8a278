package images

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// maxImage bounds one image file that is read into memory, in bytes. Pages are not among them.
const maxImage = 1 << 30

// WriteDir writes the checkpoint into dir, an existing directory, and flushes it to disk. A checkpoint that
// Validate refuses is not written. The pages are written by a PageWriter beside it.
func WriteDir(dir string, c *Checkpoint) error {
	if err := c.Validate(); err != nil {
		return err
	}
	files, err := c.encode()
	if err != nil {
		return err
	}
	files = append(files, sumsOf(files))
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("checkpoint directory: %w", err)
	}
	defer func() { _ = root.Close() }() // a directory handle: nothing is lost
	for _, f := range files {
		if len(f.data) > maxImage {
			return fmt.Errorf("%s: %d bytes, at most %d can be read back", f.name, len(f.data), maxImage)
		}
		if err := writeFile(root, f); err != nil {
			return err
		}
	}
	names := make([]string, 0, len(files))
	for _, f := range files {
		names = append(names, f.name)
	}
	return errors.Join(syncFiles(dir, names), syncDir(dir))
}

func writeFile(root *os.Root, f file) (err error) {
	w, err := root.OpenFile(f.name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	_, err = w.Write(f.data)
	return err
}

// syncFiles flushes files of a directory. Many at a time share what each costs: a checkpoint of a thousand processes has
// thousands of files.
func syncFiles(dir string, names []string) error {
	const workers = 64
	next := make(chan string)
	failed := make(chan error, workers)
	for range workers {
		go func() {
			var errs []error
			for name := range next {
				errs = append(errs, syncFile(filepath.Join(dir, name)))
			}
			failed <- errors.Join(errs...)
		}()
	}
	for _, name := range names {
		next <- name
	}
	close(next)
	var errs []error
	for range workers {
		errs = append(errs, <-failed)
	}
	return errors.Join(errs...)
}

func syncFile(path string) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("flushing %s: %w", path, err)
	}
	return nil
}

func syncDir(dir string) (err error) {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("flushing %s: %w", dir, err)
	}
	return nil
}

// ReadDir reads a checkpoint that WriteDir has written, and validates it. It follows no link out of dir. The error matches ErrDamaged when a
// file has been changed or is missing.
func ReadDir(dir string) (*Checkpoint, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("checkpoint directory: %w", err)
	}
	defer func() { _ = root.Close() }() // a directory handle: nothing is lost
	list, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return nil, fmt.Errorf("checkpoint directory: %w", err)
	}
	files := make(map[string][]byte)
	for _, e := range list {
		if !isRecord(e.Name()) || e.IsDir() {
			continue
		}
		if !e.Type().IsRegular() { // a link or a FIFO, which would block
			return nil, fmt.Errorf("%s: %s is not a regular file", dir, e.Name())
		}
		if len(files) >= maxFiles {
			return nil, fmt.Errorf("%s: more than %d image files", dir, maxFiles)
		}
		b, err := readFile(root, e.Name())
		if err != nil {
			return nil, err
		}
		files[e.Name()] = b
	}
	sums, err := readSums(files)
	if err == nil {
		err = checkSums(sums, files)
	}
	if err != nil {
		return nil, fmt.Errorf("checkpoint in %s: %w", dir, err)
	}
	c, err := decode(files)
	if err != nil {
		return nil, fmt.Errorf("checkpoint in %s: %w", dir, err)
	}
	return c, nil
}

// isRecord tells the files of the checkpoint from its pages and from what else lies in the directory.
func isRecord(name string) bool {
	if strings.HasPrefix(name, "pages-") || strings.HasPrefix(name, "pagemap-") {
		return false
	}
	return name == sumsName || strings.HasSuffix(name, ".img") || strings.HasPrefix(name, blobPrefix)
}

func readFile(root *os.Root, name string) ([]byte, error) {
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // opened for reading: nothing is lost
	b, err := io.ReadAll(io.LimitReader(f, maxImage+1))
	if err == nil && len(b) > maxImage {
		err = fmt.Errorf("%s: more than %d bytes", name, maxImage)
	}
	return b, err
}
