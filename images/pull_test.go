package images

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/pausa-run/pausa/integration/mkimage/image"
)

// testRegistry is a registry on loopback that counts and can be made to fail.
type testRegistry struct {
	*httptest.Server
	mu     sync.Mutex
	gets   map[string]int // of blobs, by path
	auths  []string       // Authorization headers that came
	before func(w http.ResponseWriter, r *http.Request) bool
}

func newRegistry(t testing.TB) *testRegistry {
	t.Helper()
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	r := &testRegistry{gets: map[string]int{}}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		r.mu.Lock()
		if q.Method == http.MethodGet && strings.Contains(q.URL.Path, "/blobs/") {
			r.gets[q.URL.Path]++
		}
		if a := q.Header.Get("Authorization"); a != "" {
			r.auths = append(r.auths, a)
		}
		before := r.before
		r.mu.Unlock()
		if before == nil || before(w, q) {
			inner.ServeHTTP(w, q)
		}
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *testRegistry) host() string { return strings.TrimPrefix(r.URL, "http://") }

func (r *testRegistry) fail(f func(w http.ResponseWriter, r *http.Request) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.before = f
}

// push puts an image into the registry and gives its reference.
func (r *testRegistry) push(t testing.TB, repo string, s image.Spec) string {
	t.Helper()
	dir := t.TempDir()
	s.Name = ""
	extract(t, packed(t, s), dir)
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	img, err := index.Image(m.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	ref := r.host() + "/" + repo
	tag, err := name.NewTag(ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, img); err != nil {
		t.Fatal(err)
	}
	return ref
}

func TestPull(t *testing.T) {
	ctx := context.Background()
	r, s := newRegistry(t), open(t, folders(t))
	ref := r.push(t, "team/app:1", small("x", filler(1), image.Filler(2, 3<<20)))
	var mu sync.Mutex
	done := map[string]int64{}
	got, err := s.Pull(ctx, ref, PullOptions{Progress: func(p Progress) {
		mu.Lock()
		defer mu.Unlock()
		if p.Bytes > p.Total || p.Ref != ref {
			t.Errorf("progress %+v", p)
		}
		if p.Done {
			done[p.Digest] = p.Bytes
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	if len(done) != 5 { // manifest, config, three layers
		t.Errorf("done %v", done)
	}
	if len(got.RepoTags) != 1 || got.RepoTags[0] != ref {
		t.Errorf("got %+v", got)
	}
	wantFile(t, filepath.Join(mountAs(t, s, "c1", ref), "name"), "x")
	byDigest, err := s.Pull(ctx, got.RepoDigests[0], PullOptions{})
	if err != nil || byDigest.ID != got.ID {
		t.Errorf("by digest: %+v, %v", byDigest, err)
	}
	for path, n := range r.gets {
		if n != 1 {
			t.Errorf("%s was fetched %d times", path, n)
		}
	}
}

func TestPullsOfOneImageFetchEachBlobOnce(t *testing.T) {
	r, s := newRegistry(t), open(t, folders(t))
	ref := r.push(t, "app:1", small("x", filler(1), filler(2)))
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if _, err := s.Pull(context.Background(), ref, PullOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(r.gets) != 4 {
		t.Errorf("fetched %v", r.gets)
	}
	for path, n := range r.gets {
		if n != 1 {
			t.Errorf("%s was fetched %d times", path, n)
		}
	}
}

func TestPullIsTriedAgain(t *testing.T) {
	r, s := newRegistry(t), open(t, folders(t))
	ref := r.push(t, "app:1", small("x", filler(1)))
	failures := map[string]int{}
	r.fail(func(w http.ResponseWriter, q *http.Request) bool {
		failures[q.URL.Path]++
		if strings.Contains(q.URL.Path, "/blobs/") && failures[q.URL.Path] == 1 {
			w.WriteHeader(http.StatusBadGateway)
			return false
		}
		return true
	})
	r.Config.SetKeepAlivesEnabled(false)
	if _, err := s.Pull(context.Background(), ref, PullOptions{}); err != nil {
		t.Fatal(err)
	}
}

func TestPullErrors(t *testing.T) {
	ctx := context.Background()
	r, s := newRegistry(t), open(t, folders(t))
	ref := r.push(t, "app:1", small("x", filler(1)))
	if _, err := s.Pull(ctx, r.host()+"/none:1", PullOptions{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("no such image: %v", err)
	}
	if _, err := s.Pull(ctx, "Not Good", PullOptions{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("bad name: %v", err)
	}
	_, err := s.Pull(ctx, ref, PullOptions{Auth: Auth{Auth: "%%%"}})
	wantError(t, err, "base64")

	r.fail(func(w http.ResponseWriter, q *http.Request) bool {
		if !strings.Contains(q.URL.Path, "/blobs/") {
			return true
		}
		_, _ = w.Write(make([]byte, 300)) // neither the size nor the digest
		return false
	})
	_, err = s.Pull(ctx, ref, PullOptions{})
	wantError(t, err, "sha256:")
	if list, _ := s.List(ctx); len(list) != 0 {
		t.Errorf("a failed pull left %+v", list)
	}
	r.fail(nil)
	if _, err := s.Pull(ctx, ref, PullOptions{}); err != nil {
		t.Errorf("a good pull after a bad one: %v", err)
	}
	if err := s.Remove(ctx, ref); err != nil {
		t.Fatal(err)
	}
	nothingKept(t, s)
}

func TestCredentialsGoToTheirHostOnly(t *testing.T) {
	ctx := context.Background()
	r, mirror := newRegistry(t), newRegistry(t)
	o := folders(t)
	o.RegistryConfig = t.TempDir()
	ref := r.push(t, "app:1", small("x", filler(1)))
	_ = mirror.push(t, "app:1", small("x", filler(1)))
	challenge := func(w http.ResponseWriter, q *http.Request) bool {
		if user, password, ok := q.BasicAuth(); ok && user == "me" && password == "secret" {
			return true
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return false
	}
	r.fail(challenge)
	mirror.fail(challenge)
	dir := filepath.Join(o.RegistryConfig, r.host())
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "hosts.toml"), fmt.Sprintf("server = %q\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", r.URL, mirror.URL))
	s := open(t, o)
	_, err := s.Pull(ctx, ref, PullOptions{})
	wantError(t, err, "credential")
	auth := base64.StdEncoding.EncodeToString([]byte("me:secret"))
	if _, err := s.Pull(ctx, ref, PullOptions{Auth: Auth{Auth: auth}}); err != nil {
		t.Error(err)
	}
	if len(mirror.auths) != 0 {
		t.Errorf("the mirror saw %v", mirror.auths)
	}
	config := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, r.host(), auth)
	write(t, filepath.Join(os.Getenv("DOCKER_CONFIG"), "config.json"), config)
	if _, err := s.Pull(ctx, ref, PullOptions{}); err != nil {
		t.Errorf("with docker's configuration: %v", err)
	}
	if len(mirror.auths) != 0 {
		t.Errorf("the mirror saw %v", mirror.auths)
	}
}

func TestMirrorIsUsed(t *testing.T) {
	r, mirror := newRegistry(t), newRegistry(t)
	o := folders(t)
	o.RegistryConfig = t.TempDir()
	_ = mirror.push(t, "app:1", small("x", filler(1)))
	dir := filepath.Join(o.RegistryConfig, r.host())
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "hosts.toml"), fmt.Sprintf("server = %q\n[host.%q]\n", r.URL, mirror.URL))
	s := open(t, o)
	if _, err := s.Pull(context.Background(), r.host()+"/app:1", PullOptions{}); err != nil {
		t.Fatal(err)
	}
	if len(r.gets) != 0 || len(mirror.gets) != 3 {
		t.Errorf("registry %v, mirror %v", r.gets, mirror.gets)
	}
}

func TestPullStopsWhenNobodyWaits(t *testing.T) {
	r, s := newRegistry(t), open(t, folders(t))
	ref := r.push(t, "app:1", small("x", filler(1)))
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan struct{})
	var once sync.Once
	r.fail(func(_ http.ResponseWriter, q *http.Request) bool {
		if !strings.Contains(q.URL.Path, "/blobs/") {
			return true
		}
		cancel()
		<-q.Context().Done() // the store hangs up
		once.Do(func() { close(stopped) })
		return false
	})
	if _, err := s.Pull(ctx, ref, PullOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled pull: %v", err)
	}
	<-stopped
	r.fail(nil)
	if _, err := s.Pull(context.Background(), ref, PullOptions{}); err != nil {
		t.Error(err)
	}
}
