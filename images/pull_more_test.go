package images

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/pausa-run/pausa/integration/mkimage/image"
)

// cutOff notes the Range headers of requests for blobs, and cuts the first
// answer for each large blob off in the middle. Only an honest registry knows ranges.
func cutOff(r *testRegistry, honest bool, wait func()) (ranges func() []string) {
	var mu sync.Mutex
	var seen []string
	cut := map[string]bool{}
	inner := r.Config.Handler
	r.fail(func(w http.ResponseWriter, q *http.Request) bool {
		if !strings.Contains(q.URL.Path, "/blobs/") || q.Method != http.MethodGet {
			return true
		}
		mu.Lock()
		if h := q.Header.Get("Range"); h != "" {
			seen = append(seen, h)
		}
		first := !cut[q.URL.Path]
		cut[q.URL.Path] = true
		mu.Unlock()
		if !first && q.Header.Get("Range") == "" {
			return true
		}
		ranged := q.Header.Get("Range") != ""
		asked := q.Clone(q.Context())
		asked.Header.Del("Range")
		whole := httptest.NewRecorder()
		inner.ServeHTTP(whole, asked) // comes here again, and goes through
		if ranged && honest {
			http.ServeContent(w, q, "", time.Time{}, bytes.NewReader(whole.Body.Bytes()))
			return false
		}
		if ranged {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return false
		}
		if whole.Body.Len() < 1<<20 {
			w.WriteHeader(whole.Code)
			_, _ = w.Write(whole.Body.Bytes())
			return false
		}
		w.Header().Set("Content-Length", whole.Header().Get("Content-Length"))
		_, _ = w.Write(whole.Body.Bytes()[:600_000])
		w.(http.Flusher).Flush()
		wait()
		panic(http.ErrAbortHandler)
	})
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(seen)
	}
}

func TestPullGoesOnWhereItWasCutOff(t *testing.T) {
	r, s := newRegistry(t), open(t, folders(t))
	ref := r.push(t, "app:1", small("x", image.Filler(1, 2<<20)))
	ranges := cutOff(r, true, func() {})
	if _, err := s.Pull(context.Background(), ref, PullOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := ranges(); len(got) != 1 || !strings.HasPrefix(got[0], "bytes=") || strings.HasPrefix(got[0], "bytes=0-") {
		t.Errorf("ranges %q", got)
	}
}

func TestPullBeginsAgainWithoutRanges(t *testing.T) {
	r, s := newRegistry(t), open(t, folders(t))
	ref := r.push(t, "app:1", small("x", image.Filler(1, 2<<20)))
	cutOff(r, false, func() {})
	if _, err := s.Pull(context.Background(), ref, PullOptions{}); err != nil {
		t.Fatal(err)
	}
}

func TestPullGoesOnAfterARestart(t *testing.T) {
	r, o := newRegistry(t), folders(t)
	ref := r.push(t, "app:1", small("x", image.Filler(1, 2<<20)))
	s := open(t, o)
	ctx, cancel := context.WithCancel(context.Background())
	half := make(chan struct{})
	var once sync.Once
	ranges := cutOff(r, true, func() {
		<-half // the client has read what came
		cancel()
	})
	_, err := s.Pull(ctx, ref, PullOptions{Progress: func(p Progress) {
		if p.Bytes > 0 && p.Total > 1<<20 {
			once.Do(func() { close(half) })
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled pull: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s.lock = nil
	s = open(t, o)
	if _, err := s.Pull(context.Background(), ref, PullOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := ranges(); len(got) != 1 || !strings.HasPrefix(got[0], "bytes=") || strings.HasPrefix(got[0], "bytes=0-") {
		t.Errorf("ranges %q", got)
	}
	if err := s.Remove(context.Background(), ref); err != nil {
		t.Fatal(err)
	}
	nothingKept(t, s)
}

func TestPullTakesThisPlatformOnly(t *testing.T) {
	r, s := newRegistry(t), open(t, folders(t))
	index := v1.ImageIndex(empty.Index)
	for _, arch := range []string{"s390x", goruntime.GOARCH, "ppc64le"} {
		spec := small(arch)
		spec.Name, spec.Platform = "", ocispec.Platform{OS: "linux", Architecture: arch}
		dir := t.TempDir()
		extract(t, packed(t, spec), dir)
		from, err := layout.ImageIndexFromPath(dir)
		if err != nil {
			t.Fatal(err)
		}
		m, err := from.IndexManifest()
		if err != nil {
			t.Fatal(err)
		}
		img, err := from.Image(m.Manifests[0].Digest)
		if err != nil {
			t.Fatal(err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add:        img,
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}},
		})
	}
	ref := r.host() + "/multi:1"
	tag, err := name.NewTag(ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(tag, index); err != nil {
		t.Fatal(err)
	}
	img, err := s.Pull(context.Background(), ref, PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if img.Config.Architecture != goruntime.GOARCH || len(r.gets) != 2 {
		t.Errorf("got %s, fetched %v", img.Config.Architecture, r.gets)
	}
	digest, err := index.Digest()
	if err != nil || img.RepoDigests[0] != r.host()+"/multi@"+digest.String() {
		t.Errorf("digests %v, %v", img.RepoDigests, err)
	}
	wantFile(t, filepath.Join(mountAs(t, s, "c1", ref), "name"), goruntime.GOARCH)
}
