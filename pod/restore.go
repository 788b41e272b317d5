package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	goruntime "runtime"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/runtime"
	"github.com/pausa-run/pausa/runtime/restore"
)

const (
	maxPodCheckpoint = 1 << 20 // bytes of its description
	maxContainerDump = 8 << 20 // bytes of a container's
)

// Restored is a container of a restored pod.
type Restored struct{ Name, ID string }

// RestorePod makes a pod with containers whose processes, memory and changed files
// are those of a checkpoint; StartContainer lets each go on. The checkpoint may be a
// stranger's: it is only read, and what does not belong to the configurations is
// refused. After an error nothing is left. The error wraps restore.ErrRefused (an
// ErrInvalid) or runtime.ErrNoCRIU.
func (m *Manager) RestorePod(ctx context.Context, cfg Config, ctrs []ContainerConfig, path string) (podID string, out []Restored, err error) {
	if !cleanAbs(path) || path == "/" {
		return "", nil, fmt.Errorf("%w: checkpoint %.200q: want a clean absolute path of a folder", ErrInvalid, path)
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return "", nil, fmt.Errorf("%w: open checkpoint: %w", ErrInvalid, err)
	}
	defer root.Close()
	folders, err := matchContainers(root, ctrs)
	if err != nil {
		return "", nil, err
	}
	if err := m.unusedName(&cfg); err != nil {
		return "", nil, err
	}
	id, err := m.Run(ctx, cfg)
	if err != nil {
		return "", nil, err
	}
	for i, c := range ctrs {
		var ctr string
		if ctr, err = m.restoreContainer(ctx, id, c, root, folders[i]); err != nil {
			err = fmt.Errorf("restore container %s: %w", c.Name, err)
			break
		}
		out = append(out, Restored{Name: c.Name, ID: ctr})
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return "", nil, errors.Join(err, m.Remove(ctx, id)) // which outlives ctx
	}
	return id, out, nil
}

// unusedName keeps a restore from joining a pod that is there already.
func (m *Manager) unusedName(cfg *Config) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if id, taken := m.names[cfg.nameKey()]; taken {
		return fmt.Errorf("pod %s/%s (uid %s, attempt %d) %w as %s", cfg.Namespace, cfg.Name, cfg.UID, cfg.Attempt, ErrExists, id)
	}
	return nil
}

// matchContainers finds the folder of each container in a pod's checkpoint.
func matchContainers(root *os.Root, ctrs []ContainerConfig) ([]string, error) {
	var about podCheckpoint
	if err := readDump(root, podCheckpointFile, maxPodCheckpoint, &about); err != nil {
		return nil, err
	}
	switch {
	case about.Version != podCheckpointVersion:
		return nil, fmt.Errorf("%w: %s is of version %d, want %d", ErrInvalid, podCheckpointFile, about.Version, podCheckpointVersion)
	case about.Architecture != goruntime.GOARCH:
		return nil, fmt.Errorf("%w: the checkpoint is of another kind of processor (%.20q), and this host is %s", ErrInvalid, about.Architecture, goruntime.GOARCH)
	case len(ctrs) == 0 || len(about.Containers) != len(ctrs):
		return nil, fmt.Errorf("%w: the checkpoint has %d containers, and the request %d", ErrInvalid, len(about.Containers), len(ctrs))
	}
	var out []string
	for _, c := range ctrs {
		i := slices.IndexFunc(about.Containers, func(d checkpointedContainer) bool { return d.Name == c.Name })
		if i < 0 || slices.Contains(out, containerFolder(i)) {
			return nil, fmt.Errorf("%w: the checkpoint has no container %.80q, or it is named twice", ErrInvalid, c.Name)
		}
		out = append(out, containerFolder(i))
	}
	return out, nil
}

func (m *Manager) restoreContainer(ctx context.Context, podID string, c ContainerConfig, root *os.Root, folder string) (string, error) {
	from, err := root.OpenRoot(folder)
	if err != nil {
		return "", fmt.Errorf("%w: open checkpoint: %w", ErrInvalid, err)
	}
	defer from.Close()
	id, err := m.createContainer(ctx, podID, c, from)
	if errors.Is(err, restore.ErrRefused) {
		err = fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return id, err
}

// restoreImages brings the container's changed files into place, and makes images of
// its processes that CRIU may read; c.op is held.
func (m *Manager) restoreImages(ctx context.Context, c *container, spec *specs.Spec) (*runtime.Restore, error) {
	if err := c.sameProcess(spec); err != nil {
		return nil, err
	}
	diff, err := openDump(c.from, checkpointRootfs)
	if err != nil {
		return nil, err
	}
	defer diff.Close()
	if err := m.opts.Images.ApplyDiff(ctx, c.rec.ID, diff); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrInvalid, checkpointRootfs, err)
	}
	images, err := c.from.OpenRoot("checkpoint")
	if err != nil {
		return nil, fmt.Errorf("%w: open the images: %w", ErrInvalid, err)
	}
	defer images.Close()
	to, err := m.opts.Images.RestoreFolder(c.rec.ID)
	if err != nil {
		return nil, err
	}
	m.setContainer(c, func() { c.rec.RestoreDir = to })
	memory := c.rec.Config.Resources.MemoryLimit
	if memory <= 0 {
		var info unix.Sysinfo_t
		if err := unix.Sysinfo(&info); err != nil {
			return nil, fmt.Errorf("measure the host's memory: %w", err)
		}
		memory = int64(uint64(info.Totalram) * uint64(info.Unit)) //nolint:unconvert // 32 bits on some architectures
	}
	return restore.Images(images, to, restore.Request{Spec: spec, Memory: memory})
}

// sameProcess compares what the checkpoint says that it is of with the request. It
// protects nobody, as a stranger may write anything there: it tells of mistakes.
func (c *container) sameProcess(spec *specs.Spec) error {
	var config checkpointedConfig
	if err := readDump(c.from, checkpointConfig, maxContainerDump, &config); err != nil {
		return err
	}
	if config.RootfsImageRef != c.rec.ImageID {
		return fmt.Errorf("%w: the checkpoint is of the image %.80q, and the request's image is %s", ErrInvalid, config.RootfsImageRef, c.rec.ImageID)
	}
	var was specs.Spec
	if err := readDump(c.from, checkpointSpec, maxContainerDump, &was); err != nil {
		return err
	}
	if was.Process == nil {
		return fmt.Errorf("%w: %s has no process", ErrInvalid, checkpointSpec)
	}
	own := func(env []string) []string { // HOSTNAME is the pod's
		return slices.Sorted(slices.Values(slices.DeleteFunc(slices.Clone(env), func(e string) bool { return strings.HasPrefix(e, "HOSTNAME=") })))
	}
	for _, f := range []struct {
		what string
		same bool
	}{
		{"command", slices.Equal(was.Process.Args, spec.Process.Args)},
		{"working directory", was.Process.Cwd == spec.Process.Cwd},
		{"environment", slices.Equal(own(was.Process.Env), own(spec.Process.Env))},
		{"user", was.Process.User.UID == spec.Process.User.UID && was.Process.User.GID == spec.Process.User.GID},
	} {
		if !f.same {
			return fmt.Errorf("%w: the checkpointed process had another %s than the request", ErrInvalid, f.what)
		}
	}
	return nil
}

// openDump opens a plain file of a checkpoint.
func openDump(root *os.Root, name string) (*os.File, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: open %s of the checkpoint: %w", ErrInvalid, name, err)
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("%w: %s of the checkpoint is no plain file", ErrInvalid, name), f.Close())
	}
	return f, nil
}

// readDump decodes a JSON file of at most limit bytes.
func readDump(root *os.Root, name string, limit int64, to any) error {
	f, err := openDump(root, name)
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("it has more than %d bytes", limit)
	}
	if err == nil {
		err = json.Unmarshal(data, to)
	}
	if err != nil {
		return fmt.Errorf("%w: read %s of the checkpoint: %w", ErrInvalid, name, err)
	}
	return nil
}

// dropImages removes the images of processes that run; c.op is held.
func (m *Manager) dropImages(c *container) {
	if c.rec.RestoreDir == "" {
		return
	}
	m.warn("remove the images of restored processes", os.RemoveAll(c.rec.RestoreDir))
	m.setContainer(c, func() { c.rec.RestoreDir = "" })
}
