package images

import (
	"context"
	"errors"
	"fmt"
	goruntime "runtime"
	"strings"
	"sync"
	"syscall"

	"github.com/containerd/containerd/v2/core/content"
	cimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/unpack"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"
)

const (
	maxDocument = 8 << 20 // bytes of a manifest, index or config
	maxDepth    = 4       // indexes within indexes
	maxLayers   = 127     // as many as a docker image may have
	maxFetches  = 4       // blobs that one pull fetches at once

	annotationReferenceType = "vnd.docker.reference.type" // set on what belongs to an image and is none
)

// taking brings one image into the store.
type taking struct {
	target  ocispec.Descriptor
	fetch   cimages.HandlerFunc // brings the blob of a descriptor; nil when all are there
	all     bool                // every platform, not only one
	missing string              // what a missing blob means, for the error
	remote  bool                // blobs come from far: the disk is asked for room before

	platform platforms.MatchComparer // nil is this host's
	wanted   string                  // what platform is called, for the error

	mu    sync.Mutex
	depth map[digest.Digest]int
	read  map[digest.Digest]bool
	size  int64 // bytes of the blobs of all manifests that were read
}

// take fetches what is under t.target and unpacks each layer as soon as it is
// there, whatever became of those below it; they are put onto each other in order. The caller holds a lease in ctx.
func (s *Store) take(ctx context.Context, t *taking) error {
	t.depth, t.read = map[digest.Digest]int{t.target.Digest: 0}, map[digest.Digest]bool{}
	if t.platform == nil {
		t.platform, t.wanted = s.platform, platforms.Format(platforms.DefaultSpec())
	}
	children := cimages.SetChildrenLabels(s.content, t.children(s.content))
	if !t.all {
		children = cimages.LimitManifests(cimages.FilterPlatforms(children, t.platform), t.platform, 1)
	}
	chain := []cimages.Handler{cimages.HandlerFunc(t.sane)}
	if t.fetch != nil {
		chain = append(chain, t.fetch)
	}
	chain = append(chain, t.present(s.content), s.roomFor(t, children))
	unpacked, err := s.unpacking()
	if err != nil {
		return s.explain(err)
	}
	defer unpacked()
	layers := &applier{content: s.content, turns: s.unpacks, implied: map[string][]string{}}
	unpacker, err := unpack.NewUnpacker(ctx, s.content,
		unpack.WithUnpackPlatform(unpack.Platform{
			Platform: t.platform, SnapshotterKey: snapshotter, Snapshotter: stacking{s.snapshot, layers},
			SnapshotterCapabilities: []string{snapshots.RebaseCap}, Applier: layers,
		}),
		unpack.WithDuplicationSuppressor(s.busy), unpack.WithFetchAllContent(),
		unpack.WithLimiter(semaphore.NewWeighted(maxFetches)),
		// A layer takes its turn when it is there, not while it is waited for.
		unpack.WithUnpackLimiter(semaphore.NewWeighted(maxLayers)))
	if err != nil {
		return err
	}
	err = cimages.Dispatch(ctx, unpacker.Unpack(cimages.Handlers(chain...)), nil, t.target)
	if _, failed := unpacker.Wait(); failed != nil && (err == nil || errors.Is(err, context.Canceled)) {
		err = failed
	}
	if err != nil {
		if errors.Is(err, syscall.ENOSPC) {
			s.full.Store(true)
		}
		return s.explain(s.tooLarge(err, t))
	}
	return s.usable(ctx, t)
}

// sane refuses descriptors that no image has, before anything is fetched.
func (t *taking) sane(_ context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	if err := d.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("digest %q: %w", short(d.Digest.String()), err)
	}
	if err := checkSize(d); err != nil {
		return nil, err
	}
	if d.MediaType == cimages.MediaTypeDockerSchema1Manifest {
		return nil, fmt.Errorf("%s is a manifest of docker's schema 1, which is no longer supported: build or push the image again", d.Digest)
	}
	document := cimages.IsManifestType(d.MediaType) || cimages.IsIndexType(d.MediaType) || cimages.IsConfigType(d.MediaType)
	if document && d.Size > maxDocument {
		return nil, fmt.Errorf("%s is a manifest or config of %d bytes; the limit is %d", d.Digest, d.Size, maxDocument)
	}
	t.mu.Lock()
	depth := t.depth[d.Digest]
	t.mu.Unlock()
	if depth > maxDepth {
		return nil, fmt.Errorf("%s is an index more than %d deep in other indexes", d.Digest, maxDepth)
	}
	if depth == 0 && !cimages.IsManifestType(d.MediaType) && !cimages.IsIndexType(d.MediaType) {
		return nil, fmt.Errorf("%s has the media type %q, which is no image manifest", d.Digest, short(d.MediaType))
	}
	return nil, nil
}

// present checks that the blob came, in the size that was announced.
func (t *taking) present(store content.InfoProvider) cimages.HandlerFunc {
	return func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		info, err := store.Info(ctx, d.Digest)
		if errdefs.IsNotFound(err) {
			return nil, fmt.Errorf("%s %s", d.Digest, t.missing)
		}
		if err != nil {
			return nil, err
		}
		if d.Size != info.Size {
			return nil, fmt.Errorf("%s has %d bytes, and its descriptor says %d: the image is damaged or forged", d.Digest, info.Size, d.Size)
		}
		return nil, nil
	}
}

// children reads manifests and indexes and refuses what is not a container image.
func (t *taking) children(provider content.Provider) cimages.HandlerFunc {
	return func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if !t.first(d.Digest) {
			return nil, nil // documents that name each other many times would never end
		}
		all, err := cimages.Children(ctx, provider, d)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", d.Digest, err)
		}
		if cimages.IsManifestType(d.MediaType) {
			if err := checkManifest(d, all); err != nil {
				return nil, err
			}
		}
		kept := all[:0]
		t.mu.Lock()
		defer t.mu.Unlock()
		for _, c := range all {
			if c.Annotations[annotationReferenceType] != "" {
				continue
			}
			t.depth[c.Digest] = t.depth[d.Digest] + 1
			kept = append(kept, c)
		}
		return kept, nil
	}
}

// first tells whether a document is read for the first time.
func (t *taking) first(d digest.Digest) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	was := t.read[d]
	t.read[d] = true
	return !was
}

// checkManifest wants a config and layers that can be unpacked; all is the
// config and the layers.
func checkManifest(d ocispec.Descriptor, all []ocispec.Descriptor) error {
	if t := all[0].MediaType; !cimages.IsConfigType(t) {
		return fmt.Errorf("%s is an OCI artifact (config of type %q), not a container image", d.Digest, short(t))
	}
	if len(all)-1 > maxLayers {
		return fmt.Errorf("%s has %d layers; the limit is %d: build it with fewer", d.Digest, len(all)-1, maxLayers)
	}
	for _, l := range all[1:] {
		if !cimages.IsLayerType(l.MediaType) || strings.HasSuffix(l.MediaType, "+encrypted") {
			return fmt.Errorf("layer %s has the unsupported media type %q: layers are tar, plain or compressed with gzip or zstd",
				l.Digest, short(l.MediaType))
		}
	}
	return nil
}

// usable checks that the target has an image for the platform and that it is unpacked.
func (s *Store) usable(ctx context.Context, t *taking) error {
	target := t.target
	has, err := cimages.Platforms(ctx, s.content, target)
	if err == nil && len(has) > 0 && !anyMatch(t.platform, has) {
		names := make([]string, len(has))
		for i, p := range has {
			names[i] = platforms.Format(p)
		}
		return fmt.Errorf("it has no image for %s, only for %s", t.wanted, strings.Join(names, ", "))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := s.parse(ctx, target)
	if err != nil {
		return err
	}
	if n := len(p.chain); n > 0 {
		if _, err := s.snapshot.Stat(ctx, p.chain[n-1]); err != nil {
			return fmt.Errorf("its layers were not unpacked: %w", err)
		}
	}
	return nil
}

func anyMatch(m platforms.Matcher, list []ocispec.Platform) bool {
	for _, p := range list {
		if m.Match(p) {
			return true
		}
	}
	return false
}

// explain adds the cure, once, to errors that have one.
func (s *Store) explain(err error) error {
	var told *fullError
	if errors.As(err, &told) || !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
		return err
	}
	return &fullError{err, s.opts.Root}
}

// fullError is a want of space with its cure.
type fullError struct {
	err  error
	root string
}

func (e *fullError) Error() string {
	return fmt.Sprintf("%v: free some space on the file system of %s, or remove images", e.err, e.root)
}

func (e *fullError) Unwrap() error { return e.err }

// maxUnpacks is how many layers are unpacked at once: enough for the CPUs, and
// for a small host's memory.
func maxUnpacks() int64 { return int64(min(max(2, goruntime.GOMAXPROCS(0)), 4)) }
