package logs

import (
	"errors"
	"io"
)

// tail finds where the last n lines of files begin: at offset of files[first]. n below 0 is all.
func tail(files []*file, n int64) (first int, offset int64, err error) {
	if n < 0 || len(files) == 0 {
		return 0, 0, nil
	}
	for i := len(files) - 1; i >= 0; i-- {
		offset, have, err := files[i].lastLines(n)
		if err != nil {
			return 0, 0, err
		}
		if n -= have; n <= 0 || i == 0 {
			return i, offset, nil
		}
	}
	return 0, 0, nil
}

// lastLines returns the offset of the last n lines of the file and how many it
// has of them. It looks at the end of the file first, and at more as it must.
func (l *file) lastLines(n int64) (offset, have int64, err error) {
	size := l.info.Size()
	compressed := l.in != io.Reader(l.f)
	for block := int64(64 << 10); ; block *= 4 {
		from := max(0, size-block)
		if compressed {
			from = 0
		}
		if err := l.skip(from); err != nil {
			return 0, 0, err
		}
		starts, end, err := l.lineStarts(from)
		if err != nil {
			return 0, 0, err
		}
		// The first line of a part of the file may be the end of one.
		if from > 0 && int64(len(starts)) <= n {
			continue
		}
		have = min(n, int64(len(starts)))
		if have == 0 {
			return end, 0, nil
		}
		return starts[int64(len(starts))-have], have, nil
	}
}

// lineStarts returns the offsets of the lines from here to the end, parts joined, and the end.
func (l *file) lineStarts(at int64) (starts []int64, end int64, err error) {
	if at > 0 { // to the next beginning
		skipped, err := l.line()
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, 0, err
		}
		at += int64(len(skipped))
	}
	var open [2]bool
	for {
		line, err := l.line()
		if errors.Is(err, io.EOF) {
			return starts, at, nil
		}
		if err != nil {
			return nil, 0, err
		}
		r := parse(line)
		stream := 0
		if r.stderr {
			stream = 1
		}
		if !open[stream] {
			starts = append(starts, at)
		}
		open[stream] = r.partial
		at += int64(len(line))
	}
}
