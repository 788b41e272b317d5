package images

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	cimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"
)

// applier unpacks layers, each into a folder of its own and without a look at
// those below, so that they can be unpacked side by side.
type applier struct {
	content content.Provider
	turns   *semaphore.Weighted // of layers, as each takes a CPU and memory

	mu      sync.Mutex
	implied map[string][]string // by a layer's folder: its directories without an entry of their own
}

// Apply unpacks a layer that is in the content store; its answer has the digest of the plain tar.
func (a *applier) Apply(ctx context.Context, d ocispec.Descriptor, mounts []mount.Mount, _ ...diff.ApplyOpt) (_ ocispec.Descriptor, err error) {
	if err := a.turns.Acquire(ctx, 1); err != nil {
		return ocispec.Descriptor{}, err
	}
	defer a.turns.Release(1)
	root, err := folderOf(mounts)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	blob, err := a.content.ReaderAt(ctx, d)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer func() { _ = blob.Close() }()
	plain, err := decompress(ctx, d.MediaType, content.NewReader(blob))
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("decompress: %w", err)
	}
	defer func() { _ = plain.Close() }()
	sum := digest.Canonical.Digester()
	ahead := readAhead(io.TeeReader(plain, sum.Hash()))
	defer ahead.Close()
	seen := directories{limits: limits{root: root}, own: map[string]bool{}}
	if _, err := archive.Apply(ctx, root, ahead, archive.WithConvertWhiteout(seen.convert)); err != nil {
		return ocispec.Descriptor{}, err
	}
	if _, err := io.Copy(io.Discard, ahead); err != nil { // what follows the tar belongs to the digest
		return ocispec.Descriptor{}, err
	}
	a.mu.Lock()
	a.implied[root] = seen.implied()
	a.mu.Unlock()
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: sum.Digest()}, nil
}

// folderOf is where the files of a snapshot without a parent go.
func folderOf(mounts []mount.Mount) (string, error) {
	for _, m := range mounts {
		if m.Type == "bind" {
			return m.Source, nil
		}
		for _, o := range m.Options {
			if dir, ok := strings.CutPrefix(o, "upperdir="); ok {
				return dir, nil
			}
		}
	}
	return "", fmt.Errorf("a layer cannot be unpacked into %v", mounts)
}

func decompress(ctx context.Context, mediaType string, r io.Reader) (io.ReadCloser, error) {
	packed, err := cimages.DiffCompression(ctx, mediaType)
	if err != nil {
		return nil, err
	}
	if packed == "" {
		return io.NopCloser(r), nil
	}
	return compression.DecompressStream(r)
}

// directories are those that a layer's tar makes below root.
type directories struct {
	limits
	own map[string]bool // whether it has an entry of its own
}

// convert sees each entry with the path that it gets, after its parents were made.
func (d *directories) convert(h *tar.Header, path string) (bool, error) {
	if err := d.check(h); err != nil {
		return false, err
	}
	for dir := filepath.Dir(path); len(dir) > len(d.root); dir = filepath.Dir(dir) {
		if _, known := d.own[dir]; known {
			break
		}
		d.own[dir] = false
	}
	if _, known := d.own[path]; known || h.Typeflag == tar.TypeDir {
		d.own[path] = h.Typeflag == tar.TypeDir
	}
	return archive.OverlayConvertWhiteout(h, path)
}

// implied are the directories without an entry, relative to the root.
func (d *directories) implied() []string {
	var out []string
	for dir, own := range d.own {
		if !own {
			out = append(out, dir[len(d.root)+1:])
		}
	}
	return out
}

const (
	aheadBuffers = 4
	aheadSize    = 256 << 10
)

// aheadReader reads in a goroutine of its own, some buffers ahead of its user:
// a layer is decompressed while its files are written.
type aheadReader struct {
	full, free chan []byte
	stop       chan struct{}
	whole      []byte // buffer that is being read
	rest       []byte // of it
	err        error  // set before full is closed
}

func readAhead(r io.Reader) *aheadReader {
	a := &aheadReader{full: make(chan []byte, aheadBuffers), free: make(chan []byte, aheadBuffers), stop: make(chan struct{})}
	for range aheadBuffers {
		a.free <- nil
	}
	go a.fill(r)
	return a
}

func (a *aheadReader) fill(r io.Reader) {
	defer close(a.full)
	for {
		select {
		case <-a.stop:
			return
		case b := <-a.free:
			if b == nil {
				b = make([]byte, aheadSize)
			}
			n, err := io.ReadFull(r, b)
			a.full <- b[:n]
			if err == io.ErrUnexpectedEOF {
				err = io.EOF
			}
			if err != nil {
				a.err = err
				return
			}
		}
	}
}

func (a *aheadReader) Read(p []byte) (int, error) {
	for len(a.rest) == 0 {
		if a.whole != nil {
			a.free <- a.whole[:cap(a.whole)]
			a.whole = nil
		}
		b, ok := <-a.full
		if !ok {
			return 0, a.err
		}
		a.whole, a.rest = b, b
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// Close returns when nothing reads any more.
func (a *aheadReader) Close() {
	close(a.stop)
	for range a.full { //nolint:revive // drained
	}
}
