package logs

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLine bounds the bytes of a line that are held; a longer one comes in pieces.
const maxLine = 1 << 20

// keyLen is how much of its first line tells a file from all others: the time in it is unique.
const keyLen = 200

// file is one open file of a log.
type file struct {
	f    *os.File
	in   io.Reader // f, or what it has compressed
	info fs.FileInfo
	key  string // of the first line, "" while there is none
	buf  []byte // read and not handed on: buf[pos:]
	pos  int
	read int64 // bytes taken from in
}

// open opens a file of a log: a regular file and nothing behind a symlink, for
// whoever may write into the log folder must not choose what is read.
func open(path string) (*file, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open log %s: %w", path, err), f.Close())
	}
	l := &file{f: f, info: info}
	return l, l.rewind()
}

func (l *file) rewind() error {
	if _, err := l.f.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("rewind log: %w", err)
	}
	l.in, l.buf, l.pos, l.read = l.f, l.buf[:0], 0, 0
	if strings.HasSuffix(l.f.Name(), ".gz") {
		z, err := gzip.NewReader(l.f)
		if err != nil {
			return errors.Join(fmt.Errorf("read log %s: %w", l.f.Name(), err), l.f.Close())
		}
		l.in = z
	}
	return nil
}

func (l *file) close() { _ = l.f.Close() }

func closeAll(files []*file) (err error) {
	for _, f := range files {
		err = errors.Join(err, f.f.Close())
	}
	return err
}

// line returns the next line with its newline, or a piece of one that is too
// long. io.EOF: there is no complete line now. The bytes are valid until the next call.
func (l *file) line() ([]byte, error) {
	searched := 0
	for {
		if i := bytes.IndexByte(l.buf[l.pos+searched:], '\n'); i >= 0 {
			end := l.pos + searched + i + 1
			out := l.buf[l.pos:end]
			l.pos = end
			return out, nil
		}
		searched = len(l.buf) - l.pos
		if searched >= maxLine {
			out := l.buf[l.pos:]
			l.pos = len(l.buf)
			return out, nil
		}
		if err := l.fill(); err != nil {
			return nil, err
		}
	}
}

func (l *file) fill() error {
	if l.pos > 0 {
		l.buf = l.buf[:copy(l.buf, l.buf[l.pos:])]
		l.pos = 0
	}
	l.buf = slices.Grow(l.buf, 64<<10)
	n, err := l.in.Read(l.buf[len(l.buf):cap(l.buf)])
	l.buf = l.buf[:len(l.buf)+n]
	l.read += int64(n)
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// rest takes the bytes after the last newline, when nothing more can follow them.
func (l *file) rest() []byte {
	out := l.buf[l.pos:]
	l.pos = len(l.buf)
	return out
}

// skip goes to offset of the content.
func (l *file) skip(offset int64) error {
	if err := l.rewind(); err != nil {
		return err
	}
	if l.in == io.Reader(l.f) {
		_, err := l.f.Seek(offset, io.SeekStart)
		l.read = offset
		return err
	}
	_, err := io.CopyN(io.Discard, l.in, offset)
	return err
}

// truncated begins anew when somebody has emptied the file.
func (l *file) truncated() error {
	st, err := l.f.Stat()
	if err != nil {
		return fmt.Errorf("look at log: %w", err)
	}
	if l.in == io.Reader(l.f) && st.Size() < l.read {
		l.key = ""
		return l.rewind()
	}
	return nil
}

func keyOf(line []byte) string { return string(line[:min(len(line), keyLen)]) }

// maxScans bounds the looks at a folder whose files are renamed all the time.
const maxScans = 1000

// family opens all files of a log, oldest first. Files that are still being
// compressed, and the compressed twin of one that is there, are left out. A
// rename between listing and opening could hide a file, so the folder is looked
// at again until it is the same before and after.
func family(path string) ([]*file, error) {
	for scan := 1; ; scan++ {
		before, err := names(path)
		if err != nil {
			return nil, err
		}
		files, err := openAll(path, before)
		if err != nil {
			return nil, err
		}
		after, err := names(path)
		if err != nil {
			return nil, errors.Join(err, closeAll(files))
		}
		if maps.Equal(before, after) || scan == maxScans {
			slices.SortStableFunc(files, byAge)
			return files, nil
		}
		_ = closeAll(files)
	}
}

// names are the log's files in its folder, with their inodes.
func names(path string) (map[string]uint64, error) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list log files: %w", err)
	}
	base := filepath.Base(path)
	out := map[string]uint64{}
	for _, e := range entries {
		name := e.Name()
		if name != base && (!strings.HasPrefix(name, base+".") || strings.HasSuffix(name, ".tmp")) {
			continue
		}
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(filepath.Dir(path), name), &st); err == nil {
			out[name] = st.Ino
		}
	}
	return out, nil
}

func openAll(path string, names map[string]uint64) ([]*file, error) {
	var out []*file
	keys := map[string]bool{}
	base := filepath.Base(path)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		f, err := open(filepath.Join(filepath.Dir(path), name))
		if err != nil {
			if name == base && !errors.Is(err, fs.ErrNotExist) {
				return nil, errors.Join(err, closeAll(out))
			}
			continue // moved, or a broken archive: the others are still good
		}
		line, err := f.line()
		if err == nil {
			f.key = keyOf(line)
		}
		if keys[f.key] || name != base && f.key == "" || f.rewind() != nil {
			f.close()
			continue
		}
		keys[f.key] = true
		out = append(out, f)
	}
	return out, nil
}

func byAge(a, b *file) int {
	switch {
	case a.key == b.key:
		return 0
	case a.key == "": // the empty file is the newest
		return 1
	case b.key == "":
		return -1
	}
	return compareTimes(a.key, b.key)
}
