package images

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"

	"github.com/pausa-run/pausa/internal/atomicfile"
)

// brokenPrefix begins the folders of databases that could not be read.
const brokenPrefix = "broken-"

// openDatabases opens content, snapshots and metadata. Damaged databases are
// set aside, with the layers that they described and the content.
func (s *Store) openDatabases(ctx context.Context) error {
	if cause := s.damaged(); cause != nil {
		aside, err := s.setAside()
		if err != nil {
			return fmt.Errorf("set a damaged database aside: %w", errors.Join(cause, err))
		}
		s.log.Error("an image database is damaged and is made again from the content", "cause", cause, "aside", aside)
	}
	store, err := local.NewStore(s.path("content"))
	if err != nil {
		return err
	}
	layers, err := storage.NewMetaStore(s.path("overlay", "metadata.db"))
	if err != nil {
		return err
	}
	sn, err := overlay.NewSnapshotter(s.path("overlay"), overlay.WithUpperdirLabel, overlay.WithMetaStore(layers))
	if err != nil {
		return err
	}
	s.closers = append(s.closers, sn)
	db, err := bolt.Open(s.path("meta.db"), 0o600, &bolt.Options{Timeout: time.Second, FreelistType: bolt.FreelistMapType})
	if err != nil {
		return fmt.Errorf("open meta.db: %w", err)
	}
	s.closers = append(s.closers, db)
	s.db = metadata.NewDB(db, store, map[string]snapshots.Snapshotter{snapshotter: sn})
	if err := s.db.Init(ctx); err != nil {
		return fmt.Errorf("prepare meta.db: %w", err)
	}
	s.content = s.db.ContentStore()
	s.snapshot = s.db.Snapshotter(snapshotter)
	s.rows = metadata.NewImageStore(s.db)
	s.leases = metadata.NewLeaseManager(s.db)
	return nil
}

// damaged says why the databases cannot be used, nil when they can.
func (s *Store) damaged() error {
	names, _ := s.readNames()
	for _, db := range []string{s.path("meta.db"), s.path("overlay", "metadata.db")} {
		info, err := os.Stat(db)
		if errors.Is(err, os.ErrNotExist) || err == nil && info.Size() == 0 {
			if len(names) > 0 {
				return fmt.Errorf("%s is gone", db)
			}
			continue
		}
		if err != nil {
			return err
		}
		if err := checkDatabase(db); err != nil {
			return fmt.Errorf("%s: %w", db, err)
		}
	}
	return nil
}

// checkProcess is the name under which a program that calls CheckMain looks at a database.
const checkProcess = "pausa-check-database"

// CheckMain ends the process if this program was started to look at a database;
// every program that opens a Store calls it first thing in main. Bolt's own check
// of a damaged file may fault in a goroutine of bolt's, which ends the process
// whatever its caller does: so it has one of its own.
func CheckMain() {
	if len(os.Args) != 2 || os.Args[0] != checkProcess {
		return
	}
	if err := checkBolt(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// checkLimit is far above what the check of a sound database takes; that of a
// damaged one may go round in circles.
const checkLimit = 5 * time.Second

// checkDatabase looks at a bolt database in a process of its own.
func checkDatabase(path string) error {
	ctx, cancel := context.WithTimeout(context.Background(), checkLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", path)
	cmd.Args[0] = checkProcess
	cmd.Env = []string{"GOMAXPROCS=1", "GOTRACEBACK=none"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		first, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		return fmt.Errorf("%s: %w", first, err)
	}
	return nil
}

// checkBolt reads a whole bolt database.
func checkBolt(path string) (err error) {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	// Opening writes nothing to a sound file, and neither to one that is damaged.
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second, ReadOnly: true, PreLoadFreelist: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	return db.View(func(tx *bolt.Tx) error {
		if tx.Size() > info.Size() {
			return fmt.Errorf("damaged: cut off at %d of %d bytes", info.Size(), tx.Size())
		}
		var first error
		for e := range tx.Check() {
			if first == nil {
				first = fmt.Errorf("damaged: %w", e)
			}
		}
		return first
	})
}

// setAside moves the databases, the layers, the content and the names into a new folder.
func (s *Store) setAside() (string, error) {
	dir := s.path(brokenPrefix + strconv.FormatInt(time.Now().UnixNano(), 36))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	var all error
	for _, name := range []string{"meta.db", "overlay", "content", "names.json"} {
		if err := os.Rename(s.path(name), filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			all = errors.Join(all, err)
		}
	}
	return dir, all
}

// rebuildAll brings back the images of every folder that was set aside.
func (s *Store) rebuildAll(ctx context.Context) {
	aside, err := filepath.Glob(s.path(brokenPrefix + "*"))
	if err != nil {
		return
	}
	for _, dir := range aside {
		if err := s.rebuild(ctx, dir); err != nil {
			s.log.Error("images were lost with a damaged database: import or pull them again", "aside", dir, "err", err)
		}
	}
}

// rebuild brings images back from content that was set aside: each blob is
// read and checked by its digest, and the layers are unpacked again.
func (s *Store) rebuild(ctx context.Context, aside string) error {
	var names map[string]ocispec.Descriptor
	err := atomicfile.ReadJSON(filepath.Join(aside, "names.json"), &names)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read their names: %w", err)
	}
	var lost error
	for name, target := range names {
		if _, err := s.importFrom(ctx, filepath.Join(aside, "content"), name, target); err != nil {
			lost = errors.Join(lost, fmt.Errorf("image %s: %w", name, err))
			continue
		}
		s.log.Warn("an image was made again from its content", "image", name)
	}
	// What could not be saved now never can: the names are done with.
	if err := os.Remove(filepath.Join(aside, "names.json")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return errors.Join(lost, err)
	}
	// Containers that still run keep their layers open, whatever the folder's name.
	if lost != nil || len(s.used) > 0 {
		s.log.Warn("a damaged database is kept; the folder may be removed when no container runs", "aside", aside)
		return lost
	}
	return os.RemoveAll(aside)
}

// names.json holds what the content cannot say: which image has which name.

func (s *Store) readNames() (map[string]ocispec.Descriptor, error) {
	var names map[string]ocispec.Descriptor
	return names, atomicfile.ReadJSON(s.path("names.json"), &names)
}
