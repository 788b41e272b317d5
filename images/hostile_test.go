package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/pausa-run/pausa/integration/mkimage/image"
)

// files makes an archive of the given files, in the order of an OCI layout.
func files(t testing.TB, m map[string][]byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for name, data := range m {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// layoutOf is an OCI layout with blobs, by digest, whose index names the last.
func layoutOf(t testing.TB, mediaType string, blobs ...[]byte) []byte {
	t.Helper()
	m := map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)}
	for _, b := range blobs {
		m["blobs/sha256/"+digest.FromBytes(b).Encoded()] = b
	}
	m["index.json"] = text(t, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{describe(mediaType, blobs[len(blobs)-1])}})
	return files(t, m)
}

func describe(mediaType string, b []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
}

func text(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func manifest(t testing.TB, config ocispec.Descriptor, layers ...ocispec.Descriptor) []byte {
	t.Helper()
	return text(t, ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: layers})
}

// badArchives are archives that must not become images, with what the error must say.
func badArchives(t testing.TB) map[string]struct {
	data []byte
	want string
} {
	good := packed(t, small("localhost/a:1", filler(1)))
	const manifestType, indexType = ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex
	layer := []byte("not a tar at all, and long enough to be looked at")
	config := text(t, ocispec.Image{RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(layer)}}})
	configDesc, layerDesc := describe(ocispec.MediaTypeImageConfig, config), describe(ocispec.MediaTypeImageLayer, layer)
	wrongSize := layerDesc
	wrongSize.Size++
	odd := layerDesc
	odd.MediaType = "application/x-odd"
	zipped := layerDesc
	zipped.MediaType = ocispec.MediaTypeImageLayerGzip
	deep := manifest(t, configDesc, layerDesc)
	chain, mt := [][]byte{config, layer, deep}, manifestType
	for range 100 {
		deep = text(t, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: indexType, Manifests: []ocispec.Descriptor{describe(mt, deep)}})
		chain, mt = append(chain, deep), indexType
	}
	sized := func(n int64) ocispec.Descriptor {
		d := layerDesc
		d.Size = n
		return d
	}
	emptyTar := make([]byte, 1024)
	otherConfig := text(t, ocispec.Image{RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromString("other")}}})
	otherArch := small("localhost/a:1")
	otherArch.Platform = ocispec.Platform{OS: "linux", Architecture: "s390x"}
	return map[string]struct {
		data []byte
		want string
	}{
		"nothing":              {nil, "not an image archive"},
		"text":                 {[]byte(strings.Repeat("hello ", 1000)), "not an image archive"},
		"other tar":            {files(t, map[string][]byte{"a": []byte("b")}), "not an image archive"},
		"cut off":              {good[:len(good)/2], "too early"},
		"cut off gzip":         {zip(t, good)[:2000], "too early"},
		"bad gzip":             {append([]byte{0x1f, 0x8b, 8, 0}, good...), "corrupt"},
		"bad zstd":             {append([]byte{0x28, 0xb5, 0x2f, 0xfd}, good...), "import archive"},
		"flipped bytes":        {bytes.Replace(good, []byte{0x1f, 0x8b}, []byte{0x1f, 0x8c}, 1), "missing from the archive"},
		"no index":             {files(t, map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)}), "index.json"},
		"empty index":          {files(t, map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`), "index.json": []byte("{}")}), "no image"},
		"layout of tomorrow":   {files(t, map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"9.0.0"}`)}), "9.0.0"},
		"missing config":       {layoutOf(t, manifestType, layer, manifest(t, configDesc, layerDesc)), "missing from the archive"},
		"missing layer":        {layoutOf(t, manifestType, config, manifest(t, configDesc, layerDesc)), "missing from the archive"},
		"wrong size":           {layoutOf(t, manifestType, config, layer, manifest(t, configDesc, wrongSize)), "damaged or forged"},
		"layer is no tar":      {layoutOf(t, manifestType, config, layer, manifest(t, configDesc, layerDesc)), "tar"},
		"layer is no gzip":     {layoutOf(t, manifestType, config, layer, manifest(t, configDesc, zipped)), "sha256:"},
		"odd layer type":       {layoutOf(t, manifestType, config, layer, manifest(t, configDesc, odd)), "application/x-odd"},
		"artifact":             {layoutOf(t, manifestType, config, manifest(t, describe("application/vnd.cncf.helm.config.v1+json", config))), "OCI artifact"},
		"odd manifest type":    {layoutOf(t, "application/x-odd", config), "application/x-odd"},
		"manifest as index":    {layoutOf(t, indexType, config, layer, manifest(t, configDesc, layerDesc)), "expected index"},
		"manifest is no JSON":  {layoutOf(t, manifestType, []byte("{")), "import archive"},
		"config is no JSON":    {layoutOf(t, manifestType, layer, manifest(t, describe(ocispec.MediaTypeImageConfig, layer), layerDesc)), "import archive"},
		"too few layers":       {layoutOf(t, manifestType, config, manifest(t, configDesc)), "layers"},
		"index in index × 100": {layoutOf(t, indexType, chain...), "deep"},
		"huge manifest":        {layoutOf(t, manifestType, append(manifest(t, configDesc), bytes.Repeat([]byte(" "), maxDocument)...)), "limit"},
		"huge config":          {layoutOf(t, manifestType, layer, manifest(t, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: configDesc.Digest, Size: 100 << 20}, layerDesc)), "limit"},
		"wrong diff id":        {layoutOf(t, manifestType, otherConfig, emptyTar, manifest(t, describe(ocispec.MediaTypeImageConfig, otherConfig), describe(ocispec.MediaTypeImageLayer, emptyTar))), "diff"},
		"blob of no bytes":     {layoutOf(t, manifestType, config, layer, manifest(t, configDesc, sized(0))), "0 bytes by its descriptor"},
		"blob of less":         {layoutOf(t, manifestType, config, layer, manifest(t, configDesc, sized(-5))), "-5 bytes by its descriptor"},
		"blob of terabytes":    {layoutOf(t, manifestType, config, layer, manifest(t, configDesc, sized(1<<50))), "damaged or forged"},
		"20,000 layers":        {layoutOf(t, manifestType, config, manifest(t, configDesc, slices.Repeat([]ocispec.Descriptor{layerDesc}, 20_000)...)), "20000 layers; the limit is 127"},
		"100,000 layers":       {layoutOf(t, manifestType, config, manifest(t, configDesc, slices.Repeat([]ocispec.Descriptor{layerDesc}, 100_000)...)), "limit"},
		"bad digest":           {layoutOf(t, manifestType, config, manifest(t, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: "sha256:../../../etc/passwd", Size: 5}, layerDesc)), "invalid"},
		"itself as config":     {files(t, map[string][]byte{"manifest.json": []byte(`[{"Config":"manifest.json","RepoTags":["a:1"],"Layers":["manifest.json"]}]`)}), "import archive"},
		"archive of 10^6 tags": {files(t, map[string][]byte{"manifest.json": []byte(`[{"Config":"c","RepoTags":["a:1"` + strings.Repeat(`,"a:1"`, 1_000_000) + `],"Layers":[]}]`)}), "import archive"},
		"another machine":      {packed(t, otherArch), "linux/s390x"},
		"hostile name":         {packed(t, small("../../etc/passwd")), "invalid image reference"},
	}
}

func zip(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestBadArchivesLeaveNothing(t *testing.T) {
	ctx := context.Background()
	s := open(t, folders(t))
	for name, bad := range badArchives(t) {
		t.Run(name, func(t *testing.T) {
			for _, r := range []io.Reader{bytes.NewReader(bad.data), archiveFile(t, bad.data)} {
				_, err := s.Import(ctx, r, ImportOptions{})
				wantError(t, err, bad.want)
			}
			if list, _ := s.List(ctx); len(list) != 0 {
				t.Errorf("left images %+v", list)
			}
		})
	}
	nothingKept(t, s)
	_, err := s.Import(ctx, io.MultiReader(bytes.NewReader(packed(t, small("localhost/a:1"))[:4000]), brokenReader{}), ImportOptions{})
	wantError(t, err, "cable pulled")
	nothingKept(t, s)
}

// archiveFile is an archive as the daemon opens it.
func archiveFile(t testing.TB, data []byte) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, fmt.Errorf("cable pulled") }

// hostileLayers must give an error or a tree that stays inside.
func hostileLayers(canary string) map[string][]image.Layer {
	up := strings.Repeat("../", 40)
	evil := func(path string) image.File { return image.Text(path, "evil") }
	base := filepath.Base(canary)
	one := func(f ...image.File) []image.Layer { return []image.Layer{f} }
	return map[string][]image.Layer{
		"dotdot":                    one(evil(up + canary[1:] + "/x")),
		"dotdot inside":             one(evil("a/../../../b")),
		"absolute":                  one(evil(canary + "/x")),
		"symlink then file":         one(image.Symlink("link", canary), evil("link/x")),
		"relative link then file":   one(image.Symlink("link", up+canary[1:]), evil("link/x")),
		"link chain then file":      one(image.Symlink("a", canary), image.Symlink("b", "a"), evil("b/x")),
		"link in a lower layer":     {{image.Symlink("link", canary)}, {evil("link/x")}},
		"link above what inherits":  {{image.Dir("d"), image.File{Path: "d/" + base, Type: tar.TypeDir, Mode: 0o777}}, {evil("d/" + base + "/x"), image.Symlink("d", filepath.Dir(canary))}},
		"link below a lower link":   {{image.Symlink("etc", canary)}, {image.Dir("etc"), evil("etc/x")}},
		"hard link outside":         one(image.Hardlink("h", canary+"/secret")),
		"hard link dotdot":          one(image.Hardlink("h", up+canary[1:]+"/secret")),
		"hard link through link":    one(image.Symlink("link", canary), image.Hardlink("h", "link/secret")),
		"hard link then write":      one(image.Hardlink("h", up+canary[1:]+"/secret"), evil("h")),
		"symlink replaced":          one(image.Symlink("x", canary+"/secret"), evil("x")),
		"whiteout of dotdot":        one(image.File{Path: ".wh..."}),
		"whiteout of dot":           one(image.File{Path: ".wh.."}),
		"whiteout outside":          one(image.File{Path: up + canary[1:] + "/.wh.secret"}),
		"whiteout through link":     one(image.Symlink("link", canary), image.File{Path: "link/.wh.secret"}),
		"opaque through link":       one(image.Symlink("link", canary), image.File{Path: "link/.wh..wh..opq"}),
		"whiteout in upper link":    {{image.Symlink("link", canary)}, {image.File{Path: "link/.wh.secret"}}},
		"opaque of the root":        {{evil("a")}, {image.File{Path: ".wh..wh..opq"}}},
		"aufs plumbing":             one(image.Dir(".wh..wh.plnk"), evil(".wh..wh.plnk/x"), image.Hardlink("h", ".wh..wh.plnk/x")),
		"folder over link":          one(image.Symlink("d", canary), image.Dir("d"), evil("d/x")),
		"chmod through link":        one(image.Symlink("d", canary), image.File{Path: "d", Type: tar.TypeDir, Mode: 0o777}),
		"root is a link":            one(image.Symlink("./", canary), evil("x")),
		"root is a file":            one(image.File{Path: "."}, evil("x")),
		"device":                    one(image.File{Path: "disk", Type: tar.TypeBlock, Major: 254, Mode: 0o666}),
		"fifo then write":           one(image.File{Path: "p", Type: tar.TypeFifo}, evil("p")),
		"set-uid":                   one(image.File{Path: "su", Mode: 0o6755, Data: []byte("x")}),
		"empty name":                one(image.File{Path: ""}),
		"name of NUL":               one(evil("a\x00b")),
		"long name":                 one(evil(strings.Repeat("n", 5000))),
		"deep folder":               one(evil(strings.Repeat("d/", 2500) + "x")),
		"escape codes":              one(evil("\x1b[2J\n\r")),
		"unknown type":              one(image.File{Path: "x", Type: 'Z'}),
		"link to itself":            one(image.Symlink("x", "x"), evil("x/y")),
		"hard link to itself":       one(image.Hardlink("x", "x")),
		"hard link to folder":       one(image.Dir("d"), image.Hardlink("x", "d")),
		"overlay marks":             one(image.File{Path: "d", Type: tar.TypeDir, Xattrs: map[string]string{"trusted.overlay.opaque": "y", "trusted.overlay.redirect": canary}}),
		"metacopy to the host":      one(image.File{Path: "f", Xattrs: map[string]string{"trusted.overlay.metacopy": "", "trusted.overlay.redirect": canary + "/secret"}}),
		"character device 0:0":      {{evil("gone")}, {image.File{Path: "gone", Type: tar.TypeChar}}},
		"large attribute":           one(image.File{Path: "x", Xattrs: map[string]string{"user.x": strings.Repeat("x", 1<<20)}}),
		"many small files":          {many(3000)},
		"proc of the unpacker":      one(image.Symlink("p", "/proc/self/root"+canary), evil("p/x")),
		"working folder":            one(image.Symlink("p", "/proc/self/cwd"), evil("p/canary-x")),
		"file as folder":            one(evil("f"), evil("f/x")),
		"dots as name":              one(evil("..."), evil(".. /x")),
		"backslashes":               one(evil(`..\..\x`)),
		"double entry":              one(evil("x"), image.Dir("x"), evil("x")),
		"link out in parent folder": one(image.Dir("a"), image.Symlink("a/b", up+canary[1:]), evil("a/b/x")),
	}
}

func many(n int) image.Layer {
	l := make(image.Layer, n)
	for i := range l {
		l[i] = image.Text(fmt.Sprintf("d%d/f%d", i%50, i), "")
	}
	return l
}

func TestHostileLayersStayInside(t *testing.T) {
	ctx := context.Background()
	canary := t.TempDir()
	write(t, filepath.Join(canary, "secret"), "secret")
	before, err := os.Stat(canary)
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, folders(t))
	n := 0
	for name, layers := range hostileLayers(canary) {
		n++
		t.Run(name, func(t *testing.T) {
			data, err := image.Bytes(image.Spec{Name: "localhost/evil:1", Layers: layers})
			if err != nil {
				t.Skipf("no tar can say this: %v", err)
			}
			if list, err := s.Import(ctx, bytes.NewReader(data), ImportOptions{}); err == nil {
				root := mountAs(t, s, "evil", list[0].ID)
				walkInside(t, root)
				if err := s.Unmount(ctx, "evil"); err != nil {
					t.Fatal(err)
				}
				if err := s.Remove(ctx, list[0].ID); err != nil {
					t.Fatal(err)
				}
			} else {
				t.Logf("refused: %s", short(err.Error()))
			}
			wantFile(t, filepath.Join(canary, "secret"), "secret")
			after, err := os.Stat(canary)
			if err != nil || after.Mode() != before.Mode() {
				t.Errorf("the canary's folder changed: %v, %v", after, err)
			}
			if list, _ := os.ReadDir(canary); len(list) != 1 {
				t.Errorf("outside there is now %v", list)
			}
			if _, err := os.Lstat("canary-x"); err == nil {
				t.Error("a file came into the working folder")
			}
		})
	}
	nothingKept(t, s)
}

// walkInside reads every regular file of a tree: none may be the host's secret.
func walkInside(t *testing.T, root string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil //nolint:nilerr // what cannot be read leaks nothing
		}
		if data, err := os.ReadFile(path); err == nil && string(data) == "secret" {
			t.Errorf("%s holds the host's secret", path)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
