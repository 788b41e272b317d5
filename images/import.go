package images

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	cimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ImportOptions of Import.
type ImportOptions struct {
	Name         string // instead of the names in the archive, which must hold one image
	AllPlatforms bool   // keep the content of every platform
}

// named is an image in an archive and the name that it gets; "" is none.
type named struct {
	name   string
	target ocispec.Descriptor
}

// Import reads an archive: an OCI layout or a docker-archive in tar, plain or
// compressed with gzip or zstd. Its images are unpacked before it returns.
// After an error no image of the archive is there. Blobs of an OCI layout in a
// regular file (an *os.File at its start) are taken side by side.
func (s *Store) Import(ctx context.Context, r io.Reader, o ImportOptions) ([]Image, error) {
	ctx, done, err := s.lease(ctx, "import")
	if err != nil {
		return nil, fmt.Errorf("import archive: %w", err)
	}
	defer done()
	list, fetch, err := s.openArchive(ctx, r, o.Name)
	if err != nil {
		return nil, fmt.Errorf("import archive: %w", s.explain(err))
	}
	for _, t := range distinct(list) {
		if err := s.take(ctx, &taking{target: t, fetch: fetch, all: o.AllPlatforms, missing: missingInArchive}); err != nil {
			return nil, fmt.Errorf("import archive: image %s: %w", label(list, t), err)
		}
	}
	images, err := s.keep(ctx, list)
	if err != nil {
		return nil, fmt.Errorf("import archive: %w", s.explain(err))
	}
	return images, nil
}

// ImportDir takes the images of an OCI layout folder.
func (s *Store) ImportDir(ctx context.Context, dir string) ([]Image, error) {
	data, err := readLayout(dir)
	if err != nil {
		return nil, fmt.Errorf("import folder %s: %w", dir, err)
	}
	list, err := choose(data, ocispec.Descriptor{}, "")
	if err != nil {
		return nil, fmt.Errorf("import folder %s: %w", dir, err)
	}
	images := []Image{}
	for _, n := range list {
		got, err := s.importFrom(ctx, dir, n.name, n.target)
		if err != nil {
			return nil, fmt.Errorf("import folder %s: %w", dir, err)
		}
		if !slices.ContainsFunc(images, func(i Image) bool { return i.ID == got.ID }) {
			images = append(images, got)
		}
	}
	return images, nil
}

// importFrom takes one image of a folder with blobs/ALGORITHM/DIGEST in it.
func (s *Store) importFrom(ctx context.Context, dir, name string, target ocispec.Descriptor) (Image, error) {
	ctx, done, err := s.lease(ctx, "import")
	if err != nil {
		return Image{}, err
	}
	defer done()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return Image{}, err
	}
	defer func() { _ = root.Close() }()
	open := remotes.FetcherFunc(func(_ context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
		f, err := root.Open(layoutPath(d.Digest))
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("%s is missing from the folder", d.Digest)
		}
		return f, err
	})
	list := []named{{name, target}}
	fetch := func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		return nil, s.bring(ctx, d, open, open)
	}
	err = s.take(ctx, &taking{target: target, fetch: fetch, missing: "is missing from the folder"})
	if err != nil {
		return Image{}, fmt.Errorf("image %s: %w", label(list, target), err)
	}
	images, err := s.keep(ctx, list)
	if err != nil {
		return Image{}, s.explain(err)
	}
	return images[0], nil
}

// lease keeps new content from being collected until done, or until the next
// start when this process is killed.
func (s *Store) lease(ctx context.Context, what string) (_ context.Context, done func(), err error) {
	ctx = in(ctx)
	l, err := s.leases.Create(ctx, leases.WithRandomID(), leases.WithLabel(labelPurpose, what))
	if err != nil {
		return nil, nil, s.explain(err)
	}
	return leases.WithLease(ctx, l.ID), func() {
		if err := s.evenIfFull(func() error { return s.leases.Delete(context.WithoutCancel(ctx), l) }); err != nil {
			s.log.Warn("a lease cannot be removed; the next start does it", "lease", l.ID, "err", err)
		}
		s.collectSoon()
	}, nil
}

// openArchive lists the images of an archive. Its blobs are either in the
// content store afterwards, or fetch brings them.
func (s *Store) openArchive(ctx context.Context, r io.Reader, name string) ([]named, cimages.HandlerFunc, error) {
	if l := openLayoutFile(r); l != nil {
		list, err := l.contents(name)
		return list, s.fromLayout(l), err
	}
	index, err := s.readArchive(ctx, r)
	if err != nil {
		return nil, nil, err
	}
	list, err := s.contents(ctx, index, name)
	return list, nil, err
}

// readArchive puts the blobs of r into the content store and gives its index.
func (s *Store) readArchive(ctx context.Context, r io.Reader) (ocispec.Descriptor, error) {
	plain, err := compression.DecompressStream(r)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("decompress: %w", err)
	}
	defer func() { _ = plain.Close() }()
	id, _ := leases.FromContext(ctx)
	index, err := archive.ImportIndex(ctx, private{s.content, id}, plain)
	switch {
	case err == nil:
		return index, nil
	case errors.Is(err, io.ErrUnexpectedEOF):
		return index, fmt.Errorf("it ends too early: copy or make it again: %w", err)
	case errors.Is(err, tar.ErrHeader), strings.Contains(err.Error(), "unrecognized image format"):
		return index, fmt.Errorf("it is not an image archive: an OCI layout or a docker-archive in tar is wanted, plain, gzip or zstd: %w", err)
	}
	return index, err
}

// private keeps the half-written blobs of one import apart from those of
// others, which may have files of the same name.
type private struct {
	content.Store
	prefix string
}

func (p private) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	var o content.WriterOpts
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return nil, err
		}
	}
	return p.Store.Writer(ctx, append(opts, content.WithRef(p.prefix+"-"+o.Ref))...)
}

// contents lists the images of an index in the content store.
func (s *Store) contents(ctx context.Context, index ocispec.Descriptor, name string) ([]named, error) {
	if index.Size > maxDocument {
		return nil, fmt.Errorf("its index has %d bytes; the limit is %d", index.Size, maxDocument)
	}
	data, err := content.ReadBlob(ctx, s.content, index)
	if err != nil {
		return nil, fmt.Errorf("read its index: %w", err)
	}
	return choose(data, index, name)
}

// choose finds names and images in the bytes of an index. Manifests without a
// name, for several platforms, are one image: the index itself.
func choose(data []byte, index ocispec.Descriptor, name string) ([]named, error) {
	var idx ocispec.Index
	if err := json.Unmarshal(data, &idx); err != nil {
		return nil, fmt.Errorf("read its index: %w", err)
	}
	var list []named
	nameless := 0
	for _, m := range idx.Manifests {
		if m.Annotations[annotationReferenceType] != "" {
			continue
		}
		n, err := annotatedName(m)
		if err != nil {
			return nil, err
		}
		if n == "" {
			nameless++
		}
		list = append(list, named{n, m})
	}
	if len(list) == 0 {
		return nil, errors.New("it holds no image")
	}
	if nameless == len(list) && nameless > 1 && list[0].target.Platform != nil && index.Digest != "" {
		list = []named{{"", index}}
	}
	if name == "" {
		return list, nil
	}
	full, err := Normalize(name)
	if err != nil {
		return nil, err
	}
	if len(distinct(list)) > 1 {
		return nil, fmt.Errorf("it holds %d images, so that the name %s cannot be given", len(distinct(list)), full)
	}
	return []named{{full, list[0].target}}, nil
}

// annotatedName is the full name in the annotations of a manifest. The standard
// annotation may hold no more than a tag, which is no name.
func annotatedName(m ocispec.Descriptor) (string, error) {
	name := m.Annotations[cimages.AnnotationImageName]
	if name == "" {
		name = m.Annotations[ocispec.AnnotationRefName]
		if !strings.ContainsAny(name, "/:@") {
			return "", nil
		}
	}
	return Normalize(name)
}

func distinct(list []named) []ocispec.Descriptor {
	var out []ocispec.Descriptor
	seen := map[digest.Digest]bool{}
	for _, n := range list {
		if !seen[n.target.Digest] {
			seen[n.target.Digest] = true
			out = append(out, n.target)
		}
	}
	return out
}

// label is how errors call an image.
func label(list []named, t ocispec.Descriptor) string {
	for _, n := range list {
		if n.target.Digest == t.Digest && n.name != "" {
			return n.name
		}
	}
	return t.Digest.String()
}

// keep writes the names down: from here on the images exist.
func (s *Store) keep(ctx context.Context, list []named) ([]Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	for _, n := range list {
		if err = s.name(ctx, n.name, n.target); err != nil {
			err = fmt.Errorf("record image %s: %w", label(list, n.target), err)
			break
		}
	}
	if err := errors.Join(err, s.refreshLocked(ctx)); err != nil {
		return nil, err
	}
	c := s.cache.Load()
	var images []Image
	for _, t := range distinct(list) {
		for _, r := range c.byID {
			if r.manifest.Digest == t.Digest || r.holds(c, t.Digest) {
				images = append(images, r.Image)
				break
			}
		}
	}
	return images, nil
}

// holds says whether one of r's names stands for the manifest d.
func (r *record) holds(c *catalog, d digest.Digest) bool {
	return slices.ContainsFunc(r.names, func(n string) bool { return c.targets[n].Digest == d })
}

// readLayout reads the index of an OCI layout folder.
func readLayout(dir string) ([]byte, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }()
	f, err := root.Open(ocispec.ImageIndexFile)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("it is not an OCI layout: %w", err)
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return io.ReadAll(io.LimitReader(f, maxDocument))
}
