package images

import (
	"context"
	"sync"
)

// flights makes callers who ask for the same thing at once share one answer.
// The work goes on while at least one of them waits.
type flights struct {
	mu   sync.Mutex
	all  map[string]*flight
	work sync.WaitGroup
}

type flight struct {
	waiting int
	cancel  context.CancelFunc
	done    chan struct{}
	image   Image
	err     error

	mu       sync.Mutex
	watchers map[*func(Progress)]func(Progress)
}

func newFlights() *flights { return &flights{all: map[string]*flight{}} }

// tell passes progress on to everybody who waits.
func (f *flight) tell(p Progress) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, w := range f.watchers {
		w(p)
	}
}

// watch calls w for each step until stop.
func (f *flight) watch(w func(Progress)) (stop func()) {
	if w == nil {
		return func() {}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.watchers[&w] = w
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.watchers, &w)
	}
}

// do runs work under key, or joins the run that is under way.
func (fs *flights) do(ctx context.Context, key string, watch func(Progress), work func(context.Context, *flight) (Image, error)) (Image, error) {
	fs.mu.Lock()
	f := fs.all[key]
	if f == nil {
		runCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		f = &flight{cancel: cancel, done: make(chan struct{}), watchers: map[*func(Progress)]func(Progress){}}
		fs.all[key] = f
		fs.work.Go(func() {
			f.image, f.err = work(runCtx, f)
			cancel()
			fs.land(key, f)
			close(f.done)
		})
	}
	f.waiting++
	fs.mu.Unlock()
	defer f.watch(watch)()
	select {
	case <-f.done:
		return f.image, f.err
	case <-ctx.Done():
		fs.leave(key, f)
		return Image{}, ctx.Err()
	}
}

// leave stops the work when nobody waits any more; the next caller begins anew.
func (fs *flights) leave(key string, f *flight) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if f.waiting--; f.waiting > 0 {
		return
	}
	f.cancel()
	if fs.all[key] == f {
		delete(fs.all, key)
	}
}

func (fs *flights) land(key string, f *flight) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.all[key] == f {
		delete(fs.all, key)
	}
}

// close stops all work and waits for its end.
func (fs *flights) close() {
	fs.mu.Lock()
	for _, f := range fs.all {
		f.cancel()
	}
	fs.mu.Unlock()
	fs.work.Wait()
}
