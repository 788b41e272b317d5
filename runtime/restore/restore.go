// Package restore reads what a stranger says CRIU has written of a container, and
// makes images of it that CRIU may read.
//
// CRIU gives processes whatever its images say, with root's rights, before anybody
// can look at them. So nothing gets to it as it came: each image is decoded as a whole,
// compared with the request, and written anew, without what is not known here. What
// says where processes run (namespaces, groups, mounts, host name) is the request's alone.
package restore

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/pausa-run/pausa/runtime"
)

// ErrRefused is what Images wraps when the images do not belong to the request, or are none.
var ErrRefused = errors.New("checkpoint is refused")

const (
	maxFiles = 1 << 14  // of one container: six for each process, and some
	maxImage = 16 << 20 // bytes of an image that is decoded
)

// Request is what the processes may be.
type Request struct {
	Spec *specs.Spec
	// Memory bounds the bytes of the processes' pages.
	Memory int64

	files int    // the most files of a container; 0 is maxFiles
	host  string // where the host's proc and sys are, "" for the root; tests have others
}

// cleaner makes images of one folder from those of another.
type cleaner struct {
	from *os.Root
	to   *os.Root
	Request
	left  map[string]bool // files that nothing has led to yet
	paths *os.Root        // the container's root file system

	filters []*seccomp.SeccompFilter
	tasks   []*task
	files   map[uint32]*file
	mounts  map[uint32]*mount // by id
	space   int64             // bytes of pages that are still allowed
}

// Images writes clean images of the folder from to the empty folder to. Its answer
// is what CRIU is to be called with. The error wraps ErrRefused and names the file.
func Images(from *os.Root, to string, r Request) (*runtime.Restore, error) {
	if err := supported(r.Spec); err != nil {
		return nil, err
	}
	out, err := os.OpenRoot(to)
	if err != nil {
		return nil, fmt.Errorf("open folder for images: %w", err)
	}
	defer out.Close()
	rootfs, err := os.OpenRoot(r.Spec.Root.Path)
	if err != nil {
		return nil, fmt.Errorf("open root file system: %w", err)
	}
	defer rootfs.Close()
	c := &cleaner{from: from, to: out, Request: r, paths: rootfs, space: r.Memory}
	for _, step := range []func() error{
		c.list, c.inventory, c.seccomp, c.processes, c.mountpoints, c.allFiles, c.eachTask, c.times, c.tmpfs, c.nothingLeft,
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return &runtime.Restore{Dir: to}, nil
}

// supported refuses requests whose confinement a restore cannot give.
func supported(spec *specs.Spec) error {
	refuse := func(why string) error { return fmt.Errorf("%w: the request %s", ErrRefused, why) }
	if spec.Process.Terminal {
		return refuse("has a terminal")
	}
	if spec.Root.Readonly {
		return refuse("has a read-only root file system, which CRIU makes writable")
	}
	want := map[specs.LinuxNamespaceType]bool{ // whether it is one to be joined
		specs.MountNamespace: false, specs.PIDNamespace: false, specs.NetworkNamespace: true, specs.UTSNamespace: true, specs.IPCNamespace: true,
	}
	for _, n := range spec.Linux.Namespaces {
		if n.Type == specs.UserNamespace {
			return refuse("has a user namespace, which CRIU cannot join")
		}
		if joined, ok := want[n.Type]; ok && joined == (n.Path != "") {
			delete(want, n.Type)
		}
	}
	if len(want) > 0 {
		missing := slices.Sorted(maps.Keys(want))
		return refuse(fmt.Sprintf("shares a namespace with the host, or with other containers, that a restore needs otherwise: %v", missing))
	}
	if p := spec.Linux.RootfsPropagation; p != "" && p != "rprivate" && p != "private" {
		return refuse("shares mounts with the host (propagation " + p + ")")
	}
	return nil
}

// regenerated are images that are dropped: what they say is the request's to say.
var regenerated = regexp.MustCompile(`^(cgroup\.img|descriptors\.json|utsns-\d+\.img|ipcns-var-\d+\.img|netns-\d+\.img|stats-dump)$`)

// list refuses what is no plain file, and too many of them.
func (c *cleaner) list() error {
	dir, err := c.from.Open(".")
	if err != nil {
		return fmt.Errorf("%w: open its folder: %w", ErrRefused, err)
	}
	defer dir.Close()
	c.left = map[string]bool{}
	for {
		entries, err := dir.ReadDir(1024)
		for _, e := range entries {
			if !e.Type().IsRegular() {
				return refuse(e.Name(), "it is no plain file (%s)", e.Type())
			}
			if !regenerated.MatchString(e.Name()) {
				c.left[e.Name()] = true
			}
		}
		if limit := cmp.Or(c.Request.files, maxFiles); len(c.left) > limit {
			return fmt.Errorf("%w: it has more than %d files", ErrRefused, limit)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: list its files: %w", ErrRefused, err)
		}
	}
}

func (c *cleaner) nothingLeft() error {
	if len(c.left) == 0 {
		return nil
	}
	names := slices.SortedFunc(maps.Keys(c.left), cmp.Compare)
	return refuse(names[0], "nothing that is known leads to it (%d such files): processes that use what it holds cannot be restored", len(names))
}

// take opens a file that must be there, once.
func (c *cleaner) take(name string) (*os.File, error) {
	if !c.left[name] {
		return nil, refuse(name, "it is missing, or named twice")
	}
	delete(c.left, name)
	f, err := c.from.OpenFile(name, os.O_RDONLY|openFlags, 0)
	if err != nil {
		return nil, refuse(name, "open it: %v", err)
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		_ = f.Close()
		return nil, refuse(name, "it is no plain file")
	}
	return f, nil
}

// create makes a file of the clean images.
func (c *cleaner) create(name string) (*os.File, error) {
	f, err := c.to.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("write image: %w", err)
	}
	return f, nil
}

// refuse names the file and what is wrong in it.
func refuse(name, format string, args ...any) error {
	return fmt.Errorf("%w: %.100q: %s", ErrRefused, name, strings.ToValidUTF8(fmt.Sprintf(format, args...), "?"))
}
