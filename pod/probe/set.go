// Package probe asks containers whether they have started, live and are ready,
// as Kubernetes' probes do: over http, tcp and grpc from inside the pod's network
// namespace, with no process and no program of the image, or by a command in the
// container. It also runs lifecycle hooks, which speak the same.
package probe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/pausa-run/pausa/internal/atomicfile"
)

// Access reaches into pods.
type Access interface {
	Dial(ctx context.Context, podID string, addr netip.AddrPort) (net.Conn, error)
	ExecSync(ctx context.Context, containerID string, args []string, timeout time.Duration) (stdout, stderr []byte, code int, err error)
}

// Clock is time, for tests.
type Clock interface {
	Now() time.Time
	// AfterFunc calls f once in its own goroutine; stop prevents it if it has not begun.
	AfterFunc(d time.Duration, f func()) (stop func())
}

// Target is a running container.
type Target struct {
	PodID, ContainerID string
	Name               string // for the log: namespace/pod/container
	Host               string // the pod's address
	Ports              []corev1.ContainerPort
	StartedAt          time.Time

	Startup, Readiness, Liveness *corev1.Probe // nil: none; with defaults
}

// State is what is known of a container.
type State struct {
	Started bool      `json:"started"` // the startup probe has succeeded, or there is none
	Ready   bool      `json:"ready"`   // started, and the readiness probe says so or there is none
	Since   time.Time `json:"since"`   // of Ready
	// Failed is the probe that asks for the container's end: "" while it is well.
	Failed string `json:"failed,omitempty"`
	// Grace is the failed probe's own grace period in seconds, if it has one.
	Grace   *int64 `json:"grace,omitempty"`
	Message string `json:"message,omitempty"` // why it is not ready, or has failed
}

// Options are the parts of a Set. Access and Clock are required.
type Options struct {
	Access  Access
	Clock   Clock
	Dir     string                               // states are kept here across restarts; "": nowhere
	Changed func(t Target)                       // a container's State has changed
	Failed  func(t Target, kind, message string) // a check has failed; nil: nobody cares
	Log     *slog.Logger                         // nil: none
	Jitter  func(n int64) int64                  // a number below n; nil: random
}

// Set probes containers until they are forgotten. Between two checks a probe
// costs a timer and no goroutine.
type Set struct {
	opts   Options
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex // guards what follows
	states map[string]*entry
}

// entry is one container, by id.
type entry struct {
	state   State
	target  Target
	workers []*worker // nil: not probed now
}

// Open reads the states that a Set before this one left.
func Open(o Options) (*Set, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Jitter == nil {
		o.Jitter = rand.Int64N
	}
	s := &Set{opts: o, states: map[string]*entry{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if o.Dir == "" {
		return s, nil
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("keep states of probes: %w", err)
	}
	files, err := os.ReadDir(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("keep states of probes: %w", err)
	}
	for _, f := range files {
		e := &entry{}
		data, err := os.ReadFile(filepath.Join(o.Dir, f.Name()))
		if err == nil {
			err = json.Unmarshal(data, &e.state)
		}
		if err != nil || strings.HasPrefix(f.Name(), ".") {
			o.Log.Warn("the state of a probe is lost; it is found out anew", "container", f.Name(), "error", err)
			_ = os.Remove(filepath.Join(o.Dir, f.Name()))
			continue
		}
		s.states[f.Name()] = e
	}
	return s, nil
}

// Close ends all checks and waits for them. States stay on disk.
func (s *Set) Close() {
	s.cancel()
	s.mu.Lock()
	for _, e := range s.states {
		e.stop()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// State of a container; ok is false if it is not watched.
func (s *Set) State(containerID string) (state State, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.states[containerID]
	if e == nil {
		return State{}, false
	}
	return e.state, true
}

// Watch begins to probe a container, unless it is watched or has failed already.
func (s *Set) Watch(t Target) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.states[t.ContainerID]
	if s.ctx.Err() != nil || (e != nil && (e.workers != nil || e.state.Failed != "")) {
		return
	}
	known := e != nil
	if !known {
		e = &entry{state: State{Started: t.Startup == nil, Ready: t.Startup == nil && t.Readiness == nil, Since: s.opts.Clock.Now()}}
		if t.Readiness != nil || t.Startup != nil {
			e.state.Message = "not probed yet"
		}
		s.states[t.ContainerID] = e
		s.save(t, e)
	}
	e.target = t
	for _, w := range []*worker{{kind: startup, probe: t.Startup}, {kind: readiness, probe: t.Readiness}, {kind: liveness, probe: t.Liveness}} {
		if w.probe == nil || (w.kind == startup && e.state.Started) {
			continue
		}
		w.set, w.entry, w.check = s, e, newCheck(s.opts.Access, t, w.probe)
		w.ctx, w.cancel = context.WithCancel(s.ctx)
		e.workers = append(e.workers, w)
		if e.state.Started || w.kind == startup {
			w.schedule(w.first(known))
		}
	}
}

// Stop ends the probing of a container; its State stays.
func (s *Set) Stop(containerID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.states[containerID]; e != nil {
		e.stop()
	}
}

// Forget drops all that is known of a container.
func (s *Set) Forget(containerID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget(containerID)
}

// Retain forgets all containers but those to keep.
func (s *Set) Retain(keep func(containerID string) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.states {
		if !keep(id) {
			s.forget(id)
		}
	}
}

// forget does it; Set.mu is held.
func (s *Set) forget(id string) {
	e := s.states[id]
	if e == nil {
		return
	}
	e.stop()
	delete(s.states, id)
	if s.opts.Dir == "" {
		return
	}
	if err := os.Remove(filepath.Join(s.opts.Dir, id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.opts.Log.Warn("forget the state of a probe", "container", id, "error", err)
	}
}

// stop ends the workers; Set.mu is held. Checks under way find out by themselves.
func (e *entry) stop() {
	for _, w := range e.workers {
		w.cancel()
		if w.stop != nil {
			w.stop()
		}
	}
	e.workers = nil
}

// save keeps a state on disk; Set.mu is held.
func (s *Set) save(t Target, e *entry) {
	if s.opts.Dir == "" {
		return
	}
	data, err := json.Marshal(e.state)
	if err == nil {
		err = atomicfile.Write(filepath.Join(s.opts.Dir, t.ContainerID), data, 0o600)
	}
	if err != nil {
		s.opts.Log.Warn("keep the state of a probe", "container", t.Name, "error", err)
	}
}
