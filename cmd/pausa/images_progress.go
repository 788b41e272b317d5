package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/pausa-run/pausa/cri/pausav1"
)

// show tells people how far a transfer is.
type show interface {
	step(*pausav1.ImageProgress)
	end(error) // after the last step
}

// newShow tells on standard error how far the transfer called title is.
func (p *program) newShow(ctx context.Context, how, title string) show {
	switch how {
	case progressBars:
		return newBars(ctx, p.err, title)
	case progressJSON:
		return &lines{w: p.err, now: p.now, print: jsonLine, blobs: map[string]*blob{}}
	case progressPlain:
		return &lines{w: p.err, now: p.now, print: plainLine, blobs: map[string]*blob{}}
	default:
		return silence{}
	}
}

type silence struct{}

func (silence) step(*pausav1.ImageProgress) {}
func (silence) end(error)                   {}

// lines is one line a second, for logs and programs.
type lines struct {
	w     io.Writer
	now   func() time.Time
	print func(io.Writer, totals)

	mu    sync.Mutex
	began time.Time
	told  time.Time
	prior int64 // bytes at told
	blobs map[string]*blob
}

type blob struct {
	bytes, total int64
	done         bool
}

// totals are those of all blobs of a transfer that are known so far.
type totals struct {
	Blobs  int              `json:"blobs"`
	Done   int              `json:"done"`
	Bytes  int64            `json:"bytes"`
	Total  int64            `json:"total"`
	Rate   int64            `json:"bytesPerSecond"`
	Layers map[string]int64 `json:"current,omitempty"` // bytes of each blob that is on its way, by digest
	Error  string           `json:"error,omitempty"`
	Ended  bool             `json:"ended"`
}

func (l *lines) step(m *pausav1.ImageProgress) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	if l.began.IsZero() {
		l.began, l.told = now, now
	}
	l.blobs[m.GetDigest()] = &blob{m.GetBytes(), m.GetTotal(), m.GetDone()}
	if now.Sub(l.told) >= time.Second {
		l.tell(now, nil, false)
	}
}

func (l *lines) end(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.began.IsZero() {
		return // nothing was to be done
	}
	if err == nil {
		for _, b := range l.blobs {
			b.bytes, b.done = b.total, true
		}
	}
	l.told, l.prior = l.began, 0 // the last line has the rate of the whole
	l.tell(l.now(), err, true)
}

func (l *lines) tell(now time.Time, err error, ended bool) {
	t := totals{Blobs: len(l.blobs), Ended: ended, Layers: map[string]int64{}}
	for digest, b := range l.blobs {
		t.Bytes += b.bytes
		t.Total += b.total
		if b.done {
			t.Done++
		} else {
			t.Layers[digest] = b.bytes
		}
	}
	if spent := now.Sub(l.told).Seconds(); spent > 0 {
		t.Rate = int64(float64(t.Bytes-l.prior) / spent)
	}
	if err != nil {
		t.Error = err.Error()
	}
	l.told, l.prior = now, t.Bytes
	l.print(l.w, t)
}

func jsonLine(w io.Writer, t totals) {
	data, err := json.Marshal(t)
	if err == nil {
		fmt.Fprintf(w, "%s\n", data)
	}
}

func plainLine(w io.Writer, t totals) {
	var current []string
	for digest, n := range t.Layers {
		current = append(current, shortDigest(digest)+" "+sizeText(uint64(max(n, 0))))
	}
	sort.Strings(current)
	text := fmt.Sprintf("%d of %d blobs, %s of %s, %s/s", t.Done, t.Blobs,
		sizeText(uint64(max(t.Bytes, 0))), sizeText(uint64(max(t.Total, 0))), sizeText(uint64(max(t.Rate, 0))))
	if len(current) > 0 {
		text += "; " + strings.Join(current, ", ")
	}
	fmt.Fprintln(w, text)
}

// shortDigest is the first digits of a digest.
func shortDigest(d string) string {
	_, hex, ok := strings.Cut(d, ":")
	if !ok {
		hex = d
	}
	return hex[:min(12, len(hex))]
}
