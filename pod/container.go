package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/images"
	"github.com/pausa-run/pausa/runtime"
)

// CreateContainer makes a container in a ready pod. A duplicate (same pod, name
// and attempt) gets the first one's result until that is started. The command itself is looked for at
// StartContainer.
func (m *Manager) CreateContainer(ctx context.Context, podID string, cfg ContainerConfig) (id string, err error) {
	return m.createContainer(ctx, podID, cfg, nil)
}

// createContainer makes a container to be started, or one to be restored from a checkpoint's folder.
func (m *Manager) createContainer(ctx context.Context, podID string, cfg ContainerConfig, from *os.Root) (id string, err error) {
	if err := cfg.check(); err != nil {
		return "", err
	}
	p, err := m.sandbox(podID)
	if err != nil {
		return "", err
	}
	p.op.RLock()
	defer p.op.RUnlock()
	c, first, err := m.reserveContainer(p, cfg)
	if err != nil {
		return "", err
	}
	if !first {
		return m.joinContainer(ctx, c)
	}
	c.from = from
	defer func() { c.from = nil }()
	c.op.Lock()
	defer c.op.Unlock()
	defer func() {
		if err != nil {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
			defer cancel()
			err = errors.Join(err, m.removeContainerLocked(ctx, c))
		}
		c.makeErr = err
		close(c.made)
	}()
	if err := m.makeContainer(ctx, c); err != nil {
		return "", fmt.Errorf("create container %s: %w", cfg.Name, err)
	}
	m.tell(EventCreated, c.pod, c.rec.ID)
	return c.rec.ID, nil
}

func (m *Manager) reserveContainer(p *sandbox, cfg ContainerConfig) (c *container, first bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !p.ready() || p.rec.Removing {
		return nil, false, fmt.Errorf("create container %s: pod %s is not ready: %w", cfg.Name, p.rec.ID, ErrState)
	}
	key := containerKey(p.rec.ID, &cfg)
	if c, ok := m.ctrs[m.names[key]]; ok {
		return c, false, nil
	}
	c = &container{pod: p, made: make(chan struct{})}
	c.rec = containerRecord{Version: recordVersion, ID: newID(), PodID: p.rec.ID, Config: cfg, CreatedAt: time.Now()}
	m.ctrs[c.rec.ID], p.ctrs[c.rec.ID], m.names[key] = c, c, c.rec.ID
	return c, true, nil
}

func containerKey(podID string, cfg *ContainerConfig) string {
	return strings.Join([]string{"container", podID, cfg.Name, strconv.FormatUint(uint64(cfg.Attempt), 10)}, "/")
}

func (m *Manager) joinContainer(ctx context.Context, c *container) (string, error) {
	if err := join(ctx, c.made, &c.makeErr, "container's earlier creation"); err != nil {
		return "", err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	if status := c.rec.status(); status != runtime.Created { // who asks again after a lost answer has not started it
		return "", fmt.Errorf("container %s (attempt %d) %w as %s and is %s; remove that one or raise the attempt",
			c.rec.Config.Name, c.rec.Config.Attempt, ErrExists, c.rec.ID, status)
	}
	return c.rec.ID, nil
}

// makeContainer does the steps of CreateContainer in order; c.op is held.
func (m *Manager) makeContainer(ctx context.Context, c *container) error {
	rt, err := m.runtime()
	if err != nil {
		return err
	}
	img, err := m.opts.Images.Get(ctx, c.rec.Config.Image)
	if errors.Is(err, images.ErrNotFound) {
		return fmt.Errorf("image %s %w on this host; import or pull it first", c.rec.Config.Image, ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("image %s: %w", c.rec.Config.Image, err)
	}
	m.setContainer(c, func() {
		r := &c.rec
		r.ImageID, r.StopSignal = img.ID, stopSignal(r.Config.StopSignal, img.Config.Config.StopSignal)
		r.CgroupPath = containerGroup(m.podGroup(c.pod), r.ID)
		if dir := c.pod.rec.Config.LogDirectory; dir != "" && r.Config.LogPath != "" {
			r.LogPath = filepath.Join(dir, r.Config.LogPath)
		}
	})
	if err := m.saveContainer(c); err != nil {
		return err
	}
	spec, err := m.containerSpec(ctx, c, img)
	if err == nil && c.from != nil { // after the spec: what a checkpoint changes has no say in who the user is
		spec.Restore, err = m.restoreImages(ctx, c, spec.Spec)
	}
	if err != nil {
		return err
	}
	keeping, done := settled(ctx)
	defer done()
	if err := rt.CreateContainer(keeping, spec); err != nil {
		return keeperErr(err)
	}
	m.setContainer(c, func() { c.rec.Made = true })
	if err := m.saveContainer(c); err != nil {
		return err
	}
	return ctx.Err()
}

// StartContainer starts a created container. When the command cannot be started
// the error says why and the container has exited with code 128.
func (m *Manager) StartContainer(ctx context.Context, id string) error {
	c, err := m.container(id)
	if err != nil {
		return err
	}
	c.pod.op.RLock()
	defer c.pod.op.RUnlock()
	c.op.Lock()
	defer c.op.Unlock()
	if _, err := m.container(c.rec.ID); err != nil {
		return err // removed while we waited
	}
	m.mu.RLock()
	status, ready, name := c.rec.status(), c.pod.ready(), c.rec.Config.Name
	m.mu.RUnlock()
	if status != runtime.Created {
		return fmt.Errorf("start container %s (%s): it is %s: %w", name, c.rec.ID, status, ErrState)
	}
	if !ready {
		return fmt.Errorf("start container %s (%s): its pod is not ready: %w", name, c.rec.ID, ErrState)
	}
	rt, err := m.runtime()
	if err != nil {
		return err
	}
	keeping, done := settled(ctx)
	defer done()
	st, err := rt.StartContainer(keeping, c.rec.ID)
	if err != nil {
		m.noteFailedStart(ctx, rt, c)
		return fmt.Errorf("start container %s: %w", name, keeperErr(err))
	}
	m.dropImages(c)
	m.setContainer(c, func() { c.pid, c.rec.StartedAt = st.Pid, st.StartedAt })
	m.tell(EventStarted, c.pod, c.rec.ID)
	return m.saveContainer(c)
}

// noteFailedStart takes over the exit that the keeper recorded for a start that came to nothing.
func (m *Manager) noteFailedStart(ctx context.Context, rt Runtime, c *container) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if exit, err := rt.Wait(ctx, c.rec.ID); err == nil {
		m.noteExit(c, exit)
	}
}

// noteExit records how a container ended, once; c.op is held.
func (m *Manager) noteExit(c *container, exit runtime.Exit) {
	first := false
	m.setContainer(c, func() {
		if first = c.rec.Exit == nil; first {
			c.rec.Exit, c.pid = &exit, 0
		}
	})
	if !first {
		return
	}
	if err := m.saveContainer(c); err != nil && !errors.Is(err, os.ErrNotExist) {
		m.log.Error("record a container's exit", "container", c.rec.ID, "error", err)
	}
	m.tell(EventStopped, c.pod, c.rec.ID)
}

// StopContainer sends the stop signal and, grace later, SIGKILL to everything
// that is left. A nil error means that the container has exited or is unknown.
func (m *Manager) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	c, err := m.container(id)
	if err != nil {
		return unlessNotFound(err)
	}
	return m.stopContainer(ctx, c, grace)
}

func (m *Manager) stopContainer(ctx context.Context, c *container, grace time.Duration) error {
	m.mu.RLock()
	status, id, sig := c.rec.status(), c.rec.ID, c.rec.StopSignal
	m.mu.RUnlock()
	if status == runtime.Exited {
		return nil
	}
	rt, err := m.runtime()
	if err != nil {
		return err
	}
	exit, err := m.signalAndWait(ctx, rt, id, status, sig, grace)
	if errors.Is(err, runtime.ErrNotFound) {
		return nil // never came to the keeper; removal does the rest
	}
	if err != nil {
		return fmt.Errorf("stop container %s: %w", id, keeperErr(err))
	}
	c.op.Lock()
	defer c.op.Unlock()
	m.noteExit(c, exit)
	return nil
}

func (m *Manager) signalAndWait(ctx context.Context, rt Runtime, id string, status runtime.Status, sig string, grace time.Duration) (runtime.Exit, error) {
	if status == runtime.Running && grace > 0 {
		if err := rt.Signal(ctx, id, parseSignal(sig), false); err != nil {
			return runtime.Exit{}, err
		}
		soft, cancel := context.WithTimeout(ctx, grace)
		exit, err := rt.Wait(soft, id)
		cancel()
		if err == nil || ctx.Err() != nil || soft.Err() == nil {
			return exit, err
		}
	}
	if err := rt.Signal(ctx, id, syscall.SIGKILL, true); err != nil {
		return runtime.Exit{}, err
	}
	return rt.Wait(ctx, id)
}

// RemoveContainer kills a container if it runs and forgets it. A nil error means that it is gone.
func (m *Manager) RemoveContainer(ctx context.Context, id string) error {
	c, err := m.container(id)
	if err != nil {
		return unlessNotFound(err)
	}
	c.pod.op.RLock()
	defer c.pod.op.RUnlock()
	return m.removeContainer(ctx, c)
}

func (m *Manager) removeContainer(ctx context.Context, c *container) error {
	if err := m.stopContainer(ctx, c, 0); err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	return m.removeContainerLocked(ctx, c)
}

// removeContainerLocked gives back all that the container took; c.op is held.
func (m *Manager) removeContainerLocked(ctx context.Context, c *container) error {
	id := c.rec.ID
	if _, err := m.container(id); err != nil {
		return nil // another Remove was first
	}
	rt, err := m.runtime()
	if err == nil {
		err = keeperErr(rt.RemoveContainer(ctx, id))
	}
	if err != nil {
		return fmt.Errorf("remove container %s: %w", id, err)
	}
	if err := errors.Join(m.unmountVolumes(ctx, c), m.opts.Images.Unmount(ctx, id)); err != nil {
		return fmt.Errorf("remove container %s: %w", id, err)
	}
	if err := os.Remove(m.containerFile(c.rec.PodID, id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove container %s: %w", id, err)
	}
	m.setContainer(c, func() {
		delete(m.ctrs, id)
		delete(c.pod.ctrs, id)
		if key := containerKey(c.rec.PodID, &c.rec.Config); m.names[key] == id {
			delete(m.names, key)
		}
	})
	m.tell(EventDeleted, c.pod, id)
	return nil
}

// stopSignal is the request's, else the image's, else SIGTERM.
func stopSignal(signals ...string) string {
	for _, s := range signals {
		if s != "" {
			return s
		}
	}
	return "SIGTERM"
}

// parseSignal understands "SIGTERM", "TERM", "15", "SIGRTMIN" and "SIGRTMIN+3"; what it does not know is SIGTERM.
func parseSignal(s string) syscall.Signal {
	s = strings.ToUpper(s)
	if n, err := strconv.Atoi(s); err == nil && n > 0 && n < 65 {
		return syscall.Signal(n)
	}
	s = "SIG" + strings.TrimPrefix(s, "SIG")
	// Names that are others' second ones, or the ends of a range.
	switch s {
	case "SIGRTMIN", "SIGRTMAX":
		s += map[string]string{"SIGRTMIN": "+0", "SIGRTMAX": "-0"}[s]
	case "SIGCLD":
		s = "SIGCHLD"
	case "SIGIOT":
		s = "SIGABRT"
	case "SIGPOLL":
		s = "SIGIO"
	}
	if off, ok := strings.CutPrefix(s, "SIGRTMIN+"); ok {
		if n, err := strconv.Atoi(off); err == nil && n >= 0 && n <= 30 {
			return syscall.Signal(34 + n)
		}
	}
	if off, ok := strings.CutPrefix(s, "SIGRTMAX-"); ok {
		if n, err := strconv.Atoi(off); err == nil && n >= 0 && n <= 30 {
			return syscall.Signal(64 - n)
		}
	}
	if sig := unix.SignalNum(s); sig != 0 {
		return sig
	}
	return syscall.SIGTERM
}
