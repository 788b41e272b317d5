package images

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"

	cimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const missingInArchive = "is missing from the archive, or its bytes do not have that digest: the archive is damaged"

// layoutFile is an OCI layout in a plain tar that can be read at any place, so
// that its blobs are taken side by side while others are unpacked.
type layoutFile struct {
	file  io.ReaderAt
	parts map[string]section // by path in the layout
	index []byte
}

// section is where a file of the tar is.
type section struct{ from, size int64 }

// openLayoutFile finds the blobs in an archive. A nil answer means that r must
// be read from its start to its end, as it is no plain tar with a layout in it
// or no regular file; r is then where it was.
func openLayoutFile(r io.Reader) *layoutFile {
	f, ok := r.(*os.File)
	if !ok {
		return nil
	}
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return nil
	}
	if at, err := f.Seek(0, io.SeekCurrent); err != nil || at != 0 {
		return nil
	}
	l := &layoutFile{file: f, parts: map[string]section{}}
	if l.scan(f) != nil {
		l = nil
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil
	}
	return l
}

// scan reads the headers and leaves the rest out.
func (l *layoutFile) scan(f *os.File) error {
	tr := tar.NewReader(f)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if h.Typeflag == tar.TypeDir {
			continue
		}
		at, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg || h.PAXRecords["GNU.sparse.major"] != "" {
			return fmt.Errorf("%s is no regular file", short(h.Name))
		}
		l.parts[path.Clean(h.Name)] = section{at, h.Size}
	}
	var layout ocispec.ImageLayout
	data, err := l.read(ocispec.ImageLayoutFile)
	if err == nil {
		err = json.Unmarshal(data, &layout)
	}
	if err == nil && layout.Version != ocispec.ImageLayoutVersion {
		err = fmt.Errorf("layout version %s", short(layout.Version))
	}
	if err == nil {
		l.index, err = l.read(ocispec.ImageIndexFile)
	}
	return err
}

func (l *layoutFile) read(name string) ([]byte, error) {
	p, ok := l.parts[name]
	if !ok || p.size > maxDocument {
		return nil, fmt.Errorf("no usable file %s", name)
	}
	data := make([]byte, p.size)
	_, err := io.ReadFull(l.open(p), data)
	return data, err
}

func (l *layoutFile) open(p section) *io.SectionReader {
	return io.NewSectionReader(l.file, p.from, p.size)
}

// contents lists the images; the index may be one of them.
func (l *layoutFile) contents(name string) ([]named, error) {
	index := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: digest.FromBytes(l.index), Size: int64(len(l.index))}
	list, err := choose(l.index, index, name)
	if err != nil {
		return nil, err
	}
	l.parts[layoutPath(index.Digest)] = l.parts[ocispec.ImageIndexFile]
	return list, nil
}

// layoutPath is where an OCI layout has a blob.
func layoutPath(d digest.Digest) string {
	return filepath.Join(ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

// fromLayout gives the handler that brings blobs of an archive into the content store.
func (s *Store) fromLayout(l *layoutFile) cimages.HandlerFunc {
	open := remotes.FetcherFunc(func(_ context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
		p, ok := l.parts[layoutPath(d.Digest)]
		if !ok {
			return nil, fmt.Errorf("%s %s", d.Digest, missingInArchive)
		}
		if p.size != d.Size {
			return nil, fmt.Errorf("%s has %d bytes, and its descriptor says %d: the image is damaged or forged", d.Digest, p.size, d.Size)
		}
		return struct {
			*io.SectionReader
			io.Closer
		}{l.open(p), io.NopCloser(nil)}, nil
	})
	return func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		err := s.bring(ctx, d, open, open)
		switch {
		case errors.Is(err, io.ErrUnexpectedEOF):
			return nil, fmt.Errorf("it ends too early: copy or make it again: %w", err)
		case errdefs.IsFailedPrecondition(err):
			return nil, fmt.Errorf("%s %s: %w", d.Digest, missingInArchive, err)
		}
		return nil, err
	}
}
