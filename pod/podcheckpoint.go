package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"time"
)

// A pod's checkpoint is a folder: podCheckpointFile, and for each container a
// folder with what the archive of a container holds.
const (
	podCheckpointFile    = "pod.json" // podCheckpoint
	podCheckpointVersion = 1
)

// podCheckpoint says what a pod's checkpoint is of.
type podCheckpoint struct {
	Version        int                     `json:"version"`
	CheckpointedAt time.Time               `json:"checkpointedAt"`
	Architecture   string                  `json:"architecture"`
	Name           string                  `json:"name"`
	Namespace      string                  `json:"namespace"`
	UID            string                  `json:"uid"`
	Containers     []checkpointedContainer `json:"containers"`
}

// checkpointedContainer is one container of a pod's checkpoint. Its folder is
// named after its place in the list, as no name that is a stranger's becomes a path.
type checkpointedContainer struct {
	Name string `json:"name"`
	ID   string `json:"id"`
}

func containerFolder(i int) string { return fmt.Sprintf("container-%d", i) }

// CheckpointPod writes the running containers ids of a pod to the empty folder dir:
// all are frozen before the first is written, and all run again when it returns.
// After an error the folder is as empty as before. The error wraps
// runtime.ErrNoCRIU where CRIU is missing.
func (m *Manager) CheckpointPod(ctx context.Context, podID string, ids []string, dir string) (err error) {
	p, err := m.sandbox(podID)
	if err != nil {
		return err
	}
	if err := emptyFolder(dir); err != nil {
		return fmt.Errorf("%w: checkpoint pod %s: %w", ErrInvalid, p.rec.ID, err)
	}
	p.op.RLock()
	defer p.op.RUnlock()
	ctrs, err := m.selected(p, ids)
	if err != nil {
		return fmt.Errorf("checkpoint pod %s: %w", p.rec.ID, err)
	}
	for _, c := range ctrs {
		c.op.Lock()
		defer c.op.Unlock()
		if err := c.canCheckpoint(); err != nil {
			return err
		}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeCheckpoint(dir, len(ctrs)))
		}
	}()
	dirs := make([]string, len(ctrs))
	for i := range ctrs {
		dirs[i] = filepath.Join(dir, containerFolder(i))
		if err := os.Mkdir(dirs[i], 0o700); err != nil {
			return fmt.Errorf("checkpoint pod %s: %w", p.rec.ID, err)
		}
	}
	if err := m.dumpAll(ctx, ctrs, dirs); err != nil {
		return fmt.Errorf("checkpoint pod %s: %w", p.rec.ID, err)
	}
	if err := p.describe(dir, ctrs); err != nil {
		return fmt.Errorf("checkpoint pod %s: %w", p.rec.ID, err)
	}
	return ctx.Err()
}

// emptyFolder refuses what is no empty folder of its own.
func emptyFolder(dir string) error {
	if !cleanAbs(dir) || dir == "/" {
		return fmt.Errorf("folder %.200q: want a clean absolute path", dir)
	}
	if st, err := os.Lstat(dir); err != nil || !st.IsDir() {
		return errors.Join(err, fmt.Errorf("%s is no folder: make an empty one", dir))
	}
	entries, err := os.ReadDir(dir)
	if err == nil && len(entries) > 0 {
		err = fmt.Errorf("folder %s is not empty: it holds %q", dir, entries[0].Name())
	}
	return err
}

// selected are the containers ids of p, in the one order in which they are locked.
func (m *Manager) selected(p *sandbox, ids []string) ([]*container, error) {
	if len(ids) == 0 {
		return nil, fmt.Errorf("%w: no containers are named", ErrInvalid)
	}
	var out []*container
	for _, id := range ids {
		c, err := m.container(id)
		if err != nil {
			return nil, err
		}
		if c.pod != p {
			return nil, fmt.Errorf("%w: container %s is not of this pod", ErrInvalid, c.rec.ID)
		}
		if slices.Contains(out, c) {
			return nil, fmt.Errorf("%w: container %s is named twice", ErrInvalid, c.rec.ID)
		}
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b *container) int { return strings.Compare(a.rec.ID, b.rec.ID) })
	return out, nil
}

// describe writes what the checkpoint is of; the containers' op is held.
func (p *sandbox) describe(dir string, ctrs []*container) error {
	cfg := &p.rec.Config
	about := podCheckpoint{
		Version: podCheckpointVersion, CheckpointedAt: time.Now(), Architecture: goruntime.GOARCH,
		Name: cfg.Name, Namespace: cfg.Namespace, UID: cfg.UID,
	}
	for _, c := range ctrs {
		about.Containers = append(about.Containers, checkpointedContainer{Name: c.rec.Config.Name, ID: c.rec.ID})
	}
	data, err := json.Marshal(about)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, podCheckpointFile), data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", podCheckpointFile, err)
	}
	return nil
}

// removeCheckpoint takes away what CheckpointPod may have written.
func removeCheckpoint(dir string, containers int) error {
	errs := []error{os.RemoveAll(filepath.Join(dir, podCheckpointFile))}
	for i := range containers {
		errs = append(errs, os.RemoveAll(filepath.Join(dir, containerFolder(i))))
	}
	return errors.Join(errs...)
}
