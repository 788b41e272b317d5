package images

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// gcEvery is how often the daemon looks how full the disk is.
const gcEvery = time.Minute

// GC says when images go without anybody asking. The zero value is never.
type GC struct {
	HighPercent int           // of the file system in use: begin to remove images; 0 is never
	LowPercent  int           // of the file system in use: stop
	MinAge      time.Duration // younger images stay
}

// Removed is one image that Prune or Collect removed.
type Removed struct {
	ID    string   `json:"id"`
	Names []string `json:"names"`
	Size  int64    `json:"size"` // bytes of its blobs, which other images may share
}

// PruneOptions of Prune.
type PruneOptions struct {
	All    bool          // also images with a name
	MinAge time.Duration // younger images stay
	DryRun bool          // only say what would go
}

// Prune removes images that nothing uses: those without a name, or all. Pinned
// images stay. One that cannot be removed does not stop the others; the error
// then joins all reasons.
func (s *Store) Prune(ctx context.Context, o PruneOptions) ([]Removed, error) {
	var out []Removed
	var errs error
	for _, img := range s.unused(o.MinAge) {
		if !o.All && len(img.RepoTags)+len(img.RepoDigests) > 0 {
			continue
		}
		if !o.DryRun {
			if err := s.Remove(ctx, img.ID); err != nil {
				errs = errors.Join(errs, err)
				continue
			}
		}
		out = append(out, removed(&img))
	}
	if !o.DryRun && len(out) > 0 {
		s.garbage()
	}
	return out, errs
}

func removed(img *Image) Removed {
	names := img.RepoTags
	if len(names) == 0 {
		names = img.RepoDigests
	}
	return Removed{img.ID, slices.Clone(names), img.Size}
}

// unused are the images that may go, the one that was used longest ago first.
func (s *Store) unused(minAge time.Duration) []Image {
	s.mu.Lock()
	defer s.mu.Unlock()
	inUse := map[string]bool{}
	for _, image := range s.used {
		inUse[image] = true
	}
	now := time.Now()
	var out []Image
	for _, img := range s.cache.Load().list {
		if !inUse[img.ID] && !img.Pinned && now.Sub(s.lastUse(&img)) >= minAge {
			out = append(out, img)
		}
	}
	slices.SortStableFunc(out, func(a, b Image) int { return s.lastUse(&a).Compare(s.lastUse(&b)) })
	return out
}

// pin marks the images that stay.
func (s *Store) pin(c *catalog) {
	for _, r := range c.byID {
		r.Pinned = slices.ContainsFunc(r.RepoTags, s.pinned) || slices.ContainsFunc(r.RepoDigests, s.pinned)
	}
}

func (s *Store) pinned(name string) bool {
	return slices.ContainsFunc(s.pins, func(p string) bool { return p == name || wild(p, name) })
}

// wild says whether name is as pattern, where * stands for any letters.
func wild(pattern, name string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 || !strings.HasPrefix(name, parts[0]) {
		return false
	}
	name = name[len(parts[0]):]
	for _, p := range parts[1 : len(parts)-1] {
		_, after, ok := strings.Cut(name, p)
		if !ok {
			return false
		}
		name = after
	}
	return strings.HasSuffix(name, parts[len(parts)-1])
}

// fullNames are the settings' names of pinned images, in full; patterns stay.
func fullNames(pinned []string) ([]string, error) {
	var out []string
	for _, p := range pinned {
		if !strings.Contains(p, "*") {
			full, err := Normalize(p)
			if err != nil {
				return nil, fmt.Errorf("pinned image: %w", err)
			}
			p = full
		}
		out = append(out, p)
	}
	return out, nil
}

// lastUse is when an image came or was last seen in use. s.mu must be held.
func (s *Store) lastUse(img *Image) time.Time {
	if at, ok := s.lastUsed[img.ID]; ok && at.After(img.CreatedAt) {
		return at
	}
	return img.CreatedAt
}

// Collect makes room when the file system is fuller than the high mark: images
// that nothing uses go, the one that was used longest ago first, until the low
// mark is reached. One that cannot be removed does not stop the others.
func (s *Store) Collect(ctx context.Context) ([]Removed, error) {
	gc := s.opts.GC
	full, err := s.fullness()
	if err != nil || gc.HighPercent == 0 || full < float64(gc.HighPercent) {
		return nil, err
	}
	s.garbage() // what nobody refers to goes before any image
	var out []Removed
	var errs error
	for _, img := range s.unused(gc.MinAge) {
		if full, err = s.fullness(); err != nil || full <= float64(gc.LowPercent) {
			break
		}
		if err := s.Remove(ctx, img.ID); err != nil {
			errs = errors.Join(errs, err)
			continue
		}
		s.garbage()
		out = append(out, removed(&img))
	}
	if full, failed := s.fullness(); failed == nil && full > float64(gc.LowPercent) {
		errs = errors.Join(errs, fmt.Errorf("the file system of %s is %.0f%% full and no further image can go: remove containers, or other files", s.opts.Root, full))
	}
	return out, errors.Join(err, errs)
}

// fullness is how many percent of the file system are in use, of its bytes or
// its inodes, whichever is more.
func (s *Store) fullness() (float64, error) {
	if s.measure != nil {
		return s.measure()
	}
	var st unix.Statfs_t
	if err := unix.Statfs(s.opts.Root, &st); err != nil {
		return 0, fmt.Errorf("measure the file system of %s: %w", s.opts.Root, err)
	}
	percent := func(total, free uint64) float64 {
		if total == 0 {
			return 0 // a file system without a limit
		}
		return 100 * float64(total-min(free, total)) / float64(total)
	}
	usable := st.Blocks - min(st.Bfree-min(st.Bavail, st.Bfree), st.Blocks) // less what is kept for root
	return max(percent(usable, st.Bavail), percent(st.Files, st.Ffree)), nil
}

// watchDisk looks after the disk until ctx ends.
func (s *Store) watchDisk(ctx context.Context) {
	tick := time.NewTicker(gcEvery)
	defer tick.Stop()
	told := ""
	for {
		gone, err := s.Collect(ctx)
		for _, r := range gone {
			s.log.Info("an image was removed, because the disk is full", "image", r.ID, "names", r.Names, "bytes", r.Size)
		}
		if err != nil && err.Error() != told {
			s.log.Warn("the disk stays full", "err", err)
		}
		told = ""
		if err != nil {
			told = err.Error()
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
