package probe

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// What a probe is for.
const (
	startup   = "startup"
	readiness = "readiness"
	liveness  = "liveness"
)

// Until the first success, a readiness probe over the network is tried again this
// soon, and then ever later up to its period: a server that needs 50 ms is not
// kept waiting for ten seconds. Such a failure has no effect but this.
const soonest = 50 * time.Millisecond

// worker is one probe of one container. All but check is guarded by Set.mu.
type worker struct {
	set    *Set
	entry  *entry
	kind   string
	probe  *corev1.Probe
	check  check
	ctx    context.Context
	cancel context.CancelFunc
	stop   func() // of the timer

	last bool // the last answer
	runs int  // how often in a row it came
	soon time.Duration
	ever bool // it has succeeded once
}

func (w *worker) period() time.Duration { return seconds(w.probe.PeriodSeconds) }

func seconds(n int32) time.Duration { return time.Duration(n) * time.Second }

// first is when to begin: after the initial delay and a little later, so that
// containers started at once do not answer at once for ever; after a restart of
// ours, spread over a whole period.
func (w *worker) first(known bool) time.Duration {
	spread := min(w.period()/10, 20*time.Millisecond)
	if known {
		spread = w.period()
		w.ever = w.entry.state.Ready
	}
	begin := w.entry.target.StartedAt.Add(seconds(w.probe.InitialDelaySeconds)).Sub(w.set.opts.Clock.Now())
	return max(begin, 0) + time.Duration(w.set.opts.Jitter(int64(spread)))
}

// schedule sets the timer; Set.mu is held.
func (w *worker) schedule(d time.Duration) {
	w.stop = w.set.opts.Clock.AfterFunc(d, func() {
		w.set.mu.Lock()
		if w.ctx.Err() != nil {
			w.set.mu.Unlock()
			return
		}
		w.set.wg.Add(1) // Close waits after it has cancelled ctx with mu held
		w.set.mu.Unlock()
		defer w.set.wg.Done()
		w.once()
	})
}

// once asks, judges and sets the next timer.
func (w *worker) once() {
	begun := w.set.opts.Clock.Now()
	ctx, cancel := context.WithTimeout(w.ctx, seconds(w.probe.TimeoutSeconds))
	a := w.check(ctx)
	cancel()
	w.set.mu.Lock()
	if w.ctx.Err() != nil {
		w.set.mu.Unlock()
		return
	}
	changed := a.known && w.judge(a)
	if w.ctx.Err() == nil { // judge may have ended it
		w.schedule(w.next(begun, a))
	}
	t := w.entry.target
	failed := a.known && !a.ok && !w.hasty() && w.set.opts.Failed != nil
	w.set.mu.Unlock()
	if failed {
		w.set.opts.Failed(t, w.kind, a.message)
	}
	if changed && w.set.opts.Changed != nil {
		w.set.opts.Changed(t)
	}
}

// hasty says whether checks come sooner than their period, and so mean nothing yet.
func (w *worker) hasty() bool { return w.soon > 0 && w.soon < w.period() && !w.ever }

// next keeps the period, whatever the check took.
func (w *worker) next(begun time.Time, a answer) time.Duration {
	d := w.period()
	if a.ok {
		w.ever = true
	}
	if w.kind == readiness && !w.ever && w.probe.Exec == nil {
		w.soon = max(2*w.soon, soonest)
		d = min(d, w.soon)
	}
	return max(d-w.set.opts.Clock.Now().Sub(begun), soonest)
}

// judge counts an answer, and says if the state has changed; Set.mu is held.
func (w *worker) judge(a answer) bool {
	if w.runs > 0 && w.last == a.ok {
		w.runs++
	} else {
		w.last, w.runs = a.ok, 1
	}
	e, was := w.entry, w.entry.state
	if !a.ok && !was.Ready {
		e.state.Message = a.message
	}
	if (a.ok && w.runs < int(w.probe.SuccessThreshold)) || (!a.ok && w.runs < int(w.probe.FailureThreshold)) {
		return false
	}
	switch {
	case w.kind == readiness:
		e.state.Ready = a.ok
	case !a.ok:
		e.state.Failed, e.state.Grace, e.state.Ready = w.kind, w.probe.TerminationGracePeriodSeconds, false
	case w.kind == startup:
		e.state.Started, e.state.Ready = true, e.target.Readiness == nil
		w.finish()
	}
	if e.state.Ready == was.Ready && e.state.Started == was.Started && e.state.Failed == was.Failed {
		return false
	}
	if e.state.Ready != was.Ready {
		e.state.Since = w.set.opts.Clock.Now()
	}
	if e.state.Message = a.message; a.ok {
		e.state.Message = ""
	}
	w.report(a)
	w.set.save(e.target, e)
	if e.state.Failed != "" {
		e.stop()
	}
	return true
}

// finish ends the startup probe and lets the others begin.
func (w *worker) finish() {
	w.cancel()
	for _, o := range w.entry.workers {
		if o != w {
			o.schedule(o.first(false))
		}
	}
}

// report logs a change.
func (w *worker) report(a answer) {
	log := w.set.opts.Log.With("container", w.entry.target.Name, "probe", w.kind)
	switch {
	case a.ok:
		log.Info("probe succeeds")
	case w.kind == readiness:
		log.Warn("probe fails; the pod gets no traffic", "error", a.message)
	default:
		log.Warn("probe fails; the container is restarted", "error", a.message)
	}
}
