// Package images keeps container images: containerd v2's libraries in process
// (content store, metadata, overlayfs snapshotter), not its daemon.
//
// Content and unpacked layers live in Options.Root, one folder per container
// with its writable layer in Root/rw, and root file systems are mounted in
// Options.Run/rootfs. The list of images is kept in memory and rebuilt when it
// changes, so that asking for it costs no disk access.
package images

import (
	"errors"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Errors that the methods of Store wrap.
var (
	ErrNotFound = errors.New("image not found")
	ErrInUse    = errors.New("image is in use")
	ErrInvalid  = errors.New("invalid image reference")
	// ErrAccess is returned by a pull or push when the registry wants another credential.
	ErrAccess = errors.New("the registry refuses access, or has no such image")
	// ErrLocked is returned by Open when another process has the same folder open.
	ErrLocked = errors.New("image store is in use by another process")
)

// Image is one image, whatever number of names it has.
type Image struct {
	ID          string        `json:"id"`                    // digest of its config, "sha256:…"
	RepoTags    []string      `json:"repoTags,omitempty"`    // full references with a tag
	RepoDigests []string      `json:"repoDigests,omitempty"` // repository@sha256:… of the manifest
	Size        int64         `json:"size"`                  // bytes of its blobs, compressed
	Pinned      bool          `json:"pinned,omitempty"`
	Config      ocispec.Image `json:"config"`
	CreatedAt   time.Time     `json:"createdAt"` // when it came to this host
}

// User is a resolved "user[:group]" of an image or a request.
type User struct {
	UID, GID       uint32
	AdditionalGIDs []uint32
	Home           string
}

// Usage is what a folder takes.
type Usage struct {
	Path   string // a mount point or folder that exists
	Bytes  uint64
	Inodes uint64
}
