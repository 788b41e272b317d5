package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	cimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Archive formats of Export.
const (
	FormatOCI    = "oci"    // an OCI layout in a tar
	FormatDocker = "docker" // the same with what docker load reads
)

// Tag gives the image ref the further name, and takes it from the image that
// has it. The error wraps ErrNotFound or ErrInvalid.
func (s *Store) Tag(ctx context.Context, ref, name string) (Image, error) {
	full, err := Normalize(name)
	if err != nil {
		return Image{}, fmt.Errorf("tag image %s: %w", short(ref), err)
	}
	ctx = in(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.cache.Load().find(ref)
	if err != nil {
		return Image{}, fmt.Errorf("tag image %s: %w", short(ref), err)
	}
	if err := errors.Join(s.name(ctx, full, r.manifest), s.refreshLocked(ctx)); err != nil {
		return Image{}, fmt.Errorf("tag image %s: %w", short(ref), s.explain(err))
	}
	return s.cache.Load().byID[r.ID].Image, nil
}

// Export writes the images refs to w as one archive in the given format, with
// the names by which they are asked for; an id stands for all its names. All
// platforms of an image are in it if all are here, else, and in a docker
// archive, only the one of this host.
func (s *Store) Export(ctx context.Context, w io.Writer, refs []string, format string) error {
	ctx, done, err := s.lease(ctx, "export") // no blob goes away meanwhile
	if err != nil {
		return fmt.Errorf("export images: %w", err)
	}
	defer done()
	var opts []archive.ExportOpt
	manifestOf := s.manifestOf
	switch format {
	case FormatOCI, "":
		opts = append(opts, archive.WithPlatform(platforms.All), archive.WithSkipDockerManifest())
	case FormatDocker:
		opts = append(opts, archive.WithPlatform(s.platform))
		manifestOf = s.ownManifest
	default:
		return fmt.Errorf("export images: unknown format %q: use %s or %s", short(format), FormatOCI, FormatDocker)
	}
	for _, ref := range refs {
		r, err := s.cache.Load().find(ref)
		if err != nil {
			return fmt.Errorf("export image %s: %w", short(ref), err)
		}
		m, err := manifestOf(ctx, r.manifest)
		if err != nil {
			return fmt.Errorf("export image %s: %w", short(ref), err)
		}
		opts = append(opts, archive.WithManifest(m, exportNames(s.cache.Load(), r, ref)...))
	}
	if err := archive.Export(ctx, s.content, w, opts...); err != nil {
		return fmt.Errorf("export images: %w", err)
	}
	return nil
}

// exportNames are the names with a tag that ref means.
func exportNames(c *catalog, r *record, ref string) []string {
	names := meant(c, r, ref)
	return slices.DeleteFunc(slices.Clone(r.RepoTags), func(t string) bool { return !slices.Contains(names, t) })
}

// manifestOf gives target itself, when all of it is here, or the manifest in
// it that is for this host.
func (s *Store) manifestOf(ctx context.Context, target ocispec.Descriptor) (ocispec.Descriptor, error) {
	if !cimages.IsIndexType(target.MediaType) {
		return target, nil
	}
	err := cimages.Walk(ctx, cimages.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if _, err := s.content.Info(ctx, d.Digest); err != nil {
			return nil, err
		}
		return cimages.Children(ctx, s.content, d)
	}), target)
	switch {
	case err == nil:
		return target, nil
	case !errdefs.IsNotFound(err):
		return target, err
	}
	return s.ownManifest(ctx, target)
}

// ownManifest gives the manifest in target that is for this host.
func (s *Store) ownManifest(ctx context.Context, target ocispec.Descriptor) (ocispec.Descriptor, error) {
	if !cimages.IsIndexType(target.MediaType) {
		return target, nil
	}
	mine := cimages.LimitManifests(cimages.FilterPlatforms(cimages.ChildrenHandler(s.content), s.platform), s.platform, 1)
	found, err := mine(ctx, target)
	if err != nil {
		return target, err
	}
	if len(found) == 0 {
		return target, fmt.Errorf("index %s has no manifest for this host", target.Digest)
	}
	return found[0], nil
}
