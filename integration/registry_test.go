//go:build integration

package integration

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"log"
	"net"
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

// testRegistry is a registry on the loopback of a host, run by the test.
type testRegistry struct {
	addr  string // "127.0.0.1:PORT" on the host
	inner http.Handler

	mu     sync.Mutex
	auths  map[string]bool // Authorization headers that came
	before func(w http.ResponseWriter, r *http.Request) bool
}

// newRegistry starts a registry on the host.
func (n *node) newRegistry() *testRegistry {
	n.t.Helper()
	r := &testRegistry{inner: registry.New(registry.Logger(log.New(io.Discard, "", 0))), auths: map[string]bool{}}
	listener, err := n.listen()
	if err != nil {
		n.t.Fatal(err)
	}
	server := &http.Server{Handler: r}
	go server.Serve(listener)
	n.t.Cleanup(func() { server.Close() })
	r.addr = listener.Addr().String()
	return r
}

// listen opens a port on the host's loopback.
func (n *node) listen() (l net.Listener, err error) {
	err = n.inside(func() error {
		l, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	})
	return l, err
}

func (r *testRegistry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	if a := q.Header.Get("Authorization"); a != "" {
		r.auths[a] = true
	}
	before := r.before
	r.mu.Unlock()
	if before == nil || before(w, q) {
		r.inner.ServeHTTP(w, q)
	}
}

// meddle has f look at each request; false is: f has answered it.
func (r *testRegistry) meddle(f func(w http.ResponseWriter, q *http.Request) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.before = f
}

// RoundTrip brings a request of the test to the registry without the host's network.
func (r *testRegistry) RoundTrip(q *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	if q.Body == nil {
		q.Body = http.NoBody
	}
	r.inner.ServeHTTP(w, q)
	a := w.Result()
	a.Request = q
	return a, nil
}

// push puts an image into the registry and gives its reference.
func (r *testRegistry) push(t *testing.T, repo string, s image.Spec) string {
	t.Helper()
	dir := t.TempDir()
	s.Name = ""
	raw, err := image.Bytes(s)
	if err != nil {
		t.Fatal(err)
	}
	extractTo(t, raw, dir)
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
	ref := r.addr + "/" + repo
	tag, err := name.NewTag(ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, img, remote.WithTransport(r)); err != nil {
		t.Fatal(err)
	}
	return ref
}

func extractTo(t *testing.T, archive []byte, dir string) {
	t.Helper()
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, h.Name)
		if strings.HasSuffix(h.Name, "/") {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
