package images

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
)

// reserveSize is given back when the disk is full, so that removing works then.
const reserveSize = 2 << 20

// Remove takes away the name ref, and the image with its last name. By id, or
// a part of one, it takes all names. The error wraps ErrNotFound, ErrInvalid,
// or ErrInUse with the container that has the image mounted. Disk space comes
// back soon after, in the background.
func (s *Store) Remove(ctx context.Context, ref string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.cache.Load()
	r, err := c.find(ref)
	if err != nil {
		if full, e := Normalize(ref); e == nil && c.targets[full].Digest != "" {
			return s.forget(ctx, []string{full}) // damaged, and so not in the list
		}
		return err
	}
	names := meant(c, r, ref)
	if len(names) == len(r.names) {
		for container, image := range s.used {
			if image == r.ID {
				return fmt.Errorf("%w: %s %s", ErrInUse, short(ref), usage(container))
			}
		}
	}
	return s.forget(ctx, names)
}

// meant are the names of r that ref stands for.
func meant(c *catalog, r *record, ref string) []string {
	full, err := alternatives(ref)
	if err != nil {
		return r.names
	}
	for _, f := range full {
		if c.byName[f] == r {
			return []string{f}
		}
		repo, _, ok := strings.Cut(f, "@")
		if !ok || !slices.Contains(r.RepoDigests, f) {
			continue
		}
		var names []string
		for _, n := range r.names {
			if strings.HasPrefix(n, repo+":") || strings.HasPrefix(n, repo+"@") {
				names = append(names, n)
			}
		}
		return names
	}
	return r.names
}

// forget deletes records of images. s.mu must be held.
func (s *Store) forget(ctx context.Context, names []string) error {
	ctx = in(ctx)
	var all error
	for _, n := range names {
		err := s.evenIfFull(func() error { return s.rows.Delete(ctx, n) })
		if err != nil && !errdefs.IsNotFound(err) {
			all = errors.Join(all, fmt.Errorf("remove image %s: %w", n, err))
		}
	}
	all = errors.Join(all, s.refreshLocked(ctx))
	s.collectSoon()
	return all
}

// evenIfFull does what frees space; on a full disk with the space that is held
// back. The next collection takes that back.
func (s *Store) evenIfFull(free func() error) error {
	err := free()
	if !errors.Is(err, syscall.ENOSPC) {
		return err
	}
	s.full.Store(true)
	_ = os.Remove(s.path("reserve"))
	return free()
}

// reserve keeps some space of the disk back for what frees more.
func (s *Store) reserve() {
	f, err := os.OpenFile(s.path("reserve"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return // a full disk: what it is for
	}
	if err := syscall.Fallocate(int(f.Fd()), 0, 0, reserveSize); err != nil {
		s.log.Warn("no disk space can be held back for removing images", "err", err)
	}
	_ = f.Close()
}
