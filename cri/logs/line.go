package logs

import (
	"bytes"
	"fmt"
	"strings"
	"time"
)

// batch is how many bytes are handed on together.
const batch = 32 << 10

// record is one line of a log file.
type record struct {
	time    []byte
	stderr  bool
	partial bool
	text    []byte // without the newline
}

// parse reads a line; one that is not in the format is text of stdout, so that nothing is lost.
func parse(line []byte) record {
	line = bytes.TrimSuffix(line, []byte("\n"))
	stamp, rest, ok1 := bytes.Cut(line, []byte(" "))
	stream, rest, ok2 := bytes.Cut(rest, []byte(" "))
	tags, text, ok3 := bytes.Cut(rest, []byte(" "))
	isErr := string(stream) == "stderr"
	if !ok1 || !ok2 || !ok3 || !isErr && string(stream) != "stdout" {
		return record{text: line}
	}
	return record{time: stamp, stderr: isErr, partial: len(tags) > 0 && tags[0] == 'P', text: text}
}

// compareTimes orders two lines by the times they begin with.
func compareTimes(a, b string) int {
	at, aErr := time.Parse(time.RFC3339Nano, strings.SplitN(a, " ", 2)[0])
	bt, bErr := time.Parse(time.RFC3339Nano, strings.SplitN(b, " ", 2)[0])
	if aErr != nil || bErr != nil {
		return strings.Compare(a, b)
	}
	return at.Compare(bt)
}

// printer joins parts, drops what is too old and hands on lines in batches.
type printer struct {
	o    Options
	emit func(Lines) error
	open [2]pending // stdout, stderr
	out  []byte
	err  bool // out is of stderr
}

// pending is a line of one stream whose end has not come.
type pending struct {
	text    []byte
	started bool
	drop    bool // it is too old
}

func (p *printer) line(raw []byte) error {
	r := parse(raw)
	q := &p.open[0]
	if r.stderr {
		q = &p.open[1]
	}
	if !q.started {
		q.started, q.drop = true, p.old(r.time)
		if p.o.Timestamps && len(r.time) > 0 {
			q.text = append(append(q.text, r.time...), ' ')
		}
	}
	q.text = append(q.text, r.text...)
	if !r.partial {
		q.text = append(q.text, '\n')
	} else if len(q.text) < maxLine {
		return nil
	}
	var err error
	if !q.drop {
		err = p.put(q.text, r.stderr)
	}
	q.text = q.text[:0]
	q.started = r.partial
	return err
}

func (p *printer) old(stamp []byte) bool {
	if p.o.Since.IsZero() || len(stamp) == 0 {
		return false
	}
	t, err := time.Parse(time.RFC3339Nano, string(stamp))
	return err == nil && t.Before(p.o.Since)
}

func (p *printer) put(text []byte, stderr bool) error {
	if stderr != p.err {
		if err := p.flush(); err != nil {
			return err
		}
		p.err = stderr
	}
	p.out = append(p.out, text...)
	if len(p.out) < batch {
		return nil
	}
	return p.flush()
}

func (p *printer) flush() error {
	if len(p.out) == 0 {
		return nil
	}
	out := bytes.Clone(p.out)
	p.out = p.out[:0]
	if err := p.emit(Lines{Data: out, Stderr: p.err}); err != nil {
		return fmt.Errorf("hand on log: %w", err)
	}
	return nil
}

// take is a last line without a newline, of a writer that died in the middle.
func (p *printer) take(rest []byte) {
	if len(rest) > 0 {
		_ = p.line(rest) // an error of emit comes again with end
	}
}

// end hands on lines whose end never came.
func (p *printer) end() error {
	for i := range p.open {
		q := &p.open[i]
		if len(q.text) > 0 && !q.drop {
			if err := p.put(append(q.text, '\n'), i == 1); err != nil {
				return err
			}
		}
	}
	return p.flush()
}
