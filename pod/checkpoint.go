package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/pausa-run/pausa/runtime"
)

// Names in a checkpoint's archive, and what is in them, are those that containerd
// and CRI-O write and checkpointctl reads.
const (
	checkpointConfig = "config.dump"     // checkpointedConfig
	checkpointSpec   = "spec.dump"       // the OCI spec
	checkpointStatus = "status"          // checkpointedStatus
	checkpointRootfs = "rootfs-diff.tar" // what the container has changed above its image, as a layer
)

type checkpointedConfig struct {
	ID              string    `json:"id"`
	Name            string    `json:"name"`
	RootfsImage     string    `json:"rootfsImage,omitempty"`
	RootfsImageRef  string    `json:"rootfsImageRef,omitempty"`
	RootfsImageName string    `json:"rootfsImageName,omitempty"`
	Runtime         string    `json:"runtime,omitempty"`
	CreatedTime     time.Time `json:"createdTime"`
	CheckpointedAt  time.Time `json:"checkpointedTime"`
}

type checkpointedStatus struct {
	CreatedAt, StartedAt, FinishedAt int64 // ns
	ExitCode                         int32
	Pid                              uint32
	Reason, Message                  string
}

// Checkpoint writes an archive of a running container's processes, memory and
// files to location, which only root may read, and lets the container go on. What
// was at location is replaced once the archive is whole. The error wraps
// runtime.ErrNoCRIU where CRIU is missing.
func (m *Manager) Checkpoint(ctx context.Context, id, location string) error {
	if !cleanAbs(location) || location == "/" {
		return fmt.Errorf("%w: location %.200q: want a clean absolute path of a file", ErrInvalid, location)
	}
	c, err := m.container(id)
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	if err := c.canCheckpoint(); err != nil {
		return err
	}
	// Beside the archive, where its caller has room for it: memory is large.
	dir, err := os.MkdirTemp(filepath.Dir(location), ".checkpoint-")
	if err != nil {
		return fmt.Errorf("%w: checkpoint container %s: %w", ErrInvalid, c.rec.ID, err)
	}
	defer func() {
		if err := os.RemoveAll(dir); err != nil {
			m.log.Error("remove what a checkpoint was made of", "folder", dir, "error", err)
		}
	}()
	if err := m.dump(ctx, c, dir); err != nil {
		return fmt.Errorf("checkpoint container %s: %w", c.rec.ID, err)
	}
	if err := writeArchive(ctx, dir, location); err != nil {
		return fmt.Errorf("checkpoint container %s: %w", c.rec.ID, err)
	}
	return nil
}

// canCheckpoint refuses what CRIU cannot write, or nobody could restore; c.op is held.
func (c *container) canCheckpoint() error {
	cfg, podCfg := &c.rec.Config, &c.pod.rec.Config
	refuse := func(why string) error {
		return fmt.Errorf("%w: checkpoint container %s: %s", ErrState, c.rec.ID, why)
	}
	switch {
	case c.rec.status() != runtime.Running:
		return refuse(fmt.Sprintf("it is %s, only one that runs can be checkpointed", c.rec.status()))
	case cfg.Terminal:
		return refuse("it has a terminal, which would be lost: run it without tty")
	case len(podCfg.UIDMaps) > 0:
		return refuse("it is in a user namespace, which CRIU cannot join")
	case cfg.HostPID || podCfg.HostPID || cfg.TargetContainer != "" || podCfg.SharePID && !cfg.OwnPID:
		return refuse("its processes are in a PID namespace that is not its own: CRIU needs one for each container")
	}
	return nil
}

// dump fills dir with all that the archive holds; c.op is held.
func (m *Manager) dump(ctx context.Context, c *container, dir string) error {
	return m.dumpAll(ctx, []*container{c}, []string{dir})
}

// dumpAll fills a folder for each container with all that an archive holds, of one
// moment; their op is held.
func (m *Manager) dumpAll(ctx context.Context, ctrs []*container, dirs []string) error {
	rt, err := m.runtime()
	if err != nil {
		return err
	}
	targets, written := make([]runtime.CheckpointTarget, len(ctrs)), make([]*specs.Spec, len(ctrs))
	for i, c := range ctrs {
		targets[i] = runtime.CheckpointTarget{ID: c.rec.ID, Dir: dirs[i]}
		if written[i], err = m.specOf(ctx, c); err != nil {
			return err
		}
	}
	err = rt.Checkpoint(ctx, targets, func() error { // all are frozen meanwhile
		for _, t := range targets {
			write := func(w io.Writer) error { return m.opts.Images.WriteDiff(ctx, t.ID, w) }
			if err := createWith(filepath.Join(t.Dir, checkpointRootfs), write); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return keeperErr(err)
	}
	for i, c := range ctrs {
		if err := c.describe(dirs[i], written[i]); err != nil {
			return err
		}
	}
	return nil
}

// specOf is the OCI spec that a container was made with; c.op is held.
func (m *Manager) specOf(ctx context.Context, c *container) (*specs.Spec, error) {
	img, err := m.opts.Images.Get(ctx, c.rec.ImageID)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", c.rec.ImageID, err)
	}
	request, err := m.containerSpec(ctx, c, img)
	return request.Spec, err
}

// describe writes what the container is; c.op is held.
func (c *container) describe(dir string, spec *specs.Spec) error {
	p := &c.pod.rec
	spec.Annotations = map[string]string{
		"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.container-name": c.rec.Config.Name,
		"io.kubernetes.cri.image-name": c.rec.Config.Image, "io.kubernetes.cri.sandbox-id": p.ID,
		"io.kubernetes.cri.sandbox-name": p.Config.Name, "io.kubernetes.cri.sandbox-namespace": p.Config.Namespace, "io.kubernetes.cri.sandbox-uid": p.Config.UID,
	}
	for name, content := range map[string]any{
		checkpointSpec: spec,
		checkpointConfig: checkpointedConfig{
			ID: c.rec.ID, Name: c.rec.Config.Name, RootfsImage: c.rec.Config.Image, RootfsImageRef: c.rec.ImageID, RootfsImageName: c.rec.Config.ImageName,
			Runtime: "pausa", CreatedTime: c.rec.CreatedAt, CheckpointedAt: time.Now(),
		},
		checkpointStatus: checkpointedStatus{CreatedAt: c.rec.CreatedAt.UnixNano(), StartedAt: c.rec.StartedAt.UnixNano(), Pid: uint32(c.pid)},
	} {
		data, err := json.Marshal(content)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), data, 0o600)
		}
		if err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	return nil
}

// createWith writes a new file, for root alone.
func createWith(path string, write func(io.Writer) error) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return write(f)
}

// writeArchive puts a tar of dir at location, whole or not at all.
func writeArchive(ctx context.Context, dir, location string) error {
	whole := dir + ".tar"
	defer os.Remove(whole) // fails when it was moved to its place
	err := createWith(whole, func(w io.Writer) error { return tarFolder(ctx, dir, w) })
	if err != nil {
		return fmt.Errorf("write the archive: %w", err)
	}
	if err := os.Rename(whole, location); err != nil {
		return fmt.Errorf("put the archive to its place: %w", err)
	}
	return nil
}
