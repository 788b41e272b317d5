// Package event keeps what has happened of late to pods, to Services and to the
// host's network, as Kubernetes words it. It is a list of bounded length: the
// same thing that happens again is counted, and the oldest is forgotten.
package event

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/pausa-run/pausa/internal/atomicfile"
)

// Object is what an event is about.
type Object struct {
	Kind      string    `json:"kind"`
	Namespace string    `json:"namespace,omitempty"`
	Name      string    `json:"name"`
	UID       types.UID `json:"uid,omitempty"`
	Field     string    `json:"field,omitempty"` // "spec.containers{web}"
}

// Event is one thing that has happened, once or more often.
type Event struct {
	ID      int64     `json:"id"`
	Object  Object    `json:"object"`
	Warning bool      `json:"warning,omitempty"`
	Reason  string    `json:"reason"`
	Message string    `json:"message"`
	Count   int32     `json:"count"`
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
}

// key is what two events have in common that are the same.
type key struct {
	object          Object
	warning         bool
	reason, message string
}

func (e *Event) key() key { return key{e.Object, e.Warning, e.Reason, e.Message} }

func (e *Event) ofPod() bool { return e.Object.Kind == podKind }

// Bounds of a Recorder. Pods have a share of their own: a thousand of them that
// come and go do not push out what happened to the network.
const (
	mostOfPods   = 1500
	mostOfOthers = 500
	mostBytes    = 1024 // of a message
	lag          = 256  // that a watcher may be behind
	saveEvery    = 3 * time.Second
)

// Options are what a Recorder is made of.
type Options struct {
	Path string           // file that keeps the events across a restart; "": none
	Node string           // name of this host
	Now  func() time.Time // nil: the real one
	Log  *slog.Logger     // nil: none
}

// Recorder notes events. A nil Recorder notes none.
type Recorder struct {
	opts Options

	mu       sync.Mutex // guards what follows
	list     []*Event   // by Last
	known    map[key]*Event
	count    map[bool]int // of pods, and of all else
	id       int64        // the last
	watchers map[chan Event]bool
	timer    *time.Timer // of the next save; nil: all is saved
	closed   bool

	saving sync.Mutex // one save at a time
}

// Open reads what an earlier Recorder left. A file that cannot be read is forgotten.
func Open(o Options) *Recorder {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	r := &Recorder{opts: o, known: map[key]*Event{}, count: map[bool]int{}, watchers: map[chan Event]bool{}}
	if o.Path == "" {
		return r
	}
	if err := atomicfile.ReadJSON(o.Path, &r.list); err != nil && !errors.Is(err, fs.ErrNotExist) {
		o.Log.Warn("events of before are forgotten", "error", errors.Join(err, os.Remove(o.Path)))
		r.list = nil
	}
	r.list = slices.DeleteFunc(r.list, func(e *Event) bool { return e == nil })
	for _, e := range r.list {
		r.known[e.key()] = e
		r.count[e.ofPod()]++
		r.id = max(r.id, e.ID)
	}
	r.bound(true)
	r.bound(false)
	return r
}

// Close saves what is not saved, and ends all watches.
func (r *Recorder) Close() error {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	r.closed = true
	dirty := r.timer != nil
	if dirty {
		r.timer.Stop()
	}
	for ch := range r.watchers {
		close(ch)
	}
	r.watchers = nil
	r.mu.Unlock()
	if !dirty {
		return nil
	}
	return r.save()
}

// Node is this host as an object.
func (r *Recorder) Node() Object {
	if r == nil {
		return Object{}
	}
	return Object{Kind: "Node", Name: r.opts.Node, UID: types.UID(r.opts.Node)}
}

// Normal notes what goes as it should.
func (r *Recorder) Normal(o Object, reason, format string, args ...any) {
	r.note(o, false, reason, format, args)
}

// Warning notes what does not go as it should.
func (r *Recorder) Warning(o Object, reason, format string, args ...any) {
	r.note(o, true, reason, format, args)
}

func (r *Recorder) note(o Object, warning bool, reason, format string, args []any) {
	if r == nil {
		return
	}
	now := r.opts.Now()
	e := &Event{Object: o, Warning: warning, Reason: reason, Message: clip(fmt.Sprintf(format, args...)), First: now, Last: now, Count: 1}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	if old := r.known[e.key()]; old != nil {
		i := slices.Index(r.list, old)
		r.list = slices.Delete(r.list, i, i+1)
		old.Count, old.Last = old.Count+1, now
		e = old
	} else {
		r.id = max(now.UnixNano(), r.id+1)
		e.ID = r.id
		r.known[e.key()] = e
		r.count[e.ofPod()]++
	}
	r.list = append(r.list, e)
	r.bound(e.ofPod())
	r.tell(*e)
	if r.timer == nil && r.opts.Path != "" {
		r.timer = time.AfterFunc(saveEvery, func() {
			if err := r.save(); err != nil {
				r.opts.Log.Debug("keep events", "error", err)
			}
		})
	}
}

const podKind = "Pod"

// bound forgets the oldest events of pods, or of all else; r.mu is held.
func (r *Recorder) bound(pods bool) {
	most := mostOfOthers
	if pods {
		most = mostOfPods
	}
	for r.count[pods] > most {
		i := slices.IndexFunc(r.list, func(e *Event) bool { return e.ofPod() == pods })
		delete(r.known, r.list[i].key())
		r.list = slices.Delete(r.list, i, i+1)
		r.count[pods]--
	}
}

func clip(s string) string {
	if len(s) <= mostBytes {
		return s
	}
	return s[:mostBytes-len("…")] + "…"
}

// save writes all events to the disk.
func (r *Recorder) save() error {
	r.saving.Lock()
	defer r.saving.Unlock()
	r.mu.Lock()
	r.timer = nil
	data, err := json.Marshal(r.list)
	r.mu.Unlock()
	if err != nil {
		return fmt.Errorf("keep events: %w", err)
	}
	return atomicfile.Write(r.opts.Path, data, 0o600)
}

// List returns all events, oldest first.
func (r *Recorder) List() []Event {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.copies()
}

func (r *Recorder) copies() []Event {
	out := make([]Event, 0, len(r.list))
	for _, e := range r.list {
		out = append(out, *e)
	}
	return out
}

// Watch returns all events, and each that happens from then on. The channel is
// closed when the Recorder is, and when its reader is too slow. stop ends it.
func (r *Recorder) Watch() (past []Event, next <-chan Event, stop func()) {
	ch := make(chan Event, lag)
	if r == nil {
		close(ch)
		return nil, ch, func() {}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		close(ch)
		return r.copies(), ch, func() {}
	}
	r.watchers[ch] = true
	return r.copies(), ch, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.drop(ch)
	}
}

// drop ends a watch; r.mu is held.
func (r *Recorder) drop(ch chan Event) {
	if r.watchers[ch] {
		delete(r.watchers, ch)
		close(ch)
	}
}

// tell gives an event to who watches; r.mu is held.
func (r *Recorder) tell(e Event) {
	for ch := range r.watchers {
		select {
		case ch <- e:
		default:
			r.drop(ch)
		}
	}
}
