package seccache

import (
	"bytes"
	"encoding/binary"
	"errors"
)

// Magic begins a cache file; entries follow.
const Magic = "pausaF1\n"

// Split takes the entry at the head of data: a description of a filter, and
// the filter itself in the kernel's form.
func Split(data []byte) (key, filter, rest []byte, err error) {
	if len(data) < 8 {
		return nil, nil, nil, errors.New("seccomp cache: entry is cut off")
	}
	k, f := uint64(binary.NativeEndian.Uint32(data)), uint64(binary.NativeEndian.Uint32(data[4:]))
	data = data[8:]
	if k == 0 || f == 0 || f%8 != 0 || k+f > uint64(len(data)) {
		return nil, nil, nil, errors.New("seccomp cache: entry is damaged")
	}
	return data[:k], data[k : k+f], data[k+f:], nil
}

// Add puts an entry behind those of a cache file's content, unless one of the
// same description is there. A damaged file begins anew.
func Add(file, entry []byte) ([]byte, error) {
	key, _, rest, err := Split(entry)
	if err != nil {
		return nil, err
	}
	if len(rest) > 0 {
		return nil, errors.New("seccomp cache: more than one entry")
	}
	known, ok := bytes.CutPrefix(file, []byte(Magic))
	for len(known) > 0 && ok {
		var other []byte
		other, _, known, err = Split(known)
		if bytes.Equal(other, key) && err == nil {
			return file, nil
		}
		ok = err == nil
	}
	if !ok {
		file = []byte(Magic)
	}
	return append(bytes.Clone(file), entry...), nil
}
