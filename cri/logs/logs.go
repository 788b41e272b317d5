// Package logs reads container logs in the CRI format,
//
//	2026-11-22T20:00:00.000000001Z stdout F a whole line
//	2026-11-22T20:00:00.000000002Z stderr P a part of a line that goes on
//
// from the log's file and those that were rotated away beside it (NAME.*, also
// NAME.*.gz), as one stream in the order of time.
package logs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
)

// Options say what to read.
type Options struct {
	Tail       int64     // the last lines alone; below 0 is all that is kept
	Since      time.Time // lines of this time and later; zero is all
	Timestamps bool      // put its time before each line
	Follow     bool      // go on with what is written later
	// Ended, with Follow, is closed when nothing more will be written. nil: only the context ends it.
	Ended <-chan struct{}
}

// Lines are whole lines of one stream, each with its newline. A line longer than 1 MiB comes in several pieces.
type Lines struct {
	Data   []byte
	Stderr bool
}

// Intervals of a follower. It is woken by the folder's events as well.
const (
	pollTime = 250 * time.Millisecond
	// lastLook is how long after the end the last bytes may still come.
	lastLook = 50 * time.Millisecond
)

// Read hands the log at path to emit. A log that is not there is an error that
// wraps fs.ErrNotExist, unless it is followed. No line is lost or told twice
// when the log is rotated meanwhile, as long as the rotated files stay until they are read.
func Read(ctx context.Context, path string, o Options, emit func(Lines) error) error {
	r := &reader{path: path, o: o, p: printer{o: o, emit: emit}, seen: map[string]bool{}}
	defer func() {
		if r.cur != nil {
			r.cur.close()
		}
	}()
	if err := r.begin(ctx); err != nil {
		return err
	}
	if o.Follow {
		if err := r.follow(ctx); err != nil {
			return err
		}
	}
	return r.p.end()
}

// reader goes through a log's files. Afterwards cur is the one that is being written.
type reader struct {
	path string
	o    Options
	p    printer
	cur  *file
	seen map[string]bool // keys of the files that are read, or too old
}

// begin reads what is there, from where the options say.
func (r *reader) begin(ctx context.Context) error {
	files, err := family(r.path)
	if err != nil {
		return err
	}
	if len(files) == 0 && !r.o.Follow {
		return fmt.Errorf("open log %s: %w", r.path, fs.ErrNotExist)
	}
	skipTo, offset, err := tail(files, r.o.Tail)
	if err != nil {
		return errors.Join(err, closeAll(files))
	}
	for i, f := range files {
		r.seen[f.key] = true
		if i < skipTo {
			f.close()
			continue
		}
		if r.cur != nil {
			r.cur.close()
		}
		r.cur = f
		if err := errors.Join(f.skip(offset), r.pump(ctx)); err != nil {
			return errors.Join(err, closeAll(files[i+1:]))
		}
		offset = 0
		if i < len(files)-1 || !r.o.Follow {
			r.p.take(f.rest())
		}
	}
	return r.p.flush()
}

// pump hands on all complete lines that cur has by now.
func (r *reader) pump(ctx context.Context) error {
	for {
		line, err := r.cur.line()
		if errors.Is(err, io.EOF) {
			return r.p.flush()
		}
		if err != nil {
			return fmt.Errorf("read log %s: %w", r.cur.f.Name(), err)
		}
		if r.cur.key == "" {
			r.cur.key = keyOf(line)
			r.seen[r.cur.key] = true
		}
		if err := r.p.line(line); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// follow goes on until the log has ended. It leaves a rotated file only when a
// later one has its first line: then nobody writes to the older one any more.
func (r *reader) follow(ctx context.Context) error {
	w := newWatch(r.path)
	defer w.close()
	ended := r.o.Ended
	for last := false; ; {
		moved, err := r.step(ctx)
		if err != nil {
			return err
		}
		if moved {
			continue
		}
		if last {
			if r.cur != nil {
				r.p.take(r.cur.rest())
			}
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ended:
			ended, last = nil, true
			if err := sleep(ctx, lastLook); err != nil {
				return err
			}
		case <-w.changed():
		case <-time.After(pollTime):
		}
	}
}

// step reads what is new; it tells whether it went on to another file.
func (r *reader) step(ctx context.Context) (moved bool, err error) {
	if r.cur == nil {
		r.cur, err = open(r.path)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return err == nil, err
	}
	if err := r.cur.truncated(); err != nil {
		return false, err
	}
	if err := r.pump(ctx); err != nil {
		return false, err
	}
	if here, err := os.Lstat(r.path); err == nil && os.SameFile(here, r.cur.info) {
		return false, nil
	}
	next, err := r.next()
	if err != nil || next == nil {
		return false, err
	}
	if err := r.pump(ctx); err != nil { // what came before the writer went on
		return false, errors.Join(err, closeAll([]*file{next}))
	}
	r.p.take(r.cur.rest())
	r.cur.close()
	r.cur = next
	r.seen[next.key] = true
	return true, nil
}

// next is the oldest file not read yet that has a line; nil if there is none.
func (r *reader) next() (*file, error) {
	files, err := family(r.path)
	if err != nil {
		return nil, err
	}
	var found *file
	for _, f := range files {
		if found == nil && f.key != "" && !r.seen[f.key] {
			found = f
			continue
		}
		f.close()
	}
	return found, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
