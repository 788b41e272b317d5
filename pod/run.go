package pod

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pausa-run/pausa/network"
	"github.com/pausa-run/pausa/runtime"
)

// newID makes an id as the field knows them: 64 hex digits.
func newID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

func (c *Config) nameKey() string {
	return strings.Join([]string{"pod", c.Namespace, c.Name, c.UID, strconv.FormatUint(uint64(c.Attempt), 10)}, "/")
}

// Run makes a pod and starts its pause process. A duplicate of a request that is
// under way, or whose pod is ready, gets that one's result. Whatever a failed Run
// took is given back by the same release that ends a healthy pod; if that fails
// too, the record stays and is retried in the background.
func (m *Manager) Run(ctx context.Context, cfg Config) (id string, err error) {
	if err := errors.Join(cfg.check(), m.checkCgroupParent(cfg.CgroupParent)); err != nil {
		return "", err
	}
	handler, err := m.handler(cfg.Handler)
	if err != nil {
		return "", fmt.Errorf("run pod %s/%s: %w", cfg.Namespace, cfg.Name, err)
	}
	p, first := m.reservePod(cfg, handler.Name)
	if !first {
		return m.joinPod(ctx, p)
	}
	p.op.Lock()
	defer p.op.Unlock()
	defer func() {
		if err != nil {
			err = errors.Join(err, m.removeLocked(ctx, p))
		}
		p.runErr = err
		close(p.made)
	}()
	id = p.rec.ID // nobody changes it
	if err := m.makePod(ctx, p); err != nil {
		return "", fmt.Errorf("run pod %s/%s: %w", cfg.Namespace, cfg.Name, err)
	}
	m.tell(EventCreated, p, "")
	m.tell(EventStarted, p, "")
	return id, nil
}

// reservePod takes the name, or returns who has it.
func (m *Manager) reservePod(cfg Config, handler string) (p *sandbox, first bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := cfg.nameKey()
	if p, ok := m.pods[m.names[key]]; ok {
		return p, false
	}
	p = &sandbox{made: make(chan struct{}), ctrs: map[string]*container{}}
	p.rec = podRecord{Version: recordVersion, BootID: m.bootID, ID: newID(), Config: cfg, Runtime: handler, CreatedAt: time.Now()}
	p.rec.Cgroup = m.newPodGroup(p.rec.ID, &cfg)
	m.pods[p.rec.ID], m.names[key] = p, p.rec.ID
	m.showPod(p)
	return p, true
}

// joinPod waits for the Run that was first.
func (m *Manager) joinPod(ctx context.Context, p *sandbox) (string, error) {
	if err := join(ctx, p.made, &p.runErr, "pod's earlier start"); err != nil {
		return "", err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	if !p.ready() {
		return "", fmt.Errorf("pod %s/%s (uid %s, attempt %d) %w as %s and is stopped; remove that one or raise the attempt",
			p.rec.Config.Namespace, p.rec.Config.Name, p.rec.Config.UID, p.rec.Config.Attempt, ErrExists, p.rec.ID)
	}
	return p.rec.ID, nil
}

// join waits for a request that was first, and returns what became of it; failed
// is set before made is closed.
func join(ctx context.Context, made <-chan struct{}, failed *error, what string) error {
	select {
	case <-made:
	case <-ctx.Done():
		return fmt.Errorf("wait for the same %s: %w", what, ctx.Err())
	}
	if *failed != nil {
		return fmt.Errorf("the same %s: %w", what, *failed)
	}
	return nil
}

// makePod does the steps of Run in order; p.op is held.
func (m *Manager) makePod(ctx context.Context, p *sandbox) error {
	cfg := &p.rec.Config
	rt, err := m.runtime()
	if err != nil {
		return err
	}
	if err := m.makePodFiles(p); err != nil {
		return err
	}
	keeping, done := settled(ctx)
	defer done()
	st, err := rt.StartPod(keeping, cfg.spec(p.rec.ID))
	if err != nil {
		return fmt.Errorf("start pause: %w", keeperErr(err))
	}
	m.setPod(p, func() { p.pid = st.Pid })
	if err := m.limitPod(ctx, p, cfg.Resources); err != nil {
		return err
	}
	if !cfg.HostNetwork {
		if err := m.attach(ctx, p); err != nil {
			return err
		}
	}
	if err := m.writeHosts(p); err != nil {
		return err
	}
	m.setPod(p, func() { p.rec.Made = true })
	if err := m.savePod(p); err != nil {
		return err
	}
	return ctx.Err() // a caller that is gone gets nothing left behind
}

func (m *Manager) attach(ctx context.Context, p *sandbox) error {
	cfg := &p.rec.Config
	netns, err := m.opts.Network.Pin(p.rec.ID, p.pid)
	if err != nil {
		return fmt.Errorf("pin network namespace: %w", err)
	}
	res, err := m.opts.Network.Attach(ctx, network.Pod{
		ID: p.rec.ID, Name: cfg.Name, Namespace: cfg.Namespace, UID: cfg.UID, Labels: cfg.Labels,
		Annotations: cfg.Annotations, Ports: cfg.Ports, DNS: (*network.DNS)(cfg.DNS), CgroupPath: groupPath(m.podGroup(p)),
	})
	if err != nil {
		return fmt.Errorf("attach to the network: %w", err)
	}
	if res.NetNS == "" {
		res.NetNS = netns
	}
	m.setPod(p, func() { p.rec.Net = res })
	if cfg.DNS == nil && res.DNS != nil {
		return m.writeResolvConf(p.rec.ID, (*DNS)(res.DNS).text())
	}
	return nil
}

func (c *Config) spec(id string) runtime.PodSpec {
	return runtime.PodSpec{
		ID: id, Hostname: c.Hostname, HostNetwork: c.HostNetwork, HostIPC: c.HostIPC, SharePID: c.SharePID,
		UIDMaps: c.UIDMaps, GIDMaps: c.GIDMaps, Sysctls: c.sysctls(),
	}
}

// sysctls are the pod's own and, on a network of its own, what lets any user
// ping and listen on ports below 1024 there: neither needs a capability.
func (c *Config) sysctls() map[string]string {
	if c.HostNetwork {
		return c.Sysctls
	}
	out := map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"}
	for name := range c.Sysctls {
		delete(out, strings.ReplaceAll(name, "/", ".")) // the same in its other notation
	}
	maps.Copy(out, c.Sysctls)
	return out
}

// Stop kills the pod's containers and gives its namespaces and addresses back.
// The record stays. A nil error means that the pod is stopped or unknown.
func (m *Manager) Stop(ctx context.Context, id string) error {
	p, err := m.sandbox(id)
	if err != nil {
		return unlessNotFound(err)
	}
	p.op.Lock()
	defer p.op.Unlock()
	if err := m.stopLocked(ctx, p); err != nil {
		return fmt.Errorf("stop pod %s: %w", p.rec.ID, err)
	}
	return nil
}

// stopLocked does all steps whatever fails, and may be done again; p.op is held alone.
func (m *Manager) stopLocked(ctx context.Context, p *sandbox) error {
	m.mu.RLock()
	done, wasReady, id := !p.rec.StoppedAt.IsZero(), p.ready(), p.rec.ID
	m.mu.RUnlock()
	if done {
		return nil
	}
	errs := []error{m.killContainers(ctx, p), m.opts.Network.Detach(ctx, id)}
	rt, err := m.runtime()
	if err == nil {
		err = keeperErr(rt.RemovePod(ctx, id))
	}
	errs = append(errs, err, m.unmountPod(id))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	m.setPod(p, func() { p.pid, p.rec.StoppedAt = 0, time.Now() })
	if wasReady {
		m.tell(EventStopped, p, "")
	}
	if err := m.savePod(p); err != nil { // on a full disk: it is stopped all the same, as the next daemon will see
		m.log.Error("record that a pod is stopped", "pod", id, "error", err)
	}
	return nil
}

// killContainers ends every container of the pod, all at once.
func (m *Manager) killContainers(ctx context.Context, p *sandbox) error {
	ctrs := m.containersOf(p)
	errs := make([]error, len(ctrs))
	var wg sync.WaitGroup
	for i, c := range ctrs {
		wg.Go(func() { errs[i] = m.stopContainer(ctx, c, 0) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (m *Manager) containersOf(p *sandbox) []*container {
	m.mu.RLock()
	defer m.mu.RUnlock()
	out := make([]*container, 0, len(p.ctrs))
	for _, c := range p.ctrs {
		out = append(out, c)
	}
	return out
}

// Remove stops the pod, removes its containers and forgets it. A nil error means
// that the pod is gone. If something cannot be given back, the pod stays listed
// as not ready with its Problem, its name is free, and removal is retried in the background.
func (m *Manager) Remove(ctx context.Context, id string) error {
	p, err := m.sandbox(id)
	if err != nil {
		return unlessNotFound(err)
	}
	p.op.Lock()
	defer p.op.Unlock()
	return m.removeLocked(ctx, p)
}

// removeLocked is the one way down; p.op is held alone. It outlives a cancelled ctx.
func (m *Manager) removeLocked(ctx context.Context, p *sandbox) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	var id string
	var first bool
	m.set(func() {
		id, first = p.rec.ID, !p.rec.Removing
		p.rec.Removing = true
		if key := p.rec.Config.nameKey(); m.names[key] == id {
			delete(m.names, key)
		}
	})
	if _, err := m.sandbox(id); err != nil {
		return nil // another Remove was first
	}
	if first {
		_ = m.savePod(p) // if the folder is gone or the disk is full, removal goes on
	}
	errs := []error{m.stopLocked(ctx, p)}
	for _, c := range m.containersOf(p) {
		errs = append(errs, m.removeContainer(ctx, c))
	}
	if errors.Join(errs...) == nil {
		errs = append(errs, m.removePodGroup(ctx, p), os.RemoveAll(m.podDir(id)))
	}
	if err := errors.Join(errs...); err != nil {
		m.setPod(p, func() { p.rec.Problem = err.Error() })
		_ = m.savePod(p)
		m.log.Warn("pod cannot be removed whole; retrying in the background", "pod", id, "error", err)
		return fmt.Errorf("remove pod %s: %w", id, err)
	}
	m.setPod(p, func() { delete(m.pods, id) })
	m.tell(EventDeleted, p, "")
	return nil
}

func unlessNotFound(err error) error {
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}
