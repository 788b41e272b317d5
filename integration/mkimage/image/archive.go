package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	_ "crypto/sha256" // go-digest computes nothing without it
	"encoding/json"
	"fmt"
	"io"
	"sort"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Annotation under which containerd and others keep an image's full name in an
// index; the standard one holds the tag alone.
const annotationImageName = "io.containerd.image.name"

// built is an image in memory: its blobs and the descriptor of its manifest.
type built struct {
	blobs    map[digest.Digest][]byte
	layers   []ocispec.Descriptor
	config   ocispec.Descriptor
	manifest ocispec.Descriptor
}

func (b *built) add(mediaType string, data []byte) ocispec.Descriptor {
	d := digest.FromBytes(data)
	b.blobs[d] = data
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
}

func (b *built) addJSON(mediaType string, v any) (ocispec.Descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return b.add(mediaType, data), nil
}

func build(s Spec) (*built, error) {
	b := &built{blobs: map[digest.Digest][]byte{}}
	img := ocispec.Image{Platform: s.Platform, Config: s.Config, RootFS: ocispec.RootFS{Type: "layers"}}
	for _, l := range s.Layers {
		var plain bytes.Buffer
		if err := writeLayer(&plain, l); err != nil {
			return nil, err
		}
		img.RootFS.DiffIDs = append(img.RootFS.DiffIDs, digest.FromBytes(plain.Bytes()))
		desc, err := b.addLayer(plain.Bytes(), s.Uncompressed)
		if err != nil {
			return nil, err
		}
		b.layers = append(b.layers, desc)
	}
	var err error
	if b.config, err = b.addJSON(ocispec.MediaTypeImageConfig, img); err != nil {
		return nil, err
	}
	b.manifest, err = b.addJSON(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    b.config, Layers: b.layers,
	})
	return b, err
}

func (b *built) addLayer(plain []byte, uncompressed bool) (ocispec.Descriptor, error) {
	if uncompressed {
		return b.add(ocispec.MediaTypeImageLayer, plain), nil
	}
	var zipped bytes.Buffer
	zw := gzip.NewWriter(&zipped)
	if _, err := zw.Write(plain); err != nil {
		return ocispec.Descriptor{}, err
	}
	if err := zw.Close(); err != nil {
		return ocispec.Descriptor{}, err
	}
	return b.add(ocispec.MediaTypeImageLayerGzip, zipped.Bytes()), nil
}

func writeOCI(w io.Writer, s Spec, b *built) error {
	m := b.manifest
	if s.Name != "" {
		m.Annotations = map[string]string{annotationImageName: s.Name, ocispec.AnnotationRefName: s.Name}
	}
	index, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{m},
	})
	if err != nil {
		return err
	}
	layout, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return err
	}
	entries := Layer{
		{Path: ocispec.ImageLayoutFile, Data: layout},
		{Path: ocispec.ImageIndexFile, Data: index},
	}
	return writeLayer(w, append(entries, b.blobFiles()...))
}

// blobFiles gives the blobs as entries of an OCI layout, sorted by digest.
func (b *built) blobFiles() Layer {
	digests := make([]string, 0, len(b.blobs))
	for d := range b.blobs {
		digests = append(digests, d.String())
	}
	sort.Strings(digests)
	l := Layer{Dir(ocispec.ImageBlobsDir), Dir(ocispec.ImageBlobsDir + "/sha256")}
	for _, d := range digests {
		dg := digest.Digest(d)
		l = append(l, File{Path: ocispec.ImageBlobsDir + "/sha256/" + dg.Encoded(), Data: b.blobs[dg]})
	}
	return l
}

func writeDocker(w io.Writer, s Spec, b *built) error {
	type entry struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	e := entry{Config: b.config.Digest.Encoded() + ".json"}
	if s.Name != "" {
		e.RepoTags = []string{s.Name}
	}
	tw := tar.NewWriter(w)
	put := func(name string, data []byte) error {
		if err := tw.WriteHeader((File{Path: name, Data: data}).header()); err != nil {
			return err
		}
		_, err := tw.Write(data)
		return err
	}
	if err := put(e.Config, b.blobs[b.config.Digest]); err != nil {
		return err
	}
	for _, l := range b.layers {
		name := l.Digest.Encoded() + "/layer.tar"
		if err := put(name, b.blobs[l.Digest]); err != nil {
			return fmt.Errorf("write layer %s: %w", l.Digest, err)
		}
		e.Layers = append(e.Layers, name)
	}
	manifest, err := json.Marshal([]entry{e})
	if err != nil {
		return err
	}
	if err := put("manifest.json", manifest); err != nil {
		return err
	}
	return tw.Close()
}
