package images

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	cimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	clog "github.com/containerd/log"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"
)

const (
	namespace   = "pausa"     // containerd keeps every record under a namespace
	snapshotter = "overlayfs" // name of the snapshotter in the metadata

	labelPurpose = "pausa.run/for"           // of a lease
	labelExpire  = "containerd.io/gc.expire" // when the collector may take it away
)

// Options of a Store.
type Options struct {
	Root           string   // kept for good: content, layers, writable layers
	Run            string   // gone at reboot: root file systems are mounted in Run/rootfs
	RegistryConfig string   // folder with a hosts.toml per registry; "" is none
	Pinned         []string // names, where * stands for any letters, of images that are never collected
	DigestOnly     bool     // pull only what is named by its digest
	VerifierDir    string   // folder of programs that each pull asks; "" is none
	GC             GC

	MaxConcurrentPulls  int           // 0 is any number
	PullProgressTimeout time.Duration // how long a registry may send nothing; 0 is for ever

	Log *slog.Logger
}

// Store keeps the images of one host. All its methods may be called at once
// from many goroutines.
type Store struct {
	opts Options
	log  *slog.Logger
	lock *os.File // holds the process id until the store is closed
	// oneString: this kernel is known to take the layers of an overlay in one string only.
	oneString atomic.Bool
	killed    bool // the process before this one did not close the store
	db        *metadata.DB
	closers   []io.Closer
	content   content.Store
	snapshot  snapshots.Snapshotter
	rows      cimages.Store
	leases    leases.Manager
	platform  platforms.MatchComparer
	noIndex   bool // overlayfs knows the option index

	marking   sync.Mutex // of layers that are not on the disk yet
	unpackers int        // under marking: who unpacks, or writes back

	busy    *keyed              // by blob or layer: no two imports or pulls do one twice
	unpacks *semaphore.Weighted // of all imports and pulls: layers that are unpacked at once
	ranges  *semaphore.Weighted // of all pulls: blobs that come in parts at once
	ranging ranging
	mounts  *keyed // by container id
	flights *flights
	rootfs  rootfsFolder
	spares  *spares
	full    atomic.Bool // something failed for want of space: what is left of it has no record
	pulling sync.Map    // by id, the leases of pulls that are under way

	mu       sync.Mutex // names of images, and who uses which
	used     map[string]string
	lastUsed map[string]time.Time // by image id, when the last container that had it went
	cache    atomic.Pointer[catalog]
	parsed   map[string]*parsed // by manifest digest, under mu
	usage    usageCache
	work     sync.WaitGroup // background removal and collection
	collect  chan struct{}
	sweeping sync.Mutex
	stop     context.CancelFunc
	pins     []string                // full names and patterns of pinned images
	turns    chan struct{}           // of pulls; nil when any number may run
	measure  func() (float64, error) // instead of fullness, in tests
}

// Open opens the store in o.Root, and makes it when it is not there. Leftovers
// of a killed process are collected. A database that cannot be read is set
// aside and made again from the content; Open then succeeds and says so in the log.
func Open(ctx context.Context, o Options) (*Store, error) {
	s := &Store{
		opts: o, log: o.Log, platform: anyPlatform{platforms.Default()},
		busy: newKeyed(), unpacks: semaphore.NewWeighted(maxUnpacks()), ranges: semaphore.NewWeighted(rangedBlobs), ranging: defaultRanging(), mounts: newKeyed(), flights: newFlights(), spares: newSpares(),
		used: map[string]string{}, lastUsed: map[string]time.Time{}, parsed: map[string]*parsed{}, collect: make(chan struct{}, 1),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if o.MaxConcurrentPulls > 0 {
		s.turns = make(chan struct{}, o.MaxConcurrentPulls)
	}
	clog.L.Logger.SetOutput(containerdLog{s.log})
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open image store %s: %w", o.Root, err), s.shut())
	}
	return s, nil
}

func (s *Store) open(ctx context.Context) error {
	if !filepath.IsAbs(s.opts.Root) || !filepath.IsAbs(s.opts.Run) {
		return fmt.Errorf("folders %q and %q must be absolute paths", s.opts.Root, s.opts.Run)
	}
	for _, dir := range []string{s.opts.Root, s.path("rw"), s.path("trash")} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
	}
	pins, err := fullNames(s.opts.Pinned)
	if err != nil {
		return err
	}
	s.pins = pins
	if err := s.lockRoot(); err != nil {
		return err
	}
	_, err = os.Stat("/sys/module/overlay/parameters/index")
	s.noIndex = err == nil
	s.rootfs.path = filepath.Join(s.opts.Run, "rootfs")
	if err := s.openDatabases(ctx); err != nil {
		return err
	}
	if err := s.loadUsed(); err != nil {
		return err
	}
	s.dropViews()
	if err := s.dropUnwritten(ctx); err != nil {
		return fmt.Errorf("look for layers that were not written: %w", err)
	}
	s.dropLeases(ctx)
	if err := s.refresh(ctx); err != nil {
		return err
	}
	if err := s.emptyTrash(); err != nil {
		return err
	}
	s.rebuildAll(ctx)
	if s.killed {
		if err := s.sweep(in(ctx), 0); err != nil {
			s.log.Warn("what the killed process left cannot be looked for", "err", err)
		}
	}
	background, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.work.Go(func() { s.collector(background) })
	if s.opts.GC.HighPercent > 0 {
		s.work.Go(func() { s.watchDisk(background) })
	}
	s.reserve()
	return nil
}

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.opts.Root}, elem...)...)
}

// in puts containerd's namespace into ctx.
func in(ctx context.Context) context.Context { return namespaces.WithNamespace(ctx, namespace) }

func (s *Store) lockRoot() error {
	f, err := os.OpenFile(s.path("lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		pid := make([]byte, 16)
		n, _ := f.ReadAt(pid, 0)
		return errors.Join(fmt.Errorf("%w (process %s): stop it, or use another state folder", ErrLocked, pid[:n]), f.Close())
	}
	s.lock = f
	if info, err := f.Stat(); err == nil {
		s.killed = info.Size() > 0
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%d", os.Getpid())
	return err
}

// Close stops pulls, waits for background removal and closes the store. Root file systems
// stay mounted: containers outlive this process.
func (s *Store) Close() error {
	s.flights.close()
	s.stop()
	s.closeSpares()
	s.work.Wait()
	err := s.rootfs.close()
	if !s.full.Load() { // else the next start has to look around, as after a kill
		err = errors.Join(err, s.lock.Truncate(0))
	}
	return errors.Join(err, s.shut())
}

func (s *Store) shut() error {
	var err error
	for i := len(s.closers) - 1; i >= 0; i-- {
		err = errors.Join(err, s.closers[i].Close())
	}
	if s.lock != nil {
		err = errors.Join(err, s.lock.Close())
	}
	return err
}

// dropLeases lets go of what a killed import kept. Those of pulls stay until
// they expire, so that the next pull goes on where the last one stopped.
func (s *Store) dropLeases(ctx context.Context) {
	ctx = in(ctx)
	all, err := s.leases.List(ctx)
	if err != nil {
		s.log.Warn("leases cannot be listed", "err", err)
		return
	}
	for _, l := range all {
		if _, ok := l.Labels[labelExpire]; ok {
			continue
		}
		if err := s.leases.Delete(ctx, l); err != nil {
			s.log.Warn("a lease of a stopped import cannot be removed", "lease", l.ID, "err", err)
		}
	}
}

// collector removes content that nothing refers to, each time it is asked and
// once at the start.
func (s *Store) collector(ctx context.Context) {
	s.garbage()
	for {
		select {
		case <-ctx.Done():
			return
		case _, ok := <-s.collect:
			if !ok {
				return
			}
			s.garbage()
		}
	}
}

// sweep makes the next collection look at what is on the disk, not only at
// what is recorded: a killed process leaves content without a record. The
// metadata does so after it lost a blob and a layer.
func (s *Store) sweep(ctx context.Context, patience time.Duration) error {
	const name = "sweep"
	if err := s.removeUnbegun(patience); err != nil {
		return err
	}
	err := content.WriteBlob(ctx, s.content, name, strings.NewReader(name), ocispec.Descriptor{Size: int64(len(name))})
	if err != nil {
		return err
	}
	if _, err := s.snapshot.Prepare(ctx, name, ""); err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	return nil
}

// newIngest is how long a writer of content may take to make its files.
const newIngest = time.Second

// removeUnbegun removes the folders of writers that were stopped before they had
// made their data, the last of their files: nobody can go on with these. One that is
// being made now gets the time for it: patience, 0 where nobody writes.
func (s *Store) removeUnbegun(patience time.Duration) error {
	unbegun := func(dirs []string) []string {
		return slices.DeleteFunc(dirs, func(dir string) bool {
			_, err := os.Stat(filepath.Join(dir, "data"))
			return err == nil
		})
	}
	all, err := filepath.Glob(s.path("content", "ingest", "*"))
	if all = unbegun(all); len(all) > 0 {
		time.Sleep(patience)
	}
	for _, dir := range unbegun(all) {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	return err
}

// sweepIfFull looks for what work that the disk had no space for has left.
func (s *Store) sweepIfFull() {
	if !s.full.Swap(false) {
		return
	}
	if err := s.evenIfFull(func() error { return s.sweep(in(context.Background()), newIngest) }); err != nil {
		s.full.Store(true)
		s.log.Warn("what a full disk left behind cannot be looked for; it is tried again at the next change", "err", err)
	}
}

// garbage collects; it returns when the disk space is free.
func (s *Store) garbage() {
	s.sweeping.Lock()
	defer s.sweeping.Unlock()
	s.sweepIfFull()
	err := s.evenIfFull(func() error {
		_, err := s.db.GarbageCollect(in(context.Background()))
		return err
	})
	if err != nil {
		s.log.Warn("unused image content cannot be removed; it is tried again at the next change", "err", err)
	}
	s.usage.forget()
	s.reserve() // again, when Remove had to use it
}

// collectSoon asks the collector to run; a request that waits is enough for all.
func (s *Store) collectSoon() {
	select {
	case s.collect <- struct{}{}:
	default:
	}
}

// anyPlatform also takes images that do not say what they are for, as small
// registries and hand-made archives have them.
type anyPlatform struct{ platforms.MatchComparer }

func (a anyPlatform) Match(p platforms.Platform) bool {
	if p.Architecture == "" && (p.OS == "" || p.OS == "linux") {
		return true
	}
	return a.MatchComparer.Match(p)
}

// containerdLog passes the log lines of containerd's libraries on. What they
// warn about also comes as an error or is of no use to anybody here.
type containerdLog struct{ log *slog.Logger }

func (c containerdLog) Write(line []byte) (int, error) {
	level := slog.LevelDebug
	if bytes.Contains(line, []byte("level=error")) {
		level = slog.LevelWarn
	}
	c.log.Log(context.Background(), level, "containerd: "+strings.TrimSpace(string(line)))
	return len(line), nil
}
