package probe

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// clock moves only when told.
type clock struct {
	mu     sync.Mutex
	now    time.Time
	timers map[*timer]bool
}

type timer struct {
	at time.Time
	f  func()
}

func newClock() *clock {
	return &clock{now: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC), timers: map[*timer]bool{}}
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) AfterFunc(d time.Duration, f func()) func() {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := &timer{c.now.Add(d), f}
	c.timers[t] = true
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.timers, t)
	}
}

// advance runs what falls due, in order and one after the other, and returns how much that was.
func (c *clock) advance(d time.Duration) (ran int) {
	c.mu.Lock()
	end := c.now.Add(d)
	for {
		var first *timer
		for t := range c.timers {
			if !t.at.After(end) && (first == nil || t.at.Before(first.at)) {
				first = t
			}
		}
		if first == nil {
			c.now = end
			c.mu.Unlock()
			return ran
		}
		delete(c.timers, first)
		if first.at.After(c.now) {
			c.now = first.at
		}
		c.mu.Unlock()
		first.f()
		ran++
		c.mu.Lock()
	}
}

func (c *clock) pending() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.timers)
}

// direct reaches everything on this host; a command's outcome is set by the test.
type direct struct {
	mu    sync.Mutex
	asked []string // commands
	code  int
	err   error
	codes map[string]int
}

func (d *direct) Dial(ctx context.Context, _ string, addr netip.AddrPort) (net.Conn, error) {
	var n net.Dialer
	return n.DialContext(ctx, "tcp", addr.String())
}

func (d *direct) ExecSync(_ context.Context, _ string, args []string, _ time.Duration) ([]byte, []byte, int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked = append(d.asked, args[0])
	if code, ok := d.codes[args[0]]; ok {
		return nil, nil, code, nil
	}
	return nil, []byte("why\nmore"), d.code, d.err
}

func (d *direct) set(name string, code int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.codes == nil {
		d.codes = map[string]int{}
	}
	d.codes[name] = code
}

func (d *direct) count(name string) (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, a := range d.asked {
		if a == name {
			n++
		}
	}
	return n
}

// command is an exec probe with Kubernetes' defaults.
func command(name string, change ...func(*corev1.Probe)) *corev1.Probe {
	p := &corev1.Probe{TimeoutSeconds: 1, PeriodSeconds: 10, SuccessThreshold: 1, FailureThreshold: 3}
	p.Exec = &corev1.ExecAction{Command: []string{name}}
	for _, f := range change {
		f(p)
	}
	return p
}

// world is a Set with a clock that the test moves.
type world struct {
	*Set
	t       *testing.T
	clock   *clock
	access  *direct
	changes int
}

func newWorld(t *testing.T, dir string) *world {
	w := &world{t: t, clock: newClock(), access: &direct{err: errors.New("nothing is set")}}
	w.reopen(dir)
	return w
}

func (w *world) reopen(dir string) {
	w.t.Helper()
	s, err := Open(Options{
		Access: w.access, Clock: w.clock, Dir: dir, Changed: func(Target) { w.changes++ },
		Jitter: func(int64) int64 { return 0 },
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.Set = s
	w.t.Cleanup(s.Close)
}

func (w *world) want(what string, started, ready bool, failed string) {
	w.t.Helper()
	st, ok := w.State("c")
	if !ok || st.Started != started || st.Ready != ready || st.Failed != failed {
		w.t.Errorf("%s: %+v (%v), want started %v, ready %v, failed %q", what, st, ok, started, ready, failed)
	}
}
