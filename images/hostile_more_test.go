package images

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// tinyFiles is how many files the layer of TestManyTinyFiles has: "make hostile" has a million.
func tinyFiles() int { return flag.Lookup("tinyfiles").Value.(flag.Getter).Get().(int) }

// importEnv holds "ROOT:RUN:FOLDER" for a process that imports the image of a
// folder once, and prints how much memory that took.
const importEnv = "PAUSA_IMAGES_TEST_IMPORT"

func importOnce() {
	parts := filepath.SplitList(os.Getenv(importEnv))
	s, err := Open(context.Background(), Options{Root: parts[0], Run: parts[1], Log: slog.New(slog.DiscardHandler)})
	if err == nil {
		_, err = s.ImportDir(context.Background(), parts[2])
		err = errors.Join(err, s.Close())
	}
	status, _ := os.ReadFile("/proc/self/status")
	_, peak, _ := strings.Cut(string(status), "VmHWM:")
	peak, _, _ = strings.Cut(peak, "kB")
	fmt.Println(strings.TrimSpace(peak))
	if err != nil {
		fmt.Println(err)
	}
}

// importApart imports the folder in a process of its own and gives the peak of
// its memory, in MB, and the import's error.
func importApart(t *testing.T, o Options, dir string) (peak int, text string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), importEnv+"="+o.Root+":"+o.Run+":"+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	first, rest, _ := strings.Cut(string(out), "\n")
	kB, err := strconv.Atoi(first)
	if err != nil {
		t.Fatalf("%q: %v", out, err)
	}
	return kB >> 10, rest
}

// blobFolder is an OCI layout folder that is written blob by blob.
type blobFolder struct {
	t      testing.TB
	dir    string
	layers []ocispec.Descriptor
	diffs  []digest.Digest
}

func newBlobFolder(t testing.TB) *blobFolder {
	l := &blobFolder{t: t, dir: t.TempDir()}
	if err := os.MkdirAll(filepath.Join(l.dir, "blobs/sha256"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(l.dir, "oci-layout"), `{"imageLayoutVersion":"1.0.0"}`)
	return l
}

func (l *blobFolder) blob(mediaType string, data []byte) ocispec.Descriptor {
	d := describe(mediaType, data)
	write(l.t, filepath.Join(l.dir, "blobs/sha256", d.Digest.Encoded()), string(data))
	return d
}

// layer streams a gzip layer that body writes.
func (l *blobFolder) layer(body func(w *tar.Writer) error) {
	l.t.Helper()
	f, err := os.CreateTemp(l.dir, "layer")
	if err != nil {
		l.t.Fatal(err)
	}
	packed, plain := digest.Canonical.Digester(), digest.Canonical.Digester()
	buffered := bufio.NewWriterSize(io.MultiWriter(f, packed.Hash()), 1<<20)
	zipped, err := gzip.NewWriterLevel(buffered, gzip.BestSpeed)
	if err != nil {
		l.t.Fatal(err)
	}
	w := tar.NewWriter(io.MultiWriter(zipped, plain.Hash()))
	if err := errors.Join(body(w), w.Close(), zipped.Close(), buffered.Flush()); err != nil {
		l.t.Fatal(err)
	}
	info, err := f.Stat()
	if err := errors.Join(err, f.Close(), os.Rename(f.Name(), filepath.Join(l.dir, "blobs/sha256", packed.Digest().Encoded()))); err != nil {
		l.t.Fatal(err)
	}
	l.layers = append(l.layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: packed.Digest(), Size: info.Size()})
	l.diffs = append(l.diffs, plain.Digest())
}

// finish writes config, manifest and index, and gives the folder.
func (l *blobFolder) finish() string {
	config := l.blob(ocispec.MediaTypeImageConfig, text(l.t, ocispec.Image{RootFS: ocispec.RootFS{Type: "layers", DiffIDs: l.diffs}}))
	return l.index(l.blob(ocispec.MediaTypeImageManifest, manifest(l.t, config, l.layers...)))
}

func (l *blobFolder) index(d ocispec.Descriptor) string {
	d.Annotations = map[string]string{ocispec.AnnotationRefName: "localhost/hostile:1"}
	write(l.t, filepath.Join(l.dir, "index.json"), string(text(l.t, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{d}})))
	return l.dir
}

func tinyName(i int) string { return fmt.Sprintf("d%d/f%d", i/1000, i) }

func TestManyTinyFiles(t *testing.T) {
	needMounts(t)
	n := tinyFiles()
	l := newBlobFolder(t)
	l.layer(func(w *tar.Writer) error {
		for i := range n {
			h := tar.Header{Typeflag: tar.TypeReg, Name: tinyName(i), Mode: 0o644, Size: 1}
			if err := w.WriteHeader(&h); err != nil {
				return err
			}
			if _, err := w.Write([]byte{'x'}); err != nil {
				return err
			}
		}
		return nil
	})
	o := folders(t)
	peak, failed := importApart(t, o, l.finish())
	t.Logf("%d files: %d MB", n, peak)
	if limit := 120 + n*500>>20; failed != "" || peak > limit { // what is kept of a file is its path, twice
		t.Errorf("%d files took %d MB of memory, the limit is %d: %s", n, peak, limit, failed)
	}
	s := open(t, o)
	if _, err := os.Stat(filepath.Join(mountAs(t, s, "c", "localhost/hostile:1"), tinyName(n-1))); err != nil {
		t.Error(err)
	}
}

// A small blob may stand for more than the disk holds, and for much more than
// the memory does.
func TestBombs(t *testing.T) {
	const size = 300 << 20 // more than the disk has, and than the memory that is allowed
	giant := func(name string) *tar.Header {
		return &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size}
	}
	zeros := func(w io.Writer) error {
		_, err := io.CopyN(w, zeroes{}, size)
		return err
	}
	for name, make := range map[string]func(l *blobFolder){
		"gzip": func(l *blobFolder) {
			l.layer(func(w *tar.Writer) error {
				if err := w.WriteHeader(giant("big")); err != nil {
					return err
				}
				return zeros(w)
			})
		},
		"zstd": func(l *blobFolder) {
			var packed bytes.Buffer
			plain := digest.Canonical.Digester()
			z, err := zstd.NewWriter(&packed)
			if err != nil {
				t.Fatal(err)
			}
			w := tar.NewWriter(io.MultiWriter(z, plain.Hash()))
			for i := range 40 { // each of a size that fits
				h := giant(fmt.Sprintf("f%d", i))
				h.Size = size / 40
				if err := w.WriteHeader(h); err != nil {
					t.Fatal(err)
				}
				if _, err := io.CopyN(w, zeroes{}, h.Size); err != nil {
					t.Fatal(err)
				}
			}
			if err := errors.Join(w.Close(), z.Close()); err != nil {
				t.Fatal(err)
			}
			l.layers = append(l.layers, l.blob(ocispec.MediaTypeImageLayerZstd, packed.Bytes()))
			l.diffs = append(l.diffs, plain.Digest())
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newBlobFolder(t)
			make(l)
			o := onDisk(t, "size=64m")
			peak, failed := importApart(t, o, l.finish())
			if !strings.Contains(failed, "no space left on device") || !strings.Contains(failed, "free some space on the file system of "+o.Root) {
				t.Errorf("it ended with %q", failed)
			}
			if peak > 250 {
				t.Errorf("it took %d MB of memory", peak)
			}
			s := openOn(t, o)
			nothingKept(t, s)
			load(t, s, small("localhost/a:1"))
		})
	}
}

type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// declaredGiant is a tar whose one file says to have so many bytes.
func declaredGiant(t *testing.T, size int64) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := tar.NewWriter(&out).WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "giant", Mode: 0o644, Size: size, Format: tar.FormatGNU}); err != nil {
		t.Fatal(err)
	}
	return append(out.Bytes(), make([]byte, 4096)...)
}

// sparseGiant is a tar whose one file has 512 bytes at the end of a hole.
func sparseGiant(t *testing.T, size int64) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	const prefix = "XXX.sparse." // the writer refuses the true one
	body := make([]byte, 1024)
	copy(body, fmt.Sprintf("1\n%d\n512\n", size-512))
	err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "x", Mode: 0o644, Size: 1024, Format: tar.FormatPAX, PAXRecords: map[string]string{
		prefix + "major": "1", prefix + "minor": "0", prefix + "name": "giant", prefix + "realsize": strconv.FormatInt(size, 10),
	}})
	if err == nil {
		_, err = w.Write(body)
	}
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return bytes.ReplaceAll(out.Bytes(), []byte(prefix), []byte("GNU.sparse."))
}

// Files that say to be larger than any disk are refused before a byte of them
// is written, sparse ones too.
func TestGiants(t *testing.T) {
	needMounts(t)
	s := open(t, folders(t))
	for name, layer := range map[string][]byte{"declared": declaredGiant(t, 1<<50), "sparse": sparseGiant(t, 1<<50)} {
		config := text(t, ocispec.Image{RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(layer)}}})
		data := layoutOf(t, ocispec.MediaTypeImageManifest, config, layer,
			manifest(t, describe(ocispec.MediaTypeImageConfig, config), describe(ocispec.MediaTypeImageLayer, layer)))
		_, err := s.Import(context.Background(), bytes.NewReader(data), ImportOptions{})
		if !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%s: %v", name, err)
		}
		wantError(t, err, `file "giant" of the layer has 1125899906842624 bytes`)
	}
	nothingKept(t, s)
}

// Documents that name each other many times are read once each.
func TestIndexesThatNameEachOther(t *testing.T) {
	ctx := context.Background()
	s := open(t, folders(t))
	var layer bytes.Buffer
	if err := tar.NewWriter(&layer).Close(); err != nil {
		t.Fatal(err)
	}
	config := text(t, ocispec.Image{RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(layer.Bytes())}}})
	m := manifest(t, describe(ocispec.MediaTypeImageConfig, config), describe(ocispec.MediaTypeImageLayer, layer.Bytes()))
	blobs, last := [][]byte{config, layer.Bytes(), m}, describe(ocispec.MediaTypeImageManifest, m)
	for range maxDepth - 1 {
		many := make([]ocispec.Descriptor, 1000)
		for i := range many {
			many[i] = last
		}
		index := text(t, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: many})
		blobs, last = append(blobs, index), describe(ocispec.MediaTypeImageIndex, index)
	}
	list, err := s.Import(ctx, bytes.NewReader(layoutOf(t, ocispec.MediaTypeImageIndex, blobs...)), ImportOptions{AllPlatforms: true})
	if err != nil {
		t.Logf("refused: %v", err)
	}
	for _, img := range list {
		if err := s.Remove(ctx, img.ID); err != nil {
			t.Error(err)
		}
	}
	nothingKept(t, s)
}

// A registry that sends other than it announces.
func TestRegistriesThatLie(t *testing.T) {
	ctx := context.Background()
	r, o := newRegistry(t), folders(t)
	s := open(t, o)
	ref := r.push(t, "app:1", small("x", filler(1)))
	for name, c := range map[string]struct {
		answer func(w http.ResponseWriter, q *http.Request) bool
		want   string
	}{
		"an endless blob": {func(w http.ResponseWriter, q *http.Request) bool {
			if !strings.Contains(q.URL.Path, "/blobs/") {
				return true
			}
			_, _ = io.Copy(w, io.LimitReader(zeroes{}, 1<<30)) // until the store hangs up
			return false
		}, "past expected size"},
		"a manifest of 100 MB": {func(w http.ResponseWriter, q *http.Request) bool {
			if !strings.Contains(q.URL.Path, "/manifests/") {
				return true
			}
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			w.Header().Set("Docker-Content-Digest", digest.FromString("x").String())
			w.Header().Set("Content-Length", strconv.Itoa(100<<20))
			if q.Method != http.MethodHead {
				_, _ = io.Copy(w, io.LimitReader(zeroes{}, 100<<20))
			}
			return false
		}, "rejecting 104857600 byte manifest"},
		"an endless manifest": {func(w http.ResponseWriter, q *http.Request) bool {
			if !strings.Contains(q.URL.Path, "/manifests/") {
				return true
			}
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			if q.Method != http.MethodHead {
				_, _ = io.Copy(w, io.LimitReader(zeroes{}, 1<<30))
			}
			return false
		}, "pull image"},
		"a redirect in a circle": {func(w http.ResponseWriter, q *http.Request) bool {
			if !strings.Contains(q.URL.Path, "/blobs/") {
				return true
			}
			http.Redirect(w, q, q.URL.String(), http.StatusTemporaryRedirect)
			return false
		}, "redirect"},
	} {
		r.fail(c.answer)
		_, err := s.Pull(ctx, ref, PullOptions{})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if used, err := count(ctx, o.Root); err != nil || used.Bytes > 16<<20 {
			t.Errorf("%s: the store took %d bytes, %v", name, used.Bytes, err)
		}
	}
	if list, _ := s.List(ctx); len(list) != 0 {
		t.Errorf("left %+v", list)
	}
	s.garbage()
	r.fail(nil)
	if _, err := s.Pull(ctx, ref, PullOptions{}); err != nil {
		t.Errorf("a good pull after bad ones: %v", err)
	}
}
