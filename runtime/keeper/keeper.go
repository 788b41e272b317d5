//go:build cgo

// Package keeper is the process side of Pausa: the parent of every pause and
// container on a node. It starts them, copies their output to log files, gives
// terminals, collects exits, and answers a Client over a unix socket. All that
// it must know after a crash is in files below its run directory.
package keeper

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/sirupsen/logrus" //nolint:depguard // libcontainer's, to be silenced
	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/runtime"
)

// tidyDelay: libcontainer leaves a pidfd to the collector for each process that
// it has started, and an idle keeper would not collect for minutes. The memory
// that a burst of starts took goes back to the host then, too.
const tidyDelay = 2 * time.Second

// Options say where a keeper lives. RunDir is the daemon's run directory; the
// keeper uses the folder "keeper" in it.
type Options struct {
	RunDir  string
	Version string
	BuildID string
	Log     *slog.Logger
	Held    Held // over an earlier keeper's death; Open takes it
}

// Keeper owns the pauses and containers of one run directory.
type Keeper struct {
	dir     string // RunDir/keeper
	info    runtime.KeeperInfo
	log     *slog.Logger
	limits  limits
	unified bool // cgroup v2 alone
	// throttle are the folders that count the thermal events of processors.
	throttle []string
	lock     *os.File
	image    *os.File // the pause program in memory
	root     *os.File // what pauses see as their root; made at first use, guarded by mu
	scratch  pipePool
	nulls    nulls
	tidy     *time.Timer // runs the collector some time after the last process has ended
	filters  *filterCache
	groups   groupFiles
	// hierarchies are the roots of the cgroup hierarchies by controller, "" for cgroup v2's.
	hierarchies func() (map[string]string, error)

	mu         sync.Mutex // guards the maps below, never held while waiting
	pods       map[string]*pod
	containers map[string]*container
	exits      map[chan runtime.Exit]struct{}
	holders    map[chan *container]struct{}
	podMemory  map[string]*podMemory // by the cgroup's folder
	files      map[string]int        // the daemon's own, by name
	orphans    map[int]bool          // zombies that nobody has collected so far; the reaper's alone
}

// Open takes the run directory and adopts what an earlier keeper left running.
// The error names a second keeper on the same directory.
func Open(o Options) (*Keeper, error) {
	k := &Keeper{
		dir:        filepath.Join(o.RunDir, "keeper"),
		info:       runtime.KeeperInfo{Version: o.Version, BuildID: o.BuildID, Pid: os.Getpid(), StartedAt: time.Now()},
		log:        o.Log,
		unified:    cgroups.IsCgroup2UnifiedMode(),
		pods:       map[string]*pod{},
		containers: map[string]*container{},
		exits:      map[chan runtime.Exit]struct{}{},
		holders:    map[chan *container]struct{}{},
		podMemory:  map[string]*podMemory{},
		orphans:    map[int]bool{},
		tidy:       time.AfterFunc(tidyDelay, debug.FreeOSMemory),
	}
	k.hierarchies = sync.OnceValues(func() (map[string]string, error) { return hierarchies(k.unified) })
	defer o.Held.close()
	if err := k.open(o.Held); err != nil {
		return nil, errors.Join(err, k.Close())
	}
	return k, nil
}

func (k *Keeper) open(held Held) (err error) {
	for _, folder := range []string{"", "pods", "containers", "lc", "oci"} {
		if err := os.MkdirAll(filepath.Join(k.dir, folder), 0o700); err != nil {
			return fmt.Errorf("make keeper's folder: %w", err)
		}
	}
	if k.lock, err = takeLock(filepath.Join(k.dir, "lock")); err != nil {
		return err
	}
	// Orphans of shared PID namespaces come to the keeper, not to the host's init.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become subreaper: %w", err)
	}
	if k.image, err = pauseImage(); err != nil {
		return err
	}
	k.limits = readLimits(k.log)
	k.throttle, _ = filepath.Glob("/sys/devices/system/cpu/cpu*/thermal_throttle")
	// What libcontainer logs is in the errors that it returns, too.
	logrus.SetOutput(io.Discard)
	if k.filters, err = openFilterCache(k.dir, k.info.BuildID, k.log); err != nil {
		return err
	}
	k.adopt(held)
	return nil
}

// Close gives the run directory free. Pauses and containers go on.
func (k *Keeper) Close() error {
	var errs []error
	for _, c := range []io.Closer{k.image, k.root, k.nulls.folder, k.lock} {
		if f, ok := c.(*os.File); ok && f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// takeLock proves by a lock that dies with the process that there is one keeper.
func takeLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return f, nil
	}
	_ = f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("%w %s: use it, or give this one its own run directory", runtime.ErrKeeperHeld, path)
	}
	return nil, fmt.Errorf("lock %s: %w", path, err)
}

func (k *Keeper) pod(id string) (*pod, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if p, ok := k.pods[id]; ok {
		return p, nil
	}
	return nil, fmt.Errorf("pod %q: %w", id, runtime.ErrNotFound)
}

func (k *Keeper) container(id string) (*container, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if c, ok := k.containers[id]; ok {
		return c, nil
	}
	return nil, fmt.Errorf("container %q: %w", id, runtime.ErrNotFound)
}
