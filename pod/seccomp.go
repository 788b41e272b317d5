package pod

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// maxSeccompProfile bounds a seccomp profile; real ones have 10 to 20 kB.
const maxSeccompProfile = 1 << 20

// ReadSeccompProfile reads a profile of the host's. A file that can be none
// gives an error that wraps ErrInvalid.
func ReadSeccompProfile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a FIFO must not hang us
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: %s is not a regular file", ErrInvalid, path)
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxSeccompProfile+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read seccomp profile %s: %w", path, err)
	case len(raw) > maxSeccompProfile:
		return nil, fmt.Errorf("%w: %s has more than %d bytes", ErrInvalid, path, maxSeccompProfile)
	case !json.Valid(raw):
		return nil, fmt.Errorf("%w: %s is not JSON", ErrInvalid, path)
	}
	return raw, nil
}
