package images

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"math"
	"syscall"

	cimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

const (
	// maxEntries of a layer's tar: what is kept of each while it is unpacked takes memory.
	maxEntries = 4_000_000
	// mayNotFit is how large a file is for which the disk is asked, before it is
	// written, whether it fits: one that only says to be large costs nothing to say.
	mayNotFit = 64 << 20
)

// limits stop a layer that would take all memory or all of the disk.
type limits struct {
	root    string
	entries int
}

// check sees each entry of a layer before it is written.
func (l *limits) check(h *tar.Header) error {
	if l.entries++; l.entries > maxEntries {
		return fmt.Errorf("the layer has more than %d files", maxEntries)
	}
	if h.Size < mayNotFit {
		return nil
	}
	free, err := freeBytes(l.root)
	if err == nil && h.Size > free {
		err = fmt.Errorf("file %q of the layer has %d bytes, and %d are free: %w", short(h.Name), h.Size, free, syscall.ENOSPC)
	}
	return err
}

// freeBytes is what can still be written below dir.
func freeBytes(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("measure the disk of %s: %w", dir, err)
	}
	if st.Blocks == 0 { // a file system that does not count
		return math.MaxInt64, nil
	}
	return int64(min(st.Bavail*uint64(st.Bsize), math.MaxInt64)), nil
}

// roomFor asks the disk before the blobs of a manifest are fetched, not when it is full of them.
func (s *Store) roomFor(t *taking, children cimages.HandlerFunc) cimages.HandlerFunc {
	return func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		all, err := children(ctx, d)
		if err != nil || !cimages.IsManifestType(d.MediaType) {
			return all, err
		}
		var size, missing int64
		for _, c := range all {
			size += c.Size
			if !t.remote {
				continue
			}
			if _, err := s.content.Info(ctx, c.Digest); errdefs.IsNotFound(err) {
				missing += c.Size
			}
		}
		t.mu.Lock()
		t.size += size
		t.mu.Unlock()
		if missing == 0 {
			return all, nil
		}
		free, err := freeBytes(s.opts.Root)
		if err == nil && missing > free {
			err = fmt.Errorf("%d bytes are to be fetched: %w", missing, syscall.ENOSPC)
		}
		return all, err
	}
}

// tooLarge adds to an error for want of space how much the image needs.
func (s *Store) tooLarge(err error, t *taking) error {
	if !errors.Is(err, syscall.ENOSPC) {
		return err
	}
	free, measured := freeBytes(s.opts.Root)
	if measured != nil {
		return errors.Join(err, measured)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return fmt.Errorf("%w (the image needs more than %d bytes: so many has it packed; %d are free)", err, t.size, free)
}

// checkSize refuses a size that no blob has; 0 would stand for any.
func checkSize(d ocispec.Descriptor) error {
	if d.Size > 0 || d.Size == 0 && d.Digest == digest.FromString("") {
		return nil
	}
	return fmt.Errorf("%s has %d bytes by its descriptor: the image is damaged or forged", d.Digest, d.Size)
}
