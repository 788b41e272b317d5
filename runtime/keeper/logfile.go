//go:build cgo

package keeper

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// maxLine is the longest piece of a line, in bytes, that one line of the log
// holds; a longer line goes on in the next, tagged P until its last piece.
const maxLine = 16 << 10

// logFile is a container's log in CRI format. A disk that is full never stops
// the container: what cannot be written is dropped and counted.
type logFile struct {
	path    string
	dropped atomic.Int64 // bytes of output

	mu   sync.Mutex // guards file and buf, keeps lines whole
	file *os.File
	buf  []byte
}

// openLog opens or makes the log; "" gives a log that keeps nothing.
func openLog(path string) (*logFile, error) {
	l := &logFile{path: path}
	if path == "" {
		return l, nil
	}
	return l, l.reopen()
}

// reopen goes on in a new file at the same path, after the old one was moved away.
func (l *logFile) reopen() error {
	if l.path == "" {
		return nil
	}
	f, err := openLogFile(l.path)
	if err != nil {
		return err
	}
	l.mu.Lock()
	old := l.file
	l.file = f
	l.mu.Unlock()
	if old != nil {
		return old.Close()
	}
	return nil
}

// openLogFile follows no link in the last part of the path and takes nothing but a regular file.
func openLogFile(path string) (*os.File, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("log path %q is not absolute", path)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make log folder: %w", err)
	}
	flags := unix.O_WRONLY | unix.O_APPEND | unix.O_CREAT | unix.O_NOFOLLOW | unix.O_CLOEXEC | unix.O_NONBLOCK
	fd, err := unix.Open(path, flags, 0o640)
	if err != nil {
		return nil, fmt.Errorf("open log %s: %w", path, err)
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = fmt.Errorf("it is not a regular file")
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("open log %s: %w", path, err)
	}
	_ = unix.SetNonblock(fd, false)
	return os.NewFile(uintptr(fd), path), nil
}

// write logs the whole lines of data and says how many bytes it took. With last
// it takes all: a line without an end is tagged P, as more of it could have come.
// What it takes is in the journal until the caller ends the entry.
func (l *logFile) write(stream string, data []byte, last bool, j *journal) (taken int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf, taken = appendLines(l.buf[:0], time.Now(), stream, data, last)
	if taken == 0 || l.file == nil {
		return taken
	}
	j.begin(l.file, l.buf, data[:taken])
	n, err := l.file.Write(l.buf)
	if err != nil {
		l.dropped.Add(int64(taken))
		l.cutBack(n)
	}
	if cap(l.buf) > 2*pumpSize {
		l.buf = nil
	}
	return taken
}

// cutBack takes the beginning of lines away that did not get in whole.
func (l *logFile) cutBack(n int) {
	if n == 0 {
		return
	}
	if st, err := l.file.Stat(); err == nil {
		_ = l.file.Truncate(st.Size() - int64(n))
	}
}

func appendLines(out []byte, now time.Time, stream string, data []byte, last bool) ([]byte, int) {
	head := now.AppendFormat(make([]byte, 0, 64), time.RFC3339Nano)
	head = append(head, ' ')
	head = append(append(head, stream...), ' ')
	taken := 0
	for taken < len(data) {
		rest := data[taken:]
		end := bytes.IndexByte(rest[:min(len(rest), maxLine+1)], '\n')
		tag, size, step := byte('F'), end, end+1
		if end < 0 {
			if len(rest) <= maxLine && !last {
				break
			}
			tag, size = 'P', min(len(rest), maxLine)
			step = size
		}
		out = append(append(out, head...), tag, ' ')
		out = append(append(out, rest[:size]...), '\n')
		taken += step
	}
	return out, taken
}

func (l *logFile) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		_ = l.file.Close()
		l.file = nil
	}
}
