package images

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// entriesOf reads a text as entries of a tar: "TYPE|NAME|LINK" a line.
func entriesOf(text string) []*tar.Header {
	var out []*tar.Header
	for line := range strings.SplitSeq(text, "\n") {
		f := strings.SplitN(line, "|", 3)
		if len(f) != 3 || f[0] == "" || len(out) == 20 {
			continue
		}
		h := &tar.Header{Typeflag: f[0][0], Name: f[1], Linkname: f[2], Mode: 0o755, Format: tar.FormatPAX}
		switch h.Typeflag {
		case tar.TypeReg:
			h.Size = 4
		case tar.TypeDir:
			h.PAXRecords = map[string]string{"SCHILY.xattr.trusted.overlay.redirect": f[2], "SCHILY.xattr.user.x": f[2]}
		}
		out = append(out, h)
	}
	return out
}

// FuzzLayer unpacks two layers, whatever their paths, links and types are, and
// puts one onto the other: nothing beside their folders changes.
func FuzzLayer(f *testing.F) {
	for _, s := range []string{
		"0|../secret|", "2|l|../../beside\n0|l/secret|", "2|l|/\n0|l/tmp/x|", "1|h|../beside/secret\n0|h|", "5|d|y\n2|d|..\n0|d/x|",
		"0|.wh...|", "2|l|../beside\n0|l/.wh.secret|", "2|l|../beside\n0|l/.wh..wh..opq|", "3|dev|\n0|dev|", "6|p|\n0|p|", "5|a/b/../../..|x", "2|./|../beside\n0|x|",
	} {
		f.Add(s, "0|l/secret|\n0|d/x/y|")
		f.Add("5|d|\n5|d/x|", s)
	}
	f.Fuzz(func(t *testing.T, first, second string) {
		if os.Geteuid() != 0 {
			t.Skip("needs root, for owners and devices")
		}
		base, err := os.MkdirTemp(memory(), "fuzz")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(base)
		beside := filepath.Join(base, "beside")
		if err := os.Mkdir(beside, 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(beside, "secret"), "secret")
		var below []string
		for i, text := range []string{first, second} {
			root := filepath.Join(base, "layer"+string(rune('0'+i)))
			if err := os.Mkdir(root, 0o755); err != nil {
				t.Fatal(err)
			}
			for _, dir := range fuzzUnpack(t, root, entriesOf(text)) {
				_ = inheritOne(root, below, dir) // an error is as good as a safe tree
			}
			below = append(below, root)
		}
		wantFile(t, filepath.Join(beside, "secret"), "secret")
		for dir, n := range map[string]int{base: 3, beside: 1} {
			info, err := os.Stat(dir)
			if list, _ := os.ReadDir(dir); err != nil || len(list) != n || info.Mode().Perm() != 0o700 && dir == beside {
				t.Errorf("%q and %q changed %s: %v, %v", first, second, dir, list, info.Mode())
			}
		}
	})
}

// memory is a folder without a disk behind it, where there is one.
func memory() string {
	if _, err := os.Stat("/dev/shm"); err != nil {
		return ""
	}
	return "/dev/shm"
}

// fuzzUnpack unpacks entries as a pull does and gives the directories that have none of their own.
func fuzzUnpack(t *testing.T, root string, entries []*tar.Header) []string {
	t.Helper()
	var data bytes.Buffer
	w := tar.NewWriter(&data)
	for _, h := range entries {
		if w.WriteHeader(h) == nil && h.Size > 0 {
			if _, err := io.WriteString(w, "evil"); err != nil {
				t.Fatal(err)
			}
		}
	}
	_ = w.Close() // what it refuses is not in the tar
	seen := directories{limits: limits{root: root}, own: map[string]bool{}}
	_, _ = archive.Apply(context.Background(), root, &data, archive.WithConvertWhiteout(seen.convert))
	return seen.implied()
}

// oneBlob has the same bytes for every digest.
type oneBlob struct{ data []byte }

func (b oneBlob) ReaderAt(context.Context, ocispec.Descriptor) (content.ReaderAt, error) {
	return blobReader{bytes.NewReader(b.data)}, nil
}

type blobReader struct{ *bytes.Reader }

func (blobReader) Close() error { return nil }

// FuzzManifest reads manifests and indexes: what they name has a digest, a size
// and a type that images have, or they are refused.
func FuzzManifest(f *testing.F) {
	const config = `"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:` + zeros64 + `","size":2}`
	for _, s := range []string{
		`{"schemaVersion":2,` + config + `,"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:` + zeros64 + `","size":-1}]}`,
		`{"schemaVersion":2,` + config + `}`, `{"schemaVersion":1}`, `{}`, `null`, `[]`, `{"manifests":[{"digest":"../x"}]}`,
		`{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:` + zeros64 + `","size":5,"annotations":{"org.opencontainers.image.ref.name":"../../x:1"}}]}`,
	} {
		f.Add([]byte(s), true)
		f.Add([]byte(s), false)
	}
	f.Fuzz(func(t *testing.T, data []byte, index bool) {
		ctx := context.Background()
		d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(data), Size: int64(len(data))}
		if index {
			d.MediaType = ocispec.MediaTypeImageIndex
		}
		take := &taking{depth: map[digest.Digest]int{d.Digest: 0}, read: map[digest.Digest]bool{}}
		children, err := take.children(oneBlob{data})(ctx, d)
		if err != nil {
			return
		}
		if !index && (len(children) == 0 || len(children) > maxLayers+1) {
			t.Errorf("%s has %d children", data, len(children))
		}
		for _, c := range children {
			if _, err := take.sane(ctx, c); err == nil && (c.Digest.Validate() != nil || c.Size < 0) {
				t.Errorf("%s: %+v passes", data, c)
			}
		}
		list, err := choose(data, d, "")
		for _, n := range list {
			if full, e := Normalize(n.name); err == nil && n.name != "" && (e != nil || full != n.name) {
				t.Errorf("%s gives the name %q", data, n.name)
			}
		}
	})
}

const zeros64 = "0000000000000000000000000000000000000000000000000000000000000000"

// FuzzKeyring reads credentials: each goes to the registry of the image alone,
// and no error tells one.
func FuzzKeyring(f *testing.F) {
	f.Add([]byte(`{"auths":{"*.example.com/a":{"auth":"aHVzaDpodXNo"}}}`), "r.example.com/a/b:1")
	f.Add([]byte(`{"auths":{"https://index.docker.io/v1/":{"username":"u","password":"hush-hush"}}}`), "busybox")
	f.Add([]byte(`{"auths":{"[":{"password":"x"}}}`), "a.b/c")
	f.Fuzz(func(t *testing.T, config []byte, ref string) {
		var k Keyring
		if err := k.Add(config); err != nil && strings.Contains(err.Error(), "hush") {
			t.Errorf("%q: %v", config, err)
		}
		auths, err := k.For(ref)
		if err != nil {
			return
		}
		full, err := Normalize(ref)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range auths {
			if a.ServerAddress == "" || !strings.HasPrefix(full, a.ServerAddress+"/") {
				t.Errorf("%q: a credential of %q goes to %q", config, full, a.ServerAddress)
			}
		}
	})
}
