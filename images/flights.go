package images

import (
	"context"
	"sync"
)

// flights makes callers who ask for the same thing at once share one answer.
// It goes on while at least one of them waits.
type flights struct {
	mu  sync.Mutex
	all map[string]*flight
}

type flight struct {
	waiting  int
	cancel   context.CancelFunc
	done     chan struct{}
	image    Image
	err      error
	mu       sync.Mutex
	watchers []func(Progress)
}

func newFlights() *flights { return &flights{all: map[string]*flight{}} }

// tell passes progress on to everybody who asked.
func (f *flight) tell(p Progress) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, w := range f.watchers {
		w(p)
	}
}

func (f *flight) watch(w func(Progress)) {
	if w == nil {
		return
	}
	f.mu.Lock()
	f.watchers = append(f.watchers, w)
	f.mu.Unlock()
}

// do runs work under key, or joins the run that is under way.
func (fs *flights) do(ctx context.Context, key string, watch func(Progress), work func(context.Context, *flight) (Image, error)) (Image, error) {
	fs.mu.Lock()
	f := fs.all[key]
	if f == nil {
		runCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		f = &flight{cancel: cancel, done: make(chan struct{})}
		fs.all[key] = f
		go func() {
			f.image, f.err = work(runCtx, f)
			cancel()
			fs.mu.Lock()
			if fs.all[key] == f {
				delete(fs.all, key)
			}
			fs.mu.Unlock()
			close(f.done)
		}()
	}
	f.waiting++
	f.watch(watch)
	fs.mu.Unlock()
	select {
	case <-f.done:
		return f.image, f.err
	case <-ctx.Done():
		fs.mu.Lock()
		if f.waiting--; f.waiting == 0 {
			f.cancel()
			if fs.all[key] == f {
				delete(fs.all, key) // the next caller starts anew
			}
		}
		fs.mu.Unlock()
		return Image{}, ctx.Err()
	}
}
