package images

import (
	"context"
	"fmt"
	"slices"
	"strings"

	cimages "github.com/containerd/containerd/v2/core/images"
	clabels "github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Inspection is what is known of one image.
type Inspection struct {
	Image
	Manifest     ocispec.Descriptor  `json:"manifest"`          // manifest or index that the names stand for
	ConfigDigest string              `json:"configDigest"`      // of the config
	Layers       []LayerInfo         `json:"layers"`            // lowest first
	UsedBy       []string            `json:"usedBy,omitempty"`  // containers and mounts
	Platform     ocispec.Platform    `json:"platform"`          // that the image is for
	Sources      map[string][]string `json:"sources,omitempty"` // registries that the blobs came from, with their repositories
}

// LayerInfo is one layer of an image.
type LayerInfo struct {
	Digest    string `json:"digest"` // of the blob
	DiffID    string `json:"diffID"` // of the tar in it
	MediaType string `json:"mediaType"`
	Size      int64  `json:"size"`     // bytes of the blob
	Unpacked  uint64 `json:"unpacked"` // bytes on the disk, 0 when it is not unpacked
}

// Inspect tells all that is known of the image ref. The error wraps
// ErrNotFound or ErrInvalid.
func (s *Store) Inspect(ctx context.Context, ref string) (Inspection, error) {
	ctx = in(ctx)
	r, err := s.cache.Load().find(ref)
	if err != nil {
		return Inspection{}, fmt.Errorf("inspect image: %w", err)
	}
	m, err := cimages.Manifest(ctx, s.content, r.manifest, s.matcherOf(r.manifest))
	if err != nil {
		return Inspection{}, fmt.Errorf("inspect image %s: read manifest: %w", short(ref), err)
	}
	out := Inspection{
		Image: r.Image, Manifest: r.manifest, ConfigDigest: r.config.Digest.String(), Platform: r.image.Platform, UsedBy: s.usersOf(r.ID),
	}
	out.Manifest.Annotations = nil
	for i, l := range m.Layers {
		info := LayerInfo{Digest: l.Digest.String(), DiffID: r.image.RootFS.DiffIDs[i].String(), MediaType: l.MediaType, Size: l.Size}
		u, err := s.snapshot.Usage(ctx, r.chain[i])
		if err != nil && !errdefs.IsNotFound(err) {
			return Inspection{}, fmt.Errorf("inspect image %s: measure layer: %w", short(ref), err)
		}
		info.Unpacked = uint64(max(u.Size, 0))
		out.Layers = append(out.Layers, info)
	}
	info, err := s.content.Info(ctx, r.manifest.Digest)
	if err != nil {
		return Inspection{}, fmt.Errorf("inspect image %s: %w", short(ref), err)
	}
	out.Sources = sourcesOf(info.Labels)
	return out, nil
}

// sourcesOf reads from a blob's labels where it came from.
func sourcesOf(labels map[string]string) map[string][]string {
	out := map[string][]string{}
	for key, repos := range labels {
		if host, ok := strings.CutPrefix(key, clabels.LabelDistributionSource+"."); ok {
			out[host] = strings.Split(repos, ",")
		}
	}
	return out
}

// usersOf are the containers and mounts that have an image, sorted.
func (s *Store) usersOf(id string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for user, image := range s.used {
		if image == id {
			out = append(out, user)
		}
	}
	slices.Sort(out)
	return out
}
