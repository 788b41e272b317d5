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
)

// Write puts data into path with the given mode: temporary file beside it, rename.
// It does not survive a power cut; for that there is WriteSync. A nil error means
// that path holds data.
func Write(path string, data []byte, mode fs.FileMode) error { return write(path, data, mode, false) }

// WriteSync is Write, and a nil error means that path holds data also after a
// power cut: file and folder are fsynced.
func WriteSync(path string, data []byte, mode fs.FileMode) error {
	return write(path, data, mode, true)
}

func write(path string, data []byte, mode fs.FileMode, sync bool) (err error) {
	dir, base := filepath.Split(path)
	f, err := os.CreateTemp(dir, tempPrefix+base+"-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", path, errors.Join(err, os.Remove(f.Name())))
		}
	}()
	if err = fill(f, data, mode, sync); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	if sync {
		return syncDir(dir)
	}
	return nil
}

func fill(f *os.File, data []byte, mode fs.FileMode, sync bool) error {
	_, err := f.Write(data)
	err = errors.Join(err, f.Chmod(mode))
	if err == nil && sync {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(filepath.Clean(dir + "."))
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
