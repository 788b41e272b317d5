package images

import (
	"archive/tar"
	"fmt"
	"syscall"

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
	var st unix.Statfs_t
	if err := unix.Statfs(l.root, &st); err != nil {
		return fmt.Errorf("measure the disk of %s: %w", l.root, err)
	}
	free := st.Bavail * uint64(st.Bsize)
	if uint64(h.Size) > free && st.Blocks > 0 {
		return fmt.Errorf("file %q of the layer has %d bytes, and %d are free: %w", short(h.Name), h.Size, free, syscall.ENOSPC)
	}
	return nil
}

// checkSize refuses a size that no blob has; 0 would stand for any.
func checkSize(d ocispec.Descriptor) error {
	if d.Size > 0 || d.Size == 0 && d.Digest == digest.FromString("") {
		return nil
	}
	return fmt.Errorf("%s has %d bytes by its descriptor: the image is damaged or forged", d.Digest, d.Size)
}
