package images

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	cimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/snapshots"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Kinds of an Item.
const (
	KindBlob     = "blob"     // content of an image
	KindLayer    = "layer"    // an unpacked layer
	KindWritable = "writable" // what a container wrote
	KindPartial  = "partial"  // a blob that is not here in full
	KindTrash    = "trash"    // is being removed, or made ahead for the next container
	KindStore    = "store"    // the store's own files and folders
	KindUnknown  = "unknown"  // nobody knows
)

// Item is a file or folder of the store.
type Item struct {
	Path   string   `json:"path"` // below the images folder; "." is all of the store's own
	Kind   string   `json:"kind"`
	Bytes  uint64   `json:"bytes"`            // on the disk
	UsedBy []string `json:"usedBy,omitempty"` // images, containers or works in progress; empty is an orphan
}

// Orphan tells that nothing uses the item.
func (i *Item) Orphan() bool { return len(i.UsedBy) == 0 }

// Account names every byte of the images folder, sorted by path. The sum of all
// bytes is what du says of the folder.
func (s *Store) Account(ctx context.Context) ([]Item, error) {
	a := &account{store: s, ctx: in(ctx), seen: map[inode]bool{}, users: map[string][]string{}}
	if err := a.findUsers(); err != nil {
		return nil, fmt.Errorf("account for images: %w", err)
	}
	a.own = Item{Path: ".", Kind: KindStore, UsedBy: []string{"pausa"}}
	if err := a.visit(""); err != nil {
		return nil, fmt.Errorf("account for images: %w", err)
	}
	return append([]Item{a.own}, a.items...), nil
}

type inode struct{ dev, ino uint64 }

// account is one count of the images folder.
type account struct {
	store *Store
	ctx   context.Context
	seen  map[inode]bool      // files with several names that were counted
	users map[string][]string // by path below the folder
	own   Item
	items []Item
}

// findUsers learns which path belongs to whom.
func (a *account) findUsers() error {
	s := a.store
	c := s.cache.Load()
	layers := map[string][]string{} // by chain id
	for name, target := range c.targets {
		err := cimages.Walk(a.ctx, cimages.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
			a.use(blobPath(d.Digest.String()), name)
			children, err := cimages.Children(ctx, s.content, d)
			if err != nil {
				return nil, nil //nolint:nilerr // not here, as the other platforms of an index
			}
			return children, nil
		}), target)
		if err != nil {
			return err
		}
		if r := c.byName[name]; r != nil {
			for _, chain := range r.chain {
				layers[chain] = append(layers[chain], name)
			}
		}
	}
	if err := a.findLeased(); err != nil {
		return err
	}
	s.mu.Lock()
	for id := range s.used {
		a.use(filepath.Join("rw", id), "container "+id)
	}
	s.mu.Unlock()
	return s.snapshot.Walk(a.ctx, func(_ context.Context, i snapshots.Info) error {
		rel, err := filepath.Rel(s.opts.Root, filepath.Dir(i.Labels[labelUpper]))
		if err != nil {
			return nil //nolint:nilerr // a layer without a folder takes no bytes
		}
		for _, name := range layers[i.Name] {
			a.use(rel, name)
		}
		if i.Kind != snapshots.KindCommitted {
			a.use(rel, "unpacking")
		}
		return nil
	})
}

// findLeased learns what unfinished works keep.
func (a *account) findLeased() error {
	all, err := a.store.leases.List(a.ctx)
	if err != nil {
		return err
	}
	for _, l := range all {
		what := l.Labels[labelPurpose]
		if until := l.Labels[labelExpire]; until != "" {
			what += ", kept until " + until
		}
		resources, err := a.store.leases.ListResources(a.ctx, l)
		if err != nil {
			return err
		}
		for _, r := range resources {
			switch r.Type {
			case "content":
				a.use(blobPath(r.ID), what)
			case "ingests":
				a.use("content/ingest", what)
			}
		}
	}
	return nil
}

func blobPath(digest string) string {
	algorithm, hex, _ := strings.Cut(digest, ":")
	return filepath.Join("content/blobs", algorithm, hex)
}

func (a *account) use(path, by string) {
	if !slices.Contains(a.users[path], by) {
		a.users[path] = append(a.users[path], by)
	}
}

// visit counts what is at rel: as one item, or, when it holds several, each of them.
func (a *account) visit(rel string) error {
	kind, own := kindOf(rel)
	if !own {
		return a.addItem(rel, kind)
	}
	path := a.store.path(rel)
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	a.own.Bytes += a.blocks(info)
	if !info.IsDir() {
		return nil
	}
	list, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, e := range list {
		if err := a.visit(filepath.Join(rel, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// kindOf says what a path below the folder is; own are files of the store and
// folders that hold items.
func kindOf(rel string) (kind string, own bool) {
	dir, name := filepath.Split(rel)
	switch dir = strings.TrimSuffix(dir, "/"); {
	case rel == "", rel == "content", rel == "overlay", rel == "rw", rel == "trash", rel == "content/blobs", rel == "content/ingest", rel == "overlay/snapshots", dir == "content/blobs":
		return KindStore, true
	case rel == "meta.db", rel == "names.json", rel == "reserve", rel == "lock", rel == "unwritten.json", rel == "overlay/metadata.db":
		return KindStore, true
	case dir == "overlay/snapshots":
		return KindLayer, false
	case dir == "rw":
		return KindWritable, false
	case dir == "content/ingest":
		return KindPartial, false
	case dir == "trash", dir == "" && strings.HasPrefix(name, brokenPrefix):
		return KindTrash, false
	case strings.HasPrefix(dir, "content/blobs/"):
		return KindBlob, false
	}
	return KindUnknown, false
}

func (a *account) addItem(rel, kind string) error {
	item := Item{Path: rel, Kind: kind, UsedBy: slices.Clone(a.users[rel])}
	slices.Sort(item.UsedBy)
	switch {
	case kind == KindPartial:
		item.UsedBy = a.users["content/ingest"]
	case strings.HasPrefix(rel, "trash/spare."):
		item.UsedBy = []string{"the next container"}
	}
	err := filepath.WalkDir(a.store.path(rel), func(_ string, d fs.DirEntry, err error) error {
		if err == nil {
			err = a.ctx.Err()
		}
		var info fs.FileInfo
		if err == nil {
			info, err = d.Info()
		}
		if errors.Is(err, os.ErrNotExist) {
			return nil // removed meanwhile
		}
		if err != nil {
			return err
		}
		item.Bytes += a.blocks(info)
		return nil
	})
	a.items = append(a.items, item)
	return err
}

// blocks is what a file takes on the disk; each of several names counts once.
func (a *account) blocks(info fs.FileInfo) uint64 {
	st := info.Sys().(*syscall.Stat_t)
	if st.Nlink > 1 && !info.IsDir() {
		key := inode{st.Dev, st.Ino}
		if a.seen[key] {
			return 0
		}
		a.seen[key] = true
	}
	return uint64(st.Blocks) * 512
}

// GarbageCollect removes what nothing refers to, now.
func (s *Store) GarbageCollect(ctx context.Context) error {
	s.garbage()
	return ctx.Err()
}
