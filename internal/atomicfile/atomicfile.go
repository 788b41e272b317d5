// Package atomicfile replaces whole files so that a crash leaves the old
// content or the new, never half of it.
package atomicfile

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"
)

// Write puts data into path with the given mode: temporary file beside it, rename.
// It does not survive a power cut; for that there is WriteSync. A nil error means
// that path holds data.
func Write(path string, data []byte, mode fs.FileMode) error {
	temp, err := writeTemp(File{path, data, mode}, false)
	if err != nil {
		return err
	}
	return rename(temp, path)
}

// File is what WriteAllSync writes.
type File struct {
	Path string
	Data []byte
	Mode fs.FileMode
}

// WriteSync is Write, and a nil error means that path holds data also after a
// power cut: file and folder are fsynced.
func WriteSync(path string, data []byte, mode fs.FileMode) error {
	_, err := WriteAllSync([]File{{path, data, mode}})
	return err
}

// syncsAtOnce is how many files are fsynced side by side: the file system writes
// its journal once for those that wait together.
const syncsAtOnce = 32

// WriteAllSync is WriteSync of many files, whose names it changes in their order
// once all of their content is on the disk. It returns how many were changed,
// which is all of them or, if an fsync or write failed, none.
func WriteAllSync(files []File) (done int, err error) {
	temps := make([]string, len(files))
	var group errgroup.Group
	group.SetLimit(syncsAtOnce)
	for i, f := range files {
		group.Go(func() (err error) {
			temps[i], err = writeTemp(f, true)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return 0, errors.Join(err, removeAll(temps))
	}
	folders := map[string]bool{}
	for i, f := range files {
		if err = rename(temps[i], f.Path); err != nil {
			err = errors.Join(err, removeAll(temps[i+1:]))
			break
		}
		done++
		dir, _ := filepath.Split(f.Path)
		folders[dir] = true
	}
	for dir := range folders {
		if syncErr := SyncDir(dir); syncErr != nil {
			return 0, errors.Join(err, fmt.Errorf("write the folder %s: %w", dir, syncErr))
		}
	}
	return done, err
}

// writeTemp writes the file beside its place and returns its name there.
func writeTemp(file File, sync bool) (name string, err error) {
	dir, base := filepath.Split(file.Path)
	f, err := os.CreateTemp(dir, tempPrefix+base+"-*")
	if err != nil {
		return "", fmt.Errorf("write %s: %w", file.Path, err)
	}
	if err := fill(f, file.Data, file.Mode, sync); err != nil {
		return "", fmt.Errorf("write %s: %w", file.Path, errors.Join(err, os.Remove(f.Name())))
	}
	return f.Name(), nil
}

func rename(temp, path string) error {
	if err := os.Rename(temp, path); err != nil {
		return fmt.Errorf("write %s: %w", path, errors.Join(err, os.Remove(temp)))
	}
	return nil
}

// removeAll removes temporary files; "" is one that was not made.
func removeAll(temps []string) error {
	var errs []error
	for _, t := range temps {
		if t != "" {
			errs = append(errs, os.Remove(t))
		}
	}
	return errors.Join(errs...)
}

func fill(f *os.File, data []byte, mode fs.FileMode, sync bool) error {
	_, err := f.Write(data)
	err = errors.Join(err, f.Chmod(mode))
	if err == nil && sync {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// SyncDir brings the names in a folder to the disk.
func SyncDir(dir string) error {
	d, err := os.Open(filepath.Join(dir, "."))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

const tempPrefix = ".tmp-"

// IsTemp tells whether a file of this base name is the remainder of a Write that a crash cut off.
func IsTemp(name string) bool { return strings.HasPrefix(name, tempPrefix) }

// WriteJSON is Write of v as JSON, with mode 0600.
func WriteJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	return Write(path, b, 0o600)
}

// ReadJSON decodes path into v.
func ReadJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("decode %s: %w", path, err)
	}
	return nil
}
