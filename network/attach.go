package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// undoTimeout is what a failed ADD's DEL gets, whatever is left of the caller's time.
const undoTimeout = time.Minute

// Attach gives the pod, whose namespace has been pinned, its addresses. An attempt
// is recorded first; if ADD fails, DEL has been called when Attach returns, and if
// that failed too the attempt stays for Detach and GC. A nil error means that the
// pod is attached, now or from an earlier call.
func (m *Manager) Attach(ctx context.Context, p Pod) (Result, error) {
	if err := p.check(); err != nil {
		return Result{}, err
	}
	m.attaching.RLock()
	defer m.attaching.RUnlock()
	defer m.lock(p.ID)()
	earlier, err := m.loadAttempt(p.ID)
	if err != nil {
		return Result{}, err
	}
	if earlier != nil && earlier.Result != nil && earlier.Problem == "" {
		return *earlier.Result, nil
	}
	if earlier != nil { // a crash between the record and the end of ADD, or a failed DEL
		if err := m.undo(ctx, earlier); err != nil {
			return Result{}, fmt.Errorf("attach pod %s: clean up after an earlier attempt: %w", p.ID, err)
		}
	}
	list, err := m.networkFor(p)
	if err == nil {
		err = m.able(list, p)
	}
	if err != nil {
		return Result{}, fmt.Errorf("attach pod %s: %w", p.ID, err)
	}
	a := &attempt{
		Version: attemptVersion, Boot: m.boot, Created: time.Now(),
		Pod: p, Network: list.Name, Conf: slices.Clone(list.Bytes),
	}
	if err := m.tryAdd(ctx, a, list); err != nil {
		return Result{}, fmt.Errorf("attach pod %s to network %s: %w", p.ID, list.Name, err)
	}
	return *a.Result, nil
}

// tryAdd records, adds, records again; or undoes.
func (m *Manager) tryAdd(ctx context.Context, a *attempt, list *libcni.NetworkConfigList) (err error) {
	ns := m.netns(a.Pod.ID)
	if !isNamespace(ns) {
		return fmt.Errorf("%s is not a network namespace; pin it first", ns)
	}
	rt, err := m.runtimeConf(a.Pod, ns)
	if err != nil {
		return err
	}
	if err := m.saveAttempt(a); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.undo(ctx, a))
		}
	}()
	if err := loopbackUp(ns); err != nil {
		return err
	}
	raw, err := m.cni.AddNetworkList(ctx, list, rt)
	if err != nil {
		return err
	}
	if a.Result, err = convert(raw, list.Name, ns); err != nil {
		return err
	}
	m.addRanges(a.Result.Ranges)
	return m.saveAttempt(a)
}

// undo is DEL with time of its own; the attempt is forgotten if that succeeds and stays otherwise.
func (m *Manager) undo(ctx context.Context, a *attempt) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if err := m.del(ctx, a); err != nil {
		a.Result, a.Problem = nil, err.Error()
		return errors.Join(fmt.Errorf("undo: %w", err), m.saveAttempt(a))
	}
	return m.forgetAttempt(a.Pod.ID)
}

// loopbackUp brings up lo.
func loopbackUp(path string) error {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", path, err)
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink in %s: %w", path, err)
	}
	defer h.Close()
	lo := netlink.NewLinkAttrs()
	lo.Index = 1 // in every network namespace
	if err := h.LinkSetUp(&netlink.Device{LinkAttrs: lo}); err != nil {
		return fmt.Errorf("bring up loopback in %s: %w", path, err)
	}
	return nil
}

// Detach takes the pod off the network, lets go of its namespace and forgets the
// attempt. A nil error means that nothing of the pod is left, or that it goes by
// itself within milliseconds (Drain waits for that); also when nothing was there.
// If a plugin's DEL fails the attempt stays and the error says why: call again,
// or let GC.
func (m *Manager) Detach(ctx context.Context, id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	defer m.lock(id)()
	a, err := m.loadAttempt(id)
	if err != nil {
		return fmt.Errorf("detach pod %s: %w", id, err)
	}
	if a == nil {
		return m.unpin(id)
	}
	if err := m.del(ctx, a); err != nil {
		a.Problem = err.Error()
		return errors.Join(fmt.Errorf("detach pod %s from network %s: %w", id, a.Network, err), m.saveAttempt(a))
	}
	if err := m.unpin(id); err != nil {
		return err
	}
	return m.forgetAttempt(id)
}

// del calls DEL on the recorded list and, if that stops half-way, on each of its
// plugins: one that fails must not keep the others' addresses and ports.
func (m *Manager) del(ctx context.Context, a *attempt) error {
	list, err := libcni.NetworkConfFromBytes(a.Conf)
	if err != nil {
		return fmt.Errorf("read recorded network: %w", err)
	}
	ns := m.netns(a.Pod.ID)
	if !isNamespace(ns) {
		ns = "" // as the specification has it: the namespace is gone, release the rest
	}
	rt, err := m.runtimeConf(a.Pod, ns)
	if err != nil {
		return err
	}
	cache, err := m.readCache(list.Name, a.Pod.ID)
	if err != nil {
		return err
	}
	err = m.cni.DelNetworkList(ctx, list, rt)
	if err == nil || len(list.Plugins) == 1 {
		return err
	}
	return m.delOneByOne(ctx, list, rt, cache)
}

func (m *Manager) delOneByOne(ctx context.Context, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf, cache []byte) error {
	var errs []error
	for _, p := range slices.Backward(list.Plugins) {
		// libcni forgets the result with the first DEL that succeeds; the others need it too.
		if err := m.writeCache(list.Name, rt.ContainerID, cache); err != nil {
			return err
		}
		one := *list
		one.Plugins = []*libcni.PluginConfig{p}
		errs = append(errs, m.cni.DelNetworkList(ctx, &one, rt))
	}
	err := errors.Join(errs...)
	if err != nil {
		return errors.Join(err, m.writeCache(list.Name, rt.ContainerID, cache))
	}
	return nil
}

// cachePath is where libcni keeps the result of ADD for CHECK and DEL.
func (m *Manager) cachePath(network, id string) string {
	return m.path("cni", "results", fmt.Sprintf("%s-%s-%s", network, id, ifName))
}

func (m *Manager) readCache(network, id string) ([]byte, error) {
	b, err := os.ReadFile(m.cachePath(network, id))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read cached result of %s: %w", id, err)
	}
	return b, nil
}

func (m *Manager) writeCache(network, id string, data []byte) error {
	if len(data) == 0 {
		return nil
	}
	if err := os.WriteFile(m.cachePath(network, id), data, 0o600); err != nil {
		return fmt.Errorf("keep cached result of %s: %w", id, err)
	}
	return nil
}
