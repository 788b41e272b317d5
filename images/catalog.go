package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	cimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/pausa-run/pausa/internal/atomicfile"
)

// parsed is what the content says of one image; it never changes.
type parsed struct {
	manifest ocispec.Descriptor
	config   ocispec.Descriptor
	image    ocispec.Image
	size     int64
	chain    []string // snapshot names, lowest layer first

	mu     sync.Mutex
	layers *layers // set when the image is first mounted
}

// record is one image in the catalog.
type record struct {
	Image
	*parsed
	names []string // of containerd's image records, those without a name too
}

// catalog is all images at one moment.
type catalog struct {
	list    []Image // newest first
	byID    map[string]*record
	byName  map[string]*record
	targets map[string]ocispec.Descriptor
}

// List gives all images, the newest first. The caller may keep the list but
// not change what the images point to.
func (s *Store) List(context.Context) ([]Image, error) {
	return slices.Clone(s.cache.Load().list), nil
}

// Get finds an image by name, by name@digest, by id, or by the first digits of
// an id (at least six, with no second image that has them).
// The error wraps ErrNotFound or ErrInvalid.
func (s *Store) Get(_ context.Context, ref string) (Image, error) {
	r, err := s.cache.Load().find(ref)
	if err != nil {
		return Image{}, err
	}
	return r.Image, nil
}

func (c *catalog) find(ref string) (*record, error) {
	if r, ok := c.byID[ref]; ok {
		return r, nil
	}
	if !strings.HasPrefix(ref, namelessPrefix) {
		names, err := alternatives(ref)
		if _, hex := idPrefix(ref); err != nil && !hex {
			return nil, err
		}
		for _, n := range names {
			if r := c.named(n); r != nil {
				return r, nil
			}
		}
	}
	if hex, ok := idPrefix(ref); ok {
		return c.byPrefix(ref, hex)
	}
	return nil, fmt.Errorf("%w: %s: import or pull it first", ErrNotFound, short(ref))
}

// named finds a full name, or repository@digest whatever tags it has.
func (c *catalog) named(full string) *record {
	if r, ok := c.byName[full]; ok {
		return r
	}
	if !strings.Contains(full, "@") {
		return nil
	}
	for _, r := range c.byID {
		if slices.Contains(r.RepoDigests, full) {
			return r
		}
	}
	return nil
}

func (c *catalog) byPrefix(ref, hex string) (*record, error) {
	var found *record
	for id, r := range c.byID {
		if !strings.HasPrefix(strings.TrimPrefix(id, namelessPrefix), hex) {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("%w %q: several images have an id that begins so: give more digits", ErrInvalid, ref)
		}
		found = r
	}
	if found == nil {
		return nil, fmt.Errorf("%w: %s: import or pull it first", ErrNotFound, short(ref))
	}
	return found, nil
}

// refresh reads the catalog from the metadata again. Records whose content is
// damaged are left out and named in the log.
func (s *Store) refresh(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refreshLocked(ctx)
}

func (s *Store) refreshLocked(ctx context.Context) error {
	ctx = in(context.WithoutCancel(ctx))
	rows, err := s.rows.List(ctx)
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	c := &catalog{byID: map[string]*record{}, byName: map[string]*record{}, targets: map[string]ocispec.Descriptor{}}
	seen := map[digest.Digest]bool{}
	for _, row := range rows {
		c.targets[row.Name] = row.Target
		p, err := s.parse(ctx, row.Target)
		if err != nil {
			s.log.Warn("an image is damaged and is not listed: import or pull it again", "image", row.Name, "err", err)
			continue
		}
		seen[row.Target.Digest] = true
		c.add(row, p)
	}
	for d := range s.parsed {
		if !seen[digest.Digest(d)] {
			delete(s.parsed, d)
		}
	}
	s.pin(c)
	c.sort()
	s.cache.Store(c)
	maps.DeleteFunc(s.lastUsed, func(id string, _ time.Time) bool { return c.byID[id] == nil })
	s.usage.forget()
	s.dropSpares(func(image string) bool { return c.byID[image] == nil })
	if err := atomicfile.WriteJSON(s.path("names.json"), c.targets); err != nil {
		s.log.Warn("the names of the images cannot be written down a second time", "err", err)
	}
	return nil
}

func (c *catalog) add(row cimages.Image, p *parsed) {
	id := p.config.Digest.String()
	r := c.byID[id]
	if r == nil {
		r = &record{parsed: p, Image: Image{ID: id, Size: p.size, Config: p.image, CreatedAt: row.CreatedAt}}
		c.byID[id] = r
	}
	if row.CreatedAt.Before(r.CreatedAt) {
		r.CreatedAt = row.CreatedAt
	}
	r.names = append(r.names, row.Name)
	c.byName[row.Name] = r
	tag, repoDigest := tagAndDigest(row.Name, row.Target.Digest)
	if tag != "" {
		r.RepoTags = append(r.RepoTags, tag)
	}
	if repoDigest != "" && !slices.Contains(r.RepoDigests, repoDigest) {
		r.RepoDigests = append(r.RepoDigests, repoDigest)
	}
}

func (c *catalog) sort() {
	c.list = make([]Image, 0, len(c.byID))
	for _, r := range c.byID {
		sort.Strings(r.RepoTags)
		sort.Strings(r.RepoDigests)
		c.list = append(c.list, r.Image)
	}
	slices.SortFunc(c.list, func(a, b Image) int {
		if d := b.CreatedAt.Compare(a.CreatedAt); d != 0 {
			return d
		}
		return strings.Compare(a.ID, b.ID)
	})
}

// parse reads manifest and config of target. s.mu must be held.
func (s *Store) parse(ctx context.Context, target ocispec.Descriptor) (*parsed, error) {
	if p, ok := s.parsed[target.Digest.String()]; ok {
		return p, nil
	}
	m, err := cimages.Manifest(ctx, s.content, target, s.matcherOf(target))
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	data, err := content.ReadBlob(ctx, s.content, m.Config)
	if err != nil {
		return nil, fmt.Errorf("read config: %w", err)
	}
	p := &parsed{manifest: target, config: m.Config, size: m.Config.Size}
	if err := json.Unmarshal(data, &p.image); err != nil {
		return nil, fmt.Errorf("read config: %w", err)
	}
	if len(p.image.RootFS.DiffIDs) != len(m.Layers) {
		return nil, errors.New("read config: it names another number of layers than the manifest")
	}
	if target.Digest != m.Config.Digest {
		p.size += target.Size
	}
	for _, l := range m.Layers {
		p.size += l.Size
	}
	for _, d := range identity.ChainIDs(slices.Clone(p.image.RootFS.DiffIDs)) {
		p.chain = append(p.chain, d.String())
	}
	s.parsed[target.Digest.String()] = p
	return p, nil
}

// matcherOf chooses within an index; a single manifest may be for any platform.
func (s *Store) matcherOf(target ocispec.Descriptor) platforms.MatchComparer {
	if cimages.IsIndexType(target.MediaType) {
		return s.platform
	}
	return platforms.All
}

// name gives a target a name, "" for none, and moves the name away from the
// image that had it. An image that so loses its last name stays, without one:
// a container may use it. s.mu must be held.
func (s *Store) name(ctx context.Context, name string, target ocispec.Descriptor) error {
	if name == "" {
		name = target.Digest.String()
	}
	target.Annotations = nil // hostile text has no use here
	row := cimages.Image{Name: name, Target: target, CreatedAt: time.Now()}
	old, known := s.cache.Load().targets[name]
	if !known {
		_, err := s.rows.Create(ctx, row)
		return err
	}
	if old.Digest == target.Digest {
		return nil
	}
	if r := s.cache.Load().byName[name]; r != nil && len(r.names) == 1 {
		if err := s.name(ctx, "", old); err != nil {
			return err
		}
	}
	_, err := s.rows.Update(ctx, row, "target")
	return err
}
