//go:build cgo

package keeper

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// writeRecord puts v into a file as JSON: the old content or the new one is
// there at any moment. The run directory is a tmpfs, so nothing is synced.
func writeRecord(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	temporary := path + ".tmp"
	if err := os.WriteFile(temporary, data, 0o600); err != nil {
		_ = os.Remove(temporary)
		return fmt.Errorf("write record: %w", err)
	}
	if err := os.Rename(temporary, path); err != nil {
		_ = os.Remove(temporary)
		return fmt.Errorf("write record: %w", err)
	}
	return nil
}

// readRecord fills v. A file that cannot be read as v is renamed to NAME.bad, so that it is met only once.
func readRecord(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		_ = os.Rename(path, path+".bad")
		return fmt.Errorf("set %s aside as %s.bad: %w", path, filepath.Base(path), err)
	}
	return nil
}
