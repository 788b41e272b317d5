package pod

import (
	"cmp"
	"slices"
	"time"
)

// Snapshot is every pod and container at one moment, oldest first. It and what it
// points at never change, and are for reading alone: who changes a pod puts another
// one in its place. So a list takes no lock, whatever is under way.
type Snapshot struct {
	Pods       []*Pod
	Containers []*Container
}

// Snapshot returns the pods and containers as they are now.
func (m *Manager) Snapshot() Snapshot { return *m.shown.Load() }

// set changes memory under the lock: what no Pod or Container shows.
func (m *Manager) set(change func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change()
}

// setPod changes a pod under the lock, and shows it.
func (m *Manager) setPod(p *sandbox, change func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change()
	m.showPod(p)
}

// setContainer changes a container under the lock, and shows it.
func (m *Manager) setContainer(c *container, change func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change()
	m.showContainer(c)
}

// showPod puts a pod into the snapshot as it is now, or takes it out; Manager.mu is held.
func (m *Manager) showPod(p *sandbox) {
	s := *m.shown.Load()
	var v *Pod
	if m.pods[p.rec.ID] == p {
		v = p.view()
		p.shown = v
	}
	s.Pods = replaced(s.Pods, v, func(o *Pod) int { return inOrder(o.CreatedAt, p.rec.CreatedAt, o.ID, p.rec.ID) })
	m.shown.Store(&s)
}

// showContainer puts a container into the snapshot as it is now, or takes it out; Manager.mu is held.
func (m *Manager) showContainer(c *container) {
	s := *m.shown.Load()
	var v *Container
	if m.ctrs[c.rec.ID] == c && c.rec.Made {
		v = c.view()
	}
	s.Containers = replaced(s.Containers, v, func(o *Container) int { return inOrder(o.CreatedAt, c.rec.CreatedAt, o.ID, c.rec.ID) })
	m.shown.Store(&s)
}

// replaced is a copy of all with v at its place; at compares an element with v's key. Without v the element goes.
func replaced[T any](all []*T, v *T, at func(*T) int) []*T {
	i, there := slices.BinarySearchFunc(all, struct{}{}, func(o *T, _ struct{}) int { return at(o) })
	end := i
	if there {
		end++
	}
	if v == nil {
		return slices.Concat(all[:i], all[end:])
	}
	return slices.Concat(all[:i], []*T{v}, all[end:])
}

// inOrder sorts by age, then id. Times of records that were read have the wall clock
// alone: so it alone is compared, as a mixture would be in no order when the clock was set.
func inOrder(a, b time.Time, aID, bID string) int {
	return cmp.Or(cmp.Compare(a.UnixNano(), b.UnixNano()), cmp.Compare(aID, bID))
}

// showAll makes the whole snapshot anew, after many changes; Manager.mu is held.
func (m *Manager) showAll() {
	s := &Snapshot{}
	for _, p := range m.pods {
		p.shown = p.view()
		s.Pods = append(s.Pods, p.shown)
	}
	for _, c := range m.ctrs {
		if c.rec.Made {
			s.Containers = append(s.Containers, c.view())
		}
	}
	slices.SortFunc(s.Pods, func(a, b *Pod) int { return inOrder(a.CreatedAt, b.CreatedAt, a.ID, b.ID) })
	slices.SortFunc(s.Containers, func(a, b *Container) int { return inOrder(a.CreatedAt, b.CreatedAt, a.ID, b.ID) })
	m.shown.Store(s)
}

// Pods returns a copy of every pod, oldest first.
func (m *Manager) Pods() []Pod { return values(m.Snapshot().Pods) }

// Containers returns a copy of every container, oldest first.
func (m *Manager) Containers() []Container { return values(m.Snapshot().Containers) }

func values[T any](all []*T) []T {
	out := make([]T, len(all))
	for i, v := range all {
		out[i] = *v
	}
	return out
}

// ContainersOf returns the containers of one pod, oldest first. They never change, and are for reading alone.
func (m *Manager) ContainersOf(podID string) []*Container {
	m.mu.RLock()
	defer m.mu.RUnlock()
	p := m.pods[podID]
	if p == nil {
		return nil
	}
	var out []*Container
	for _, c := range p.ctrs {
		if c.rec.Made {
			out = append(out, c.view())
		}
	}
	slices.SortFunc(out, func(a, b *Container) int { return inOrder(a.CreatedAt, b.CreatedAt, a.ID, b.ID) })
	return out
}

// view copies a pod; Manager.mu is held.
func (p *sandbox) view() *Pod {
	r := &p.rec
	return &Pod{
		ID: r.ID, Config: r.Config, CreatedAt: r.CreatedAt, Ready: p.ready(), Pid: p.pid,
		IPs: r.Net.IPs, NetNS: r.Net.NetNS, StoppedAt: r.StoppedAt, Problem: r.Problem,
	}
}

// view copies a container; Manager.mu is held.
func (c *container) view() *Container {
	r := &c.rec
	return &Container{
		ID: r.ID, PodID: r.PodID, Declared: c.pod.rec.Config.Declared, Config: r.Config, ImageID: r.ImageID, Status: r.status(), Pid: c.pid,
		CreatedAt: r.CreatedAt, StartedAt: r.StartedAt, Exit: r.Exit, LogPath: r.LogPath,
		UID: r.User.UID, GID: r.User.GID, Groups: r.User.AdditionalGIDs, StopSignal: r.StopSignal,
	}
}
