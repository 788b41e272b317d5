package images

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// usageCache remembers what was counted.
type usageCache struct {
	mu    sync.Mutex
	known bool
	all   Usage
}

func (c *usageCache) forget() {
	c.mu.Lock()
	c.known = false
	c.mu.Unlock()
}

// FSUsage gives what images take: their blobs and their unpacked layers. It is
// counted from records after a change, and costs nothing else.
func (s *Store) FSUsage(ctx context.Context) (Usage, error) {
	s.usage.mu.Lock()
	defer s.usage.mu.Unlock()
	if s.usage.known {
		return s.usage.all, nil
	}
	u := Usage{Path: s.opts.Root}
	ctx = in(ctx)
	err := s.content.Walk(ctx, func(i content.Info) error {
		u.Bytes += uint64(i.Size)
		u.Inodes++
		return nil
	})
	if err != nil {
		return Usage{}, fmt.Errorf("count image content: %w", err)
	}
	err = s.snapshot.Walk(ctx, func(ctx context.Context, i snapshots.Info) error {
		n, err := s.snapshot.Usage(ctx, i.Name)
		if errdefs.IsNotFound(err) {
			return nil
		}
		u.Bytes += uint64(n.Size)
		u.Inodes += uint64(n.Inodes)
		return err
	})
	if err != nil {
		return Usage{}, fmt.Errorf("count image layers: %w", err)
	}
	s.usage.all, s.usage.known = u, true
	return u, nil
}

// WritableUsage counts what the writable layer of a container takes: it walks its
// folders. Without a layer the error wraps fs.ErrNotExist.
func (s *Store) WritableUsage(ctx context.Context, containerID string) (Usage, error) {
	if err := checkContainerID(containerID); err != nil {
		return Usage{}, fmt.Errorf("count writable layer of %s: %w", short(containerID), err)
	}
	u, err := count(ctx, s.path("rw", containerID, "upper"))
	if err != nil {
		return Usage{}, fmt.Errorf("count writable layer of %s: %w", containerID, err)
	}
	return u, nil
}

// count adds up what is below dir; a file with several names counts once.
func count(ctx context.Context, dir string) (Usage, error) {
	u := Usage{Path: dir}
	seen := map[uint64]bool{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		var info fs.FileInfo
		if err == nil {
			info, err = d.Info()
		}
		if path != dir && errors.Is(err, os.ErrNotExist) {
			return nil // removed meanwhile
		}
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		if st.Nlink > 1 && !d.IsDir() {
			if seen[st.Ino] {
				return nil
			}
			seen[st.Ino] = true
		}
		u.Bytes += uint64(st.Blocks) * 512
		u.Inodes++
		return nil
	})
	return u, err
}
