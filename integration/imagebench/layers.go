package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// packages are the Debian packages of each layer, one layer a line.
//
//go:embed packages.txt
var packages string

// imageName is what the image is called in archives and at the registry.
const imageName = "bench/debian:1"

// layout is an image as an OCI layout folder and as an archive of it.
type layout struct {
	dir      string
	manifest ocispec.Descriptor
	bytes    int64 // of the layers, compressed
}

func (l layout) archive() string { return l.dir + ".tar" }

// openLayout reads the image in dir, and makes it from Debian packages when it
// is not there. That needs apt-get and dpkg-deb.
func openLayout(ctx context.Context, dir string) (layout, error) {
	l := layout{dir: dir}
	if _, err := os.Stat(l.archive()); errors.Is(err, os.ErrNotExist) {
		if err := l.make(ctx); err != nil {
			return l, fmt.Errorf("make the image in %s: %w", dir, err)
		}
	}
	var index ocispec.Index
	if err := readJSON(filepath.Join(dir, ocispec.ImageIndexFile), &index); err != nil {
		return l, fmt.Errorf("read the image: %w", err)
	}
	l.manifest = index.Manifests[0]
	var m ocispec.Manifest
	if err := readJSON(l.blob(l.manifest.Digest), &m); err != nil {
		return l, fmt.Errorf("read the image: %w", err)
	}
	for _, d := range m.Layers {
		l.bytes += d.Size
	}
	return l, nil
}

func readJSON(path string, v any) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(raw, v)
}

func (l layout) blob(d digest.Digest) string {
	return filepath.Join(l.dir, ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

func (l layout) make(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Join(l.dir, ocispec.ImageBlobsDir, "sha256"), 0o755); err != nil {
		return err
	}
	debs, err := os.MkdirTemp("", "imagebench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(debs)
	config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, RootFS: ocispec.RootFS{Type: "layers"}}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for line := range strings.Lines(strings.TrimSpace(packages)) {
		d, diff, err := l.addLayer(ctx, debs, strings.Fields(line))
		if err != nil {
			return fmt.Errorf("layer of %s: %w", strings.TrimSpace(line), err)
		}
		m.Layers = append(m.Layers, d)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diff)
	}
	if m.Config, err = l.addJSON(ocispec.MediaTypeImageConfig, config); err != nil {
		return err
	}
	manifest, err := l.addJSON(ocispec.MediaTypeImageManifest, m)
	if err != nil {
		return err
	}
	manifest.Annotations = map[string]string{"io.containerd.image.name": "localhost/" + imageName}
	return l.finish(ctx, manifest)
}

// finish writes the index and packs the folder.
func (l layout) finish(ctx context.Context, manifest ocispec.Descriptor) error {
	for name, v := range map[string]any{
		ocispec.ImageIndexFile: ocispec.Index{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{manifest},
		},
		ocispec.ImageLayoutFile: ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion},
	} {
		raw, err := json.Marshal(v)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(l.dir, name), raw, 0o644); err != nil {
			return err
		}
	}
	half := l.archive() + ".half"
	out, err := exec.CommandContext(ctx, "tar", "-C", l.dir, "-cf", half, ocispec.ImageLayoutFile, ocispec.ImageIndexFile, ocispec.ImageBlobsDir).CombinedOutput()
	if err != nil {
		return fmt.Errorf("tar: %w: %s", err, out)
	}
	return os.Rename(half, l.archive())
}

func (l layout) addJSON(mediaType string, v any) (ocispec.Descriptor, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	return d, os.WriteFile(l.blob(d.Digest), raw, 0o644)
}

// addLayer makes one layer of the files of packages, and gives the digest of
// its plain tar, too.
func (l layout) addLayer(ctx context.Context, debs string, packages []string) (d ocispec.Descriptor, diff digest.Digest, err error) {
	get := exec.CommandContext(ctx, "apt-get", append([]string{"download", "-qq"}, packages...)...)
	get.Dir = debs
	if out, err := get.CombinedOutput(); err != nil {
		return d, "", fmt.Errorf("apt-get download: %w: %s", err, out)
	}
	half := filepath.Join(debs, "layer")
	f, err := os.OpenFile(half, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return d, "", err
	}
	defer f.Close()
	packed, plain := digest.SHA256.Digester(), digest.SHA256.Digester()
	zw := gzip.NewWriter(io.MultiWriter(f, packed.Hash()))
	tw := tar.NewWriter(io.MultiWriter(zw, plain.Hash()))
	seen := map[string]bool{}
	for _, p := range packages {
		found, err := filepath.Glob(filepath.Join(debs, p+"_*.deb"))
		if err != nil || len(found) != 1 {
			return d, "", fmt.Errorf("package %s: %d files, %w", p, len(found), err)
		}
		if err := addFiles(ctx, tw, found[0], seen); err != nil {
			return d, "", fmt.Errorf("package %s: %w", p, err)
		}
		if err := os.Remove(found[0]); err != nil {
			return d, "", err
		}
	}
	if err := errors.Join(tw.Close(), zw.Close(), f.Close()); err != nil {
		return d, "", err
	}
	info, err := os.Stat(half)
	if err != nil {
		return d, "", err
	}
	d = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: packed.Digest(), Size: info.Size()}
	out, err := exec.CommandContext(ctx, "mv", half, l.blob(d.Digest)).CombinedOutput()
	if err != nil {
		return d, "", fmt.Errorf("mv: %w: %s", err, out)
	}
	return d, plain.Digest(), nil
}

// addFiles copies the files of a package, each path once.
func addFiles(ctx context.Context, tw *tar.Writer, deb string, seen map[string]bool) error {
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err = copyTar(tw, tar.NewReader(out), seen)
	_, drained := io.Copy(io.Discard, out)
	return errors.Join(err, drained, cmd.Wait())
}

func copyTar(tw *tar.Writer, tr *tar.Reader, seen map[string]bool) error {
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := filepath.Clean(h.Name)
		if seen[name] {
			continue
		}
		seen[name] = true
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(tw, tr); err != nil {
			return err
		}
	}
}
