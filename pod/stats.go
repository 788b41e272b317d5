package pod

import (
	"context"

	"github.com/pausa-run/pausa/runtime"
)

// Stats reads the cgroups of the running containers named, or of all.
func (m *Manager) Stats(ctx context.Context, ids ...string) ([]runtime.Stats, error) {
	rt, err := m.runtime()
	if err != nil {
		return nil, err
	}
	st, err := rt.Stats(ctx, ids...)
	return st, keeperErr(err)
}

// DetailedStats is Stats with Details, for metrics.
func (m *Manager) DetailedStats(ctx context.Context, ids ...string) ([]runtime.Stats, error) {
	rt, err := m.runtime()
	if err != nil {
		return nil, err
	}
	st, err := rt.DetailedStats(ctx, ids...)
	return st, keeperErr(err)
}

// PodStats reads the cgroups that pods have to themselves, by the ids of the pods. Other
// than a sum over containers it knows what those did that have ended, and what none of
// them is charged for. A group that several pods' makers named is no one pod's, and left out.
func (m *Manager) PodStats(ctx context.Context, ids ...string) (map[string]runtime.Stats, error) {
	rt, err := m.runtime()
	if err != nil {
		return nil, err
	}
	pods := m.ownGroups(ids)
	groups := make([]string, 0, len(pods))
	for g := range pods {
		groups = append(groups, g)
	}
	read, err := rt.GroupStats(ctx, groups...)
	if err != nil {
		return nil, keeperErr(err)
	}
	out := make(map[string]runtime.Stats, len(read))
	for _, st := range read {
		id := pods[st.ID]
		st.ID = id
		out[id] = st
	}
	return out, nil
}

// ownGroups finds the pods of these ids by their cgroups, as far as no other pod is in the same.
func (m *Manager) ownGroups(ids []string) map[string]string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	holders := map[string]int{}
	for _, p := range m.pods {
		holders[m.podGroup(p)]++
	}
	out := map[string]string{}
	for _, id := range ids {
		if p := m.pods[id]; p != nil && holders[m.podGroup(p)] == 1 {
			out[groupPath(m.podGroup(p))] = id
		}
	}
	return out
}
