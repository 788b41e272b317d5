// Package image writes small, reproducible container images for tests,
// benchmarks and the quick start: the same spec gives the same bytes.
package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"sort"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Formats of an archive.
const (
	FormatOCI    = "oci"
	FormatDocker = "docker"
)

// Spec says what an image holds.
type Spec struct {
	Name         string // "localhost/busybox:latest"; "" leaves the image without a name
	Format       string // FormatOCI or FormatDocker; "" is FormatOCI
	Uncompressed bool   // layers as plain tar instead of gzip
	Layers       []Layer
	Config       ocispec.ImageConfig
	Platform     ocispec.Platform // its zero value is left out of the config
}

// Layer is the files of one layer, in the order in which they are written.
type Layer []File

// File is one entry of a layer.
type File struct {
	Path   string // "bin/busybox"; written as it is, so that tests can make hostile ones
	Type   byte   // tar type flag; 0 is a regular file
	Mode   int64  // permission bits; 0 is 0644, or 0755 for a folder
	UID    int
	GID    int
	Link   string // target of a symbolic or hard link
	Data   []byte
	Major  int64
	Minor  int64
	Xattrs map[string]string
	MTime  time.Time // its zero value is the start of 1970
}

// Dir is a folder with mode 0755.
func Dir(path string) File { return File{Path: path, Type: tar.TypeDir} }

// Text is a regular file with mode 0644.
func Text(path, content string) File { return File{Path: path, Data: []byte(content)} }

// Symlink is a symbolic link.
func Symlink(path, target string) File {
	return File{Path: path, Type: tar.TypeSymlink, Link: target, Mode: 0o777}
}

// Hardlink is a hard link to an entry of the same image.
func Hardlink(path, target string) File { return File{Path: path, Type: tar.TypeLink, Link: target} }

// Write writes s as an archive to w.
func Write(w io.Writer, s Spec) error {
	if len(s.Layers) == 0 {
		return errors.New("write image: it needs at least one layer")
	}
	b, err := build(s)
	if err != nil {
		return fmt.Errorf("write image %s: %w", s.Name, err)
	}
	switch s.Format {
	case "", FormatOCI:
		return writeOCI(w, s, b)
	case FormatDocker:
		return writeDocker(w, s, b)
	}
	return fmt.Errorf("write image %s: unknown format %q: use %s or %s", s.Name, s.Format, FormatOCI, FormatDocker)
}

// writeLayer writes the files of l as a tar stream.
func writeLayer(w io.Writer, l Layer) error {
	tw := tar.NewWriter(w)
	for _, f := range l {
		if err := tw.WriteHeader(f.header()); err != nil {
			return fmt.Errorf("write %s: %w", f.Path, err)
		}
		if _, err := tw.Write(f.Data); err != nil {
			return fmt.Errorf("write %s: %w", f.Path, err)
		}
	}
	return tw.Close()
}

func (f File) header() *tar.Header {
	h := &tar.Header{
		Name: f.Path, Typeflag: f.Type, Mode: f.Mode, Uid: f.UID, Gid: f.GID, Linkname: f.Link,
		Size: int64(len(f.Data)), Devmajor: f.Major, Devminor: f.Minor, ModTime: f.MTime, Format: tar.FormatPAX,
	}
	if h.Typeflag == 0 {
		h.Typeflag = tar.TypeReg
	}
	if h.Mode == 0 {
		h.Mode = 0o644
		if h.Typeflag == tar.TypeDir {
			h.Mode = 0o755
		}
	}
	if h.Typeflag == tar.TypeDir && !strings.HasSuffix(h.Name, "/") {
		h.Name += "/"
	}
	if len(f.Xattrs) > 0 {
		h.PAXRecords = make(map[string]string, len(f.Xattrs))
		for k, v := range f.Xattrs {
			h.PAXRecords["SCHILY.xattr."+k] = v
		}
	}
	return h
}

// parents gives the folders above every path, each once, outermost first.
func parents(paths []string) Layer {
	seen := map[string]bool{}
	for _, p := range paths {
		for i, r := range p {
			if r == '/' && i > 0 {
				seen[p[:i]] = true
			}
		}
	}
	names := make([]string, 0, len(seen))
	for n := range seen {
		names = append(names, n)
	}
	sort.Strings(names)
	l := make(Layer, 0, len(names))
	for _, n := range names {
		l = append(l, Dir(n))
	}
	return l
}
