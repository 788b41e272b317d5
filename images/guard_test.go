package images

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestPullsAreBounded(t *testing.T) {
	r, o := newRegistry(t), folders(t)
	o.MaxConcurrentPulls = 2
	s := open(t, o)
	var refs []string
	for _, n := range []string{"aa", "bb", "cc", "dd", "ee"} {
		refs = append(refs, r.push(t, n+":1", small(n, filler(1))))
	}
	var mu sync.Mutex
	busy := map[string]bool{} // repositories that are being fetched
	most := 0
	begin := make(chan struct{}, 5)
	release := make(chan struct{})
	r.fail(func(_ http.ResponseWriter, q *http.Request) bool {
		if strings.Contains(q.URL.Path, "/manifests/") && q.Method == http.MethodHead {
			mu.Lock()
			busy[q.URL.Path] = true
			most = max(most, len(busy))
			mu.Unlock()
			begin <- struct{}{}
			<-release
			mu.Lock()
			delete(busy, q.URL.Path)
			mu.Unlock()
		}
		return true
	})
	var wg sync.WaitGroup
	for _, ref := range refs {
		wg.Go(func() {
			if _, err := s.Pull(context.Background(), ref, PullOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	<-begin
	<-begin
	close(release)
	wg.Wait()
	if most != 2 {
		t.Errorf("%d pulls at once", most)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	s.turns <- struct{}{}
	s.turns <- struct{}{}
	if _, err := s.Pull(ctx, refs[0], PullOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("waiting for a turn: %v", err)
	}
}

func TestARegistryThatSendsNothing(t *testing.T) {
	r, o := newRegistry(t), folders(t)
	o.PullProgressTimeout = 50 * time.Millisecond
	s := open(t, o)
	ref := r.push(t, "app:1", small("x", filler(1)))
	stalls := 0
	r.fail(func(w http.ResponseWriter, q *http.Request) bool {
		r.mu.Lock()
		stall := strings.Contains(q.URL.Path, "/blobs/") && stalls < 2
		if stall {
			stalls++
		}
		r.mu.Unlock()
		if stall {
			w.Header().Set("Content-Length", "30000")
			_, _ = w.Write([]byte("beginning"))
			w.(http.Flusher).Flush()
			<-q.Context().Done() // the store hangs up
		}
		return !stall
	})
	_, err := s.Pull(context.Background(), ref, PullOptions{})
	if err != nil && !strings.Contains(err.Error(), "sha256:") {
		t.Errorf("after stalls: %v", err)
	}
	r.fail(func(_ http.ResponseWriter, q *http.Request) bool {
		<-q.Context().Done()
		return false
	})
	_, err = s.Pull(context.Background(), r.host()+"/other:1", PullOptions{})
	wantError(t, err, "sends nothing for 50ms", "images.pull_progress_timeout")
}

func TestPullOfAnotherPlatform(t *testing.T) {
	ctx := context.Background()
	r, s := newRegistry(t), open(t, folders(t))
	spec := small("x")
	spec.Platform = ocispec.Platform{OS: "linux", Architecture: "s390x"}
	ref := r.push(t, "app:1", spec)
	_, err := s.Pull(ctx, ref, PullOptions{})
	wantError(t, err, "only for linux/s390x")
	img, err := s.Pull(ctx, ref, PullOptions{Platform: "linux/s390x"})
	if err != nil || img.Config.Architecture != "s390x" {
		t.Fatalf("%+v, %v", img, err)
	}
	if list, _ := s.List(ctx); len(list) != 1 {
		t.Errorf("listed %+v", list)
	}
	_, err = s.Pull(ctx, ref, PullOptions{Platform: "linux/arm64"})
	wantError(t, err, "no image for linux/arm64")
	_, err = s.Pull(ctx, ref, PullOptions{Platform: "a/b/c/d/e"})
	if !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
}

func TestDigestOnly(t *testing.T) {
	ctx := context.Background()
	r, o := newRegistry(t), folders(t)
	o.DigestOnly = true
	s := open(t, o)
	ref := r.push(t, "app:1", small("x"))
	_, err := s.Pull(ctx, ref, PullOptions{})
	if !errors.Is(err, ErrRefused) {
		t.Fatal(err)
	}
	wantError(t, err, "images.digest_only")
	e, err := s.Explain(ctx, ref, Auth{})
	if err != nil || e.Refused == "" {
		t.Fatalf("%+v, %v", e, err)
	}
	byDigest := strings.TrimSuffix(ref, ":1") + "@" + e.Attempts[len(e.Attempts)-1].Digest
	if _, err := s.Pull(ctx, byDigest, PullOptions{}); err != nil {
		t.Error(err)
	}
}

func TestVerifiersDecide(t *testing.T) {
	ctx := context.Background()
	r, o := newRegistry(t), folders(t)
	o.VerifierDir = filepath.Join(t.TempDir(), "verifiers")
	s := open(t, o)
	good, bad := r.push(t, "good:1", small("good")), r.push(t, "bad:1", small("bad"))
	_, err := s.Pull(ctx, good, PullOptions{})
	wantError(t, err, "images.verifier_dir", "does not exist")
	if err := os.Mkdir(o.VerifierDir, 0o700); err != nil {
		t.Fatal(err)
	}
	script := `#!/bin/sh
read -r descriptor
case "$1 $2 $3 $5 $6 $descriptor" in
"-name ` + bad + ` -digest"*) echo "not signed by us"; exit 1;;
"-name ` + good + ` -digest -stdin-media-type application/vnd.oci.descriptor.v1+json "*"$4"*) exit 0;;
esac
exit 9
`
	if err := os.WriteFile(filepath.Join(o.VerifierDir, "check"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Pull(ctx, good, PullOptions{}); err != nil {
		t.Error(err)
	}
	_, err = s.Pull(ctx, bad, PullOptions{})
	if !errors.Is(err, ErrRefused) {
		t.Error(err)
	}
	wantError(t, err, "not signed by us")
	for path := range r.gets {
		if strings.Contains(path, "/bad/") {
			t.Errorf("%s was fetched before it was verified", path)
		}
	}
}

func TestExplain(t *testing.T) {
	ctx := context.Background()
	r, mirror, o := newRegistry(t), newRegistry(t), folders(t)
	o.RegistryConfig = t.TempDir()
	ref := r.push(t, "app:1", small("x"))
	dir := filepath.Join(o.RegistryConfig, r.host())
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "hosts.toml"), "server = \""+r.URL+"\"\n[host.\"http://127.0.0.1:1\"]\n[host.\""+mirror.URL+"\"]\n")
	mirror.fail(func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusForbidden)
		return false
	})
	s := open(t, o)
	e, err := s.Explain(ctx, ref, Auth{Username: "me", Password: "secret"})
	if err != nil || len(e.Attempts) != 3 || e.HostsFile != filepath.Join(dir, "hosts.toml") {
		t.Fatalf("%+v, %v", e, err)
	}
	dead, refused, own := e.Attempts[0], e.Attempts[1], e.Attempts[2]
	if !strings.Contains(dead.Status, "connection refused") || dead.Credential != "none" || dead.Used {
		t.Errorf("dead: %+v", dead)
	}
	if refused.Status != "403 Forbidden" || refused.Credential != "none" || refused.Used || refused.Endpoint != mirror.URL+"/v2" {
		t.Errorf("refused: %+v", refused)
	}
	if own.Status != "200 OK" || !own.Used || own.Credential != "given with the request (user me)" || own.Digest == "" {
		t.Errorf("own: %+v", own)
	}
	if len(r.gets) != 0 {
		t.Errorf("it fetched %v", r.gets)
	}
	mirror.fail(nil)
	plain, err := s.Explain(ctx, mirror.push(t, "app:1", small("x")), Auth{}) // no hosts.toml is for it
	if err != nil || len(plain.Attempts) != 2 {
		t.Fatalf("%+v, %v", plain, err)
	}
	if tls := plain.Attempts[0]; tls.Endpoint != "https://"+mirror.host()+"/v2" || tls.Used || !strings.Contains(tls.Status, "not in TLS") {
		t.Errorf("https: %+v", tls)
	}
	if a := plain.Attempts[1]; a.Endpoint != mirror.URL+"/v2" || !a.Used || a.Status != "200 OK" {
		t.Errorf("http: %+v", a)
	}
	if _, err := s.Explain(ctx, "Not Good", Auth{}); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
}
