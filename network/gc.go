package network

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sync/errgroup"
)

const (
	// gcGrace protects attempts that are younger: their pod may be newer than the caller's list.
	gcGrace = time.Minute
	// gcTimeout bounds the plugins' GC, during which no pod can be attached.
	gcTimeout = 30 * time.Second
)

// Status is nil when pods can be attached: there is a configuration, its plugins
// are there and, from version 1.1.0 on, say so themselves. Errors wrap ErrNotReady.
func (m *Manager) Status(ctx context.Context) error {
	list, err := m.confList()
	if err != nil {
		return err
	}
	for _, p := range list.Plugins {
		if _, err := m.exec.FindInPath(p.Network.Type, m.opts.BinDirs); err != nil {
			return fmt.Errorf("%w: network %s: find plugin %s: %w", ErrNotReady, list.Name, p.Network.Type, err)
		}
	}
	if err := m.cni.GetStatusNetworkList(ctx, list); err != nil {
		return fmt.Errorf("%w: network %s: %w", ErrNotReady, list.Name, err)
	}
	return nil
}

// Check is nil when the pod's attachment is still as its plugins made it. Lists
// before version 0.4.0 cannot say; then only the record counts.
func (m *Manager) Check(ctx context.Context, id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	defer m.lock(id)()
	a, err := m.loadAttempt(id)
	if err != nil {
		return fmt.Errorf("check pod %s: %w", id, err)
	}
	if a == nil || a.Result == nil {
		return fmt.Errorf("check pod %s: it is not attached", id)
	}
	list, err := libcni.NetworkConfFromBytes(a.Conf)
	if err != nil {
		return fmt.Errorf("check pod %s: read recorded network: %w", id, err)
	}
	if !isNamespace(m.netns(id)) {
		return fmt.Errorf("check pod %s: its network namespace is not pinned any more", id)
	}
	if ok, err := version.GreaterThanOrEqualTo(list.CNIVersion, "0.4.0"); err != nil || !ok {
		return nil //nolint:nilerr // a version that cannot be read is an old one
	}
	rt, err := m.runtimeConf(a.Pod, m.netns(id))
	if err != nil {
		return err
	}
	if err := m.cni.CheckNetworkList(ctx, list, rt); err != nil {
		return fmt.Errorf("check pod %s: %w", id, err)
	}
	return nil
}

// GC detaches every attempt and pin whose id is not kept, then tells the plugins
// which attachments are valid. Attempts of this process that did not fail are left
// alone for a minute: their pod may be newer than keep. All of it is done, whatever fails;
// the error says what.
func (m *Manager) GC(ctx context.Context, keep map[string]bool) error {
	attempts, attemptsErr := m.attempts()
	recorded := map[string]bool{}
	var stale []string
	for _, a := range attempts {
		recorded[a.Pod.ID] = true
		if !keep[a.Pod.ID] && m.collectable(a) {
			stale = append(stale, a.Pod.ID)
		}
	}
	pins, pinsErr := m.pins()
	for _, id := range pins {
		if !keep[id] && !recorded[id] && m.oldPin(id) {
			stale = append(stale, id)
		}
	}
	return errors.Join(attemptsErr, pinsErr, m.detachAll(ctx, stale), m.gcPlugins(ctx))
}

// detachAll detaches several at a time: one DEL may take a minute while its plugin's agent is down.
func (m *Manager) detachAll(ctx context.Context, ids []string) error {
	errs := make([]error, len(ids))
	var g errgroup.Group
	g.SetLimit(8)
	for i, id := range ids {
		g.Go(func() error {
			errs[i] = m.Detach(ctx, id)
			return nil // the others go on
		})
	}
	return errors.Join(g.Wait(), errors.Join(errs...))
}

func (m *Manager) collectable(a *attempt) bool {
	return a.Problem != "" || a.Created.Before(m.started) || time.Since(a.Created) > gcGrace
}

// gcPlugins calls the GC verb of each network in use. While a pod is being
// attached it is left for the next time.
func (m *Manager) gcPlugins(ctx context.Context) error {
	if !m.attaching.TryLock() {
		return nil
	}
	defer m.attaching.Unlock()
	ctx, cancel := context.WithTimeout(ctx, gcTimeout)
	defer cancel()
	attempts, err := m.attempts()
	if err != nil {
		return err
	}
	lists := map[string]*libcni.NetworkConfigList{}
	valid := map[string][]types.GCAttachment{}
	if list, err := m.confList(); err == nil {
		lists[list.Name] = list
	}
	for _, a := range attempts {
		valid[a.Network] = append(valid[a.Network], types.GCAttachment{ContainerID: a.Pod.ID, IfName: ifName})
		if lists[a.Network] == nil {
			if list, err := libcni.NetworkConfFromBytes(a.Conf); err == nil {
				lists[a.Network] = list
			}
		}
	}
	var errs []error
	for name, list := range lists {
		if err := m.cni.GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: valid[name]}); err != nil {
			errs = append(errs, fmt.Errorf("collect garbage of network %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}
