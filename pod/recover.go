package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/pausa-run/pausa/runtime"
)

// retryEvery is how often removal that did not come to its end is tried again.
const retryEvery = 10 * time.Second

// Recover reads the records, compares them with the keeper's facts, finishes or
// undoes what a crash cut off, and begins to watch for exits. Records that cannot
// be read are set aside in RunDir/bad and named in the log. Call it once, before
// anything else; an error means that the keeper or the run folder is unusable.
func (m *Manager) Recover(ctx context.Context) error {
	exits, err := m.rt.Exits(m.ctx) // before the lists, so that no exit falls between
	if err != nil {
		return fmt.Errorf("watch for exits: %w", keeperErr(err))
	}
	if err := m.loadRecords(); err != nil {
		return err
	}
	if err := m.matchKeeper(ctx); err != nil {
		return err
	}
	m.dropLeftovers(ctx)
	m.bg.Go(func() { m.watchExits(exits) })
	m.bg.Go(m.retryRemovals)
	return nil
}

func (m *Manager) loadRecords() error {
	dirs, err := os.ReadDir(m.dir)
	if err != nil {
		return fmt.Errorf("read pod records: %w", err)
	}
	for _, d := range dirs {
		dir := filepath.Join(m.dir, d.Name())
		rec, ctrs, err := loadPod(dir)
		if rec.ID != d.Name() || rec.Version != recordVersion {
			m.setAside(dir, err)
			continue
		}
		if err != nil {
			m.log.Error("some container records of a pod cannot be read and are set aside", "pod", rec.ID, "error", err)
		}
		m.adopt(rec, ctrs)
	}
	return nil
}

func (m *Manager) setAside(dir string, cause error) {
	_ = m.unmountPod(filepath.Base(dir))
	bad, err := m.quarantine(dir)
	m.log.Error("a pod's record cannot be read; it is set aside and what the pod held is given back", "folder", bad, "cause", cause, "error", err)
}

// adopt puts a pod's records into memory, not to be shown yet.
func (m *Manager) adopt(rec podRecord, ctrs []containerRecord) {
	p := &sandbox{made: make(chan struct{}), ctrs: map[string]*container{}, rec: rec}
	close(p.made)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pods[rec.ID] = p
	if !rec.Removing {
		m.names[rec.Config.nameKey()] = rec.ID
	}
	for _, r := range ctrs {
		c := &container{pod: p, made: make(chan struct{}), rec: r}
		close(c.made)
		m.ctrs[r.ID], p.ctrs[r.ID] = c, c
		m.names[containerKey(r.PodID, &r.Config)] = r.ID
	}
}

// matchKeeper sets pids, exits and states to what the keeper knows, and removes
// from the keeper what no record speaks of.
func (m *Manager) matchKeeper(ctx context.Context) error {
	rt, err := m.runtime()
	if err != nil {
		return err
	}
	pods, err := rt.Pods(ctx)
	if err != nil {
		return fmt.Errorf("list the keeper's pods: %w", keeperErr(err))
	}
	ctrs, err := rt.Containers(ctx)
	if err != nil {
		return fmt.Errorf("list the keeper's containers: %w", keeperErr(err))
	}
	for _, id := range m.applyPods(pods) {
		m.log.Warn("the keeper holds a pod without a record; removing it", "pod", id)
		m.warn("remove pod", rt.RemovePod(ctx, id))
	}
	for _, id := range m.applyContainers(ctrs) {
		m.log.Warn("the keeper holds a container without a record; removing it", "container", id)
		m.warn("remove container", rt.RemoveContainer(ctx, id))
	}
	return nil
}

// applyPods returns the ids that no record knows.
func (m *Manager) applyPods(states []runtime.PodState) (unknown []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.showAll()
	alive := map[string]runtime.PodState{}
	for _, st := range states {
		alive[st.ID] = st
		if m.pods[st.ID] == nil {
			unknown = append(unknown, st.ID)
		}
	}
	for id, p := range m.pods {
		p.pid = 0
		if st, ok := alive[id]; ok && !st.Exited {
			p.pid = st.Pid
		}
	}
	return unknown
}

// applyContainers returns the ids that no record knows.
func (m *Manager) applyContainers(states []runtime.ContainerState) (unknown []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.showAll()
	known := map[string]bool{}
	for _, st := range states {
		c, ok := m.ctrs[st.ID]
		if !ok {
			unknown = append(unknown, st.ID)
			continue
		}
		known[st.ID] = true
		c.pid = st.Pid
		if c.rec.StartedAt.IsZero() && st.Status != runtime.Created {
			c.rec.StartedAt = st.StartedAt
		}
		if c.rec.Exit == nil && st.Exit != nil {
			c.rec.Exit, c.pid = st.Exit, 0
		}
	}
	for id, c := range m.ctrs {
		if c.rec.Exit == nil && !known[id] {
			c.rec.Exit = &runtime.Exit{ID: id, Code: 255, Unknown: true, FinishedAt: time.Now()}
			c.pid = 0
		}
	}
	return unknown
}

// dropLeftovers undoes what was half-made when the daemon ended, and what is on
// the host without a record. What cannot be undone is retried in the background.
func (m *Manager) dropLeftovers(ctx context.Context) {
	keep := map[string]bool{}
	for _, p := range m.sandboxes() {
		m.mu.RLock()
		gone := !p.rec.Made || p.rec.Removing || p.rec.BootID != m.bootID
		id, stopped := p.rec.ID, !p.rec.StoppedAt.IsZero()
		m.mu.RUnlock()
		if gone {
			m.warn("remove a half-made pod", m.Remove(ctx, id))
			continue
		}
		keep[id] = !stopped
		for _, c := range m.containersOf(p) {
			if !c.rec.Made {
				m.warn("remove a half-made container", m.removeContainer(ctx, c))
				continue
			}
			m.warn("record a container", m.saveContainer(c))
		}
	}
	m.warn("collect networks without a pod", m.opts.Network.GC(ctx, keep))
	mounted, err := m.opts.Images.Mounted()
	m.warn("list mounted images", err)
	for _, id := range mounted {
		if _, err := m.Container(volumeOwner(id)); errors.Is(err, ErrNotFound) {
			m.warn("unmount an image without a container", m.opts.Images.Unmount(ctx, id))
		}
	}
}

func (m *Manager) sandboxes() []*sandbox {
	m.mu.RLock()
	defer m.mu.RUnlock()
	out := make([]*sandbox, 0, len(m.pods))
	for _, p := range m.pods {
		out = append(out, p)
	}
	return out
}

func (m *Manager) warn(what string, err error) {
	if err != nil && m.ctx.Err() == nil {
		m.log.Warn(what, "error", err)
	}
}

// watchExits records exits as the keeper tells them. When the keeper goes, it
// asks for a new one and takes over what that one finds.
func (m *Manager) watchExits(exits <-chan runtime.Exit) {
	for m.ctx.Err() == nil {
		for exit := range exits {
			m.bg.Go(func() { m.exited(exit) }) // one start under way must not hold up the others' exits
		}
		if m.ctx.Err() != nil {
			return
		}
		m.set(func() { m.rtErr = runtime.ErrKeeperGone })
		m.log.Error("the keeper is gone; containers go on, a new keeper is started")
		exits = m.relaunch()
	}
}

func (m *Manager) exited(exit runtime.Exit) {
	if c, err := m.container(exit.ID); err == nil {
		c.op.Lock()
		defer c.op.Unlock()
		m.noteExit(c, exit)
		return
	}
	p, err := m.sandbox(exit.ID)
	if err != nil {
		return
	}
	var was bool
	m.setPod(p, func() { was, p.pid = p.ready(), 0 })
	if was { // pause died: the pod is no longer ready, its owner makes a new one
		m.log.Warn("a pod's pause process ended", "pod", exit.ID, "code", exit.Code)
		m.tell(EventStopped, p, "")
	}
}

// relaunch returns the exits of a new keeper, once there is one.
func (m *Manager) relaunch() <-chan runtime.Exit {
	for wait := 100 * time.Millisecond; m.ctx.Err() == nil; wait = min(2*wait, 5*time.Second) {
		exits, err := m.connect()
		if err == nil {
			return exits
		}
		m.set(func() { m.rtErr = err })
		m.log.Error("start a new keeper", "error", err)
		select {
		case <-time.After(wait):
		case <-m.ctx.Done():
		}
	}
	closed := make(chan runtime.Exit)
	close(closed)
	return closed
}

func (m *Manager) connect() (<-chan runtime.Exit, error) {
	if m.opts.Relaunch == nil {
		return nil, runtime.ErrKeeperGone
	}
	ctx, cancel := context.WithTimeout(m.ctx, undoTime)
	defer cancel()
	rt, err := m.opts.Relaunch(ctx)
	if err != nil {
		return nil, err
	}
	exits, err := rt.Exits(m.ctx)
	if err != nil {
		return nil, err
	}
	m.set(func() { m.rt, m.rtErr = rt, nil })
	before := m.snapshotStates()
	if err := m.matchKeeper(ctx); err != nil {
		return nil, err
	}
	m.tellChanges(before)
	m.log.Info("a new keeper has taken over")
	return exits, nil
}

// snapshotStates is which pods are ready and which containers have not exited.
func (m *Manager) snapshotStates() map[string]bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	out := map[string]bool{}
	for id, p := range m.pods {
		out[id] = p.ready()
	}
	for id, c := range m.ctrs {
		out[id] = c.rec.Exit == nil
	}
	return out
}

// tellChanges sends the events of what ended while there was no keeper.
func (m *Manager) tellChanges(before map[string]bool) {
	for id, was := range before {
		if !was {
			continue
		}
		if c, err := m.container(id); err == nil {
			if v, err := m.Container(id); err == nil && v.Exit != nil {
				m.warn("record a container", m.saveContainer(c))
				m.tell(EventStopped, c.pod, id)
			}
		} else if p, err := m.sandbox(id); err == nil {
			if v, err := m.Pod(id); err == nil && !v.Ready {
				m.tell(EventStopped, p, "")
			}
		}
	}
}

// retryRemovals tries again, at intervals, to remove pods whose removal failed.
func (m *Manager) retryRemovals() {
	t := time.NewTicker(retryEvery)
	defer t.Stop()
	for {
		select {
		case <-m.ctx.Done():
			return
		case <-t.C:
		}
		for _, p := range m.sandboxes() {
			m.mu.RLock()
			again := p.rec.Problem != ""
			m.mu.RUnlock()
			if again && p.op.TryLock() { // a Remove under way does it itself
				_ = m.removeLocked(m.ctx, p) // logged there
				p.op.Unlock()
			}
		}
	}
}
