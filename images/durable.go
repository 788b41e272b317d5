package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/internal/atomicfile"
	"github.com/pausa-run/pausa/internal/boot"
)

// Blobs and databases are on the disk when they are recorded; the files of
// unpacked layers are written back by the kernel when it likes. A mark says
// since when there may be layers that are not on the disk yet; it goes when
// they are. If the machine stops before that, they are unpacked again.

// unwritten is the mark, in the file unwritten.json.
type unwritten struct {
	Boot  string    `json:"boot"` // of the kernel that had the files in memory
	Since time.Time `json:"since"`
}

func (s *Store) markFile() string { return s.path("unwritten.json") }

// unpacking makes the mark, and gives what is to be called when the unpacking
// has ended: the files are written back then, behind the caller's back.
func (s *Store) unpacking() (done func(), err error) {
	s.marking.Lock()
	defer s.marking.Unlock()
	if _, err := os.Stat(s.markFile()); err != nil {
		id, err := boot.ID()
		if err != nil {
			return nil, err
		}
		data, err := json.Marshal(unwritten{id, time.Now()})
		if err != nil {
			return nil, err
		}
		if err := atomicfile.WriteSync(s.markFile(), data, 0o600); err != nil {
			return nil, fmt.Errorf("note that layers are unpacked: %w", err)
		}
	}
	s.unpackers++
	return func() { s.work.Go(s.writeBack) }, nil
}

// writeBack brings all files of unpacked layers to the disk.
func (s *Store) writeBack() {
	err := syncFolder(s.opts.Root)
	s.marking.Lock()
	defer s.marking.Unlock()
	if s.unpackers--; s.unpackers > 0 {
		return // whoever is last removes the mark
	}
	if err == nil {
		err = os.Remove(s.markFile())
	}
	if err != nil {
		s.log.Warn("unpacked layers cannot be written back; they are unpacked again after a reboot", "err", err)
	}
}

// syncFolder writes back the file system of a folder.
func syncFolder(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}

// dropUnwritten removes layers that an earlier kernel may not have written. An
// image is unpacked again when it is mounted.
func (s *Store) dropUnwritten(ctx context.Context) error {
	var mark unwritten
	err := atomicfile.ReadJSON(s.markFile(), &mark)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	now, bootErr := boot.ID()
	if bootErr != nil {
		return bootErr
	}
	if err == nil && mark.Boot == now { // this kernel still has them
		s.unpackers++
		s.work.Go(s.writeBack)
		return nil
	}
	// A mark that cannot be read stands for all layers.
	var young []snapshots.Info
	err = s.snapshot.Walk(in(ctx), func(_ context.Context, i snapshots.Info) error {
		if i.Created.After(mark.Since) {
			young = append(young, i)
		}
		return nil
	})
	if err != nil {
		return err
	}
	// A layer goes before the one below it, which is older.
	slices.SortFunc(young, func(a, b snapshots.Info) int { return b.Created.Compare(a.Created) })
	for _, i := range young {
		if err := s.snapshot.Remove(in(ctx), i.Name); err != nil {
			return fmt.Errorf("remove layer %s: %w", i.Name, err)
		}
	}
	if len(young) > 0 {
		s.log.Warn("the machine stopped before unpacked layers were on the disk: they are unpacked again", "layers", len(young))
	}
	return os.Remove(s.markFile())
}
