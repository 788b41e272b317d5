package images

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	sparesPerImage = 2 // made ahead
	spareImages    = 4 // of the images that were mounted last
)

// spare is a root file system that is ready and has no container yet. Making
// one takes ten new files and folders, which a busy disk makes slow; handing it
// out is a rename and an attach. Its folder is in the trash, so that the next
// start removes what a killed process left.
type spare struct {
	mnt int    // detached mount
	dir string // with image.json, upper and work
}

// spares are those of each image.
type spares struct {
	mu     sync.Mutex
	closed bool
	ready  map[string][]spare
	making map[string]bool
	recent []string // images, the last one mounted first
}

func newSpares() *spares { return &spares{ready: map[string][]spare{}, making: map[string]bool{}} }

// take gives a spare of an image, if there is one.
func (p *spares) take(image string) (spare, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := p.ready[image]
	if len(list) == 0 {
		return spare{}, false
	}
	p.ready[image] = list[1:]
	return list[0], true
}

// fromSpare gives a new container a spare. When there is none, or it cannot be
// used, ok is false and nothing has happened.
func (s *Store) fromSpare(image, dir, target string) (ok bool) {
	sp, ok := s.spares.take(image)
	if !ok {
		return false
	}
	if _, err := os.Lstat(dir); err == nil || os.Rename(sp.dir, dir) != nil {
		s.waste(sp)
		return false
	}
	if err := attach(sp.mnt, target); err != nil {
		s.log.Debug("a root file system that was made ahead cannot be used", "err", err)
		if err := os.RemoveAll(dir); err != nil {
			s.log.Warn("a writable layer cannot be removed", "folder", dir, "err", err)
		}
		return false
	}
	return true
}

func (s *Store) waste(sp spare) {
	_ = unix.Close(sp.mnt)
	s.work.Go(func() { s.shred(sp.dir) })
}

// refill makes spares of an image in the background, and lets go of those of
// images that were not mounted for long.
func (s *Store) refill(r *record, base *layers) {
	p := s.spares
	p.mu.Lock()
	defer p.mu.Unlock()
	p.recent = append([]string{r.ID}, slices.DeleteFunc(p.recent, func(i string) bool { return i == r.ID })...)
	if len(p.recent) > spareImages {
		s.dropLocked(p.recent[spareImages])
	}
	if p.closed || p.making[r.ID] || len(p.ready[r.ID]) >= sparesPerImage {
		return
	}
	p.making[r.ID] = true
	s.work.Go(func() { s.makeSpares(r, base) })
}

func (s *Store) makeSpares(r *record, base *layers) {
	p := s.spares
	for more := true; more; {
		sp, err := s.makeSpare(r.ID, base)
		// Remove drops the spares after the image is gone from the catalog.
		p.mu.Lock()
		_, listed := s.cache.Load().byID[r.ID]
		keep := err == nil && listed && !p.closed && slices.Contains(p.recent, r.ID)
		if keep {
			p.ready[r.ID] = append(p.ready[r.ID], sp)
		}
		more = keep && len(p.ready[r.ID]) < sparesPerImage
		if !more {
			delete(p.making, r.ID)
		}
		p.mu.Unlock()
		switch {
		case err != nil:
			s.log.Debug("no root file system can be made ahead", "image", r.ID, "err", err)
		case !keep:
			_ = unix.Close(sp.mnt)
			s.shred(sp.dir)
		}
	}
}

func (s *Store) makeSpare(image string, base *layers) (spare, error) {
	dir := s.path("trash", "spare."+strconv.FormatInt(time.Now().UnixNano(), 36))
	err := makeWritable(dir, image, base, MountOptions{})
	if err == nil {
		lower := base.dirs
		if len(lower) == 0 {
			lower = []string{filepath.Join(dir, "work")}
		}
		var mnt int
		if mnt, err = s.detached(lower, dir, false); err == nil {
			return spare{mnt, dir}, nil
		}
	}
	s.shred(dir)
	return spare{}, err
}

// dropSpares lets go of the spares of images that gone names.
func (s *Store) dropSpares(gone func(image string) bool) {
	s.spares.mu.Lock()
	defer s.spares.mu.Unlock()
	for _, image := range slices.Clone(s.spares.recent) {
		if gone(image) {
			s.dropLocked(image)
		}
	}
}

func (s *Store) dropLocked(image string) {
	p := s.spares
	for _, sp := range p.ready[image] {
		s.waste(sp)
	}
	delete(p.ready, image)
	p.recent = slices.DeleteFunc(p.recent, func(i string) bool { return i == image })
}

// closeSpares lets go of all of them, for good.
func (s *Store) closeSpares() {
	s.spares.mu.Lock()
	s.spares.closed = true
	s.spares.mu.Unlock()
	s.dropSpares(func(string) bool { return true })
}
