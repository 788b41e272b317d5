package reconcile

import (
	"context"
	"sync"
	"time"

	"github.com/pausa-run/pausa/pod/manifest"
)

// queue runs a function for keys: each key in at most one goroutine at a time. A
// key added while it is being worked on is worked on once more. There is no limit
// on keys under way: most wait for a container's grace period.
type queue struct {
	clock Clock
	do    func(ctx context.Context, key manifest.Ref) (again time.Duration)

	mu   sync.Mutex // guards what follows
	ctx  context.Context
	keys map[manifest.Ref]*job
	wg   sync.WaitGroup
}

type job struct {
	running bool
	again   bool
	cancel  context.CancelFunc // of the run under way
	stop    func()             // of the timer
}

func newQueue(clock Clock, do func(context.Context, manifest.Ref) time.Duration) *queue {
	return &queue{clock: clock, do: do, keys: map[manifest.Ref]*job{}}
}

// start lets work begin; what was added before is forgotten.
func (q *queue) start(ctx context.Context) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ctx = ctx
}

// wait returns when nothing is under way; the context of start must have ended.
func (q *queue) wait() {
	q.mu.Lock()
	for _, j := range q.keys {
		if j.stop != nil {
			j.stop()
		}
	}
	q.mu.Unlock()
	q.wg.Wait()
}

// add makes the key be worked on soon.
func (q *queue) add(key manifest.Ref) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ctx == nil || q.ctx.Err() != nil {
		return
	}
	j := q.keys[key]
	if j == nil {
		j = &job{}
		q.keys[key] = j
	}
	if j.running {
		j.again = true
		return
	}
	q.launch(key, j)
}

// interrupt is add that also cancels the run under way: its request has changed.
func (q *queue) interrupt(key manifest.Ref) {
	q.mu.Lock()
	if j := q.keys[key]; j != nil && j.cancel != nil {
		j.cancel()
	}
	q.mu.Unlock()
	q.add(key)
}

// launch starts a run; q.mu is held.
func (q *queue) launch(key manifest.Ref, j *job) {
	if j.stop != nil {
		j.stop()
		j.stop = nil
	}
	ctx, cancel := context.WithCancel(q.ctx)
	j.running, j.again, j.cancel = true, false, cancel
	q.wg.Go(func() {
		again := q.do(ctx, key)
		cancel()
		q.finish(key, j, again)
	})
}

func (q *queue) finish(key manifest.Ref, j *job, again time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	j.running, j.cancel = false, nil
	switch {
	case q.ctx.Err() != nil:
		delete(q.keys, key)
	case j.again:
		q.launch(key, j)
	case again > 0:
		j.stop = q.clock.AfterFunc(again, func() { q.add(key) })
	default:
		delete(q.keys, key)
	}
}
