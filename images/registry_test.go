package images

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// configured writes the hosts.toml of a registry, with files beside it, and
// gives its folder.
func configured(t *testing.T, o *Options, host, toml string) string {
	t.Helper()
	if o.RegistryConfig == "" {
		o.RegistryConfig = t.TempDir()
	}
	dir := filepath.Join(o.RegistryConfig, host)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "hosts.toml"), toml)
	return dir
}

// withTLS serves the registry a second time, over TLS.
func (r *testRegistry) withTLS(t *testing.T, change func(*tls.Config)) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(r.Config.Handler)
	s.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	change(s.TLS)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func pemFile(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	write(t, path, string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})))
}

// clientCertificate writes client.cert and client.key into dir.
func clientCertificate(t *testing.T, dir string) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "client"}, NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	pemFile(t, filepath.Join(dir, "client.cert"), "CERTIFICATE", der)
	pemFile(t, filepath.Join(dir, "client.key"), "PRIVATE KEY", private)
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// An own CA and a client certificate come from hosts.toml. The name in front of
// the registry is one that cannot be reached.
func TestCertificates(t *testing.T) {
	ctx := context.Background()
	const name = "registry.example.test"
	r, o := newRegistry(t), folders(t)
	r.push(t, "app:1", small("x"))
	certs := t.TempDir()
	clients := x509.NewCertPool()
	clients.AddCert(clientCertificate(t, certs))
	server := r.withTLS(t, func(c *tls.Config) { c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, clients })
	pemFile(t, filepath.Join(certs, "ca.crt"), "CERTIFICATE", server.Certificate().Raw)
	host := fmt.Sprintf("server = %q\n[host.%q]\n", server.URL, server.URL)
	for _, c := range []struct{ toml, want string }{
		{host, "certificate"}, // unknown authority
		{host + fmt.Sprintf("ca = %q\n", certs+"/ca.crt"), "certificate required"},
		{host + fmt.Sprintf("ca = %q\nclient = [[%q, %q]]\n", certs+"/ca.crt", certs+"/client.cert", certs+"/client.key"), ""},
		{host + fmt.Sprintf("skip_verify = true\nclient = [[%q, %q]]\n", certs+"/client.cert", certs+"/client.key"), ""},
	} {
		configured(t, &o, name, c.toml)
		s := open(t, o)
		_, err := s.Pull(ctx, name+"/app:1", PullOptions{})
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("with\n%s: %v, want %q", c.toml, err, c.want)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		s.lock = nil
	}
}

func TestMirrorsFallBackInOrder(t *testing.T) {
	ctx := context.Background()
	r, broken, lacking, o := newRegistry(t), newRegistry(t), newRegistry(t), folders(t)
	ref := r.push(t, "app:1", small("x", filler(1)))
	var mu sync.Mutex
	var asked []string
	note := func(name string, status int) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, q *http.Request) bool {
			mu.Lock()
			defer mu.Unlock()
			if strings.Contains(q.URL.Path, "/manifests/") && q.Method == http.MethodHead {
				asked = append(asked, name)
			}
			if status != 0 {
				w.WriteHeader(status)
			}
			return status == 0
		}
	}
	broken.fail(note("broken", http.StatusInternalServerError))
	lacking.fail(note("lacking", 0))
	r.fail(note("own", 0))
	configured(t, &o, r.host(), fmt.Sprintf("server = %q\n[host.%q]\n[host.%q]\n", r.URL, broken.URL, lacking.URL))
	s := open(t, o)
	if _, err := s.Pull(ctx, ref, PullOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(asked, " "); got != "broken lacking own" {
		t.Errorf("asked %s", got)
	}
}

// bearer makes a registry want tokens of a token service, which wants a password.
func (r *testRegistry) bearer(t *testing.T) (service *httptest.Server, asked func() []string) {
	t.Helper()
	var mu sync.Mutex
	var scopes []string
	service = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if err := q.ParseForm(); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		user, password, _ := q.BasicAuth()
		if q.Form.Get("grant_type") == "password" {
			user, password = q.Form.Get("username"), q.Form.Get("password")
		}
		if user != "me" || password != "secret" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		mu.Lock()
		scopes = append(scopes, q.Form.Get("scope"))
		mu.Unlock()
		_, _ = w.Write([]byte(`{"access_token":"the-token","token":"the-token","expires_in":300}`))
	}))
	t.Cleanup(service.Close)
	r.fail(func(w http.ResponseWriter, q *http.Request) bool {
		if q.Header.Get("Authorization") == "Bearer the-token" {
			return true
		}
		scope := strings.Split(strings.TrimPrefix(q.URL.Path, "/v2/"), "/manifests/")[0]
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="test",scope="repository:%s:pull"`, service.URL, strings.Split(scope, "/blobs/")[0]))
		w.WriteHeader(http.StatusUnauthorized)
		return false
	})
	return service, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return scopes
	}
}

func TestTokens(t *testing.T) {
	ctx := context.Background()
	r, s := newRegistry(t), open(t, folders(t))
	ref := r.push(t, "team/app:1", small("x", filler(1)))
	_, scopes := r.bearer(t)
	me := Auth{Username: "me", Password: "secret"}
	if _, err := s.Pull(ctx, ref, PullOptions{}); !errors.Is(err, ErrAccess) {
		t.Errorf("a pull without a password: %v", err)
	}
	if _, err := s.Pull(ctx, ref, PullOptions{Auth: me}); err != nil {
		t.Errorf("a pull: %v", err)
	}
	to := r.host() + "/team/pushed:2"
	if _, err := s.Push(ctx, ref, PushOptions{To: to}); !errors.Is(err, ErrAccess) {
		t.Errorf("a push without a password: %v", err)
	}
	load(t, s, small("localhost/new:1", filler(7)))
	if _, err := s.Push(ctx, "localhost/new:1", PushOptions{To: to, Auth: me}); err != nil {
		t.Errorf("a push: %v", err)
	}
	if _, err := open(t, folders(t)).Pull(ctx, to, PullOptions{Auth: me}); err != nil {
		t.Errorf("a pull of what was pushed: %v", err)
	}
	if all := strings.Join(scopes(), ", "); !strings.Contains(all, "repository:team/pushed:pull,push") {
		t.Errorf("asked for %s", all)
	}
	for _, a := range r.auths {
		if a != "Bearer the-token" {
			t.Errorf("the registry itself saw %q", a)
		}
	}
}

// Blobs may be somewhere else, which must not see who asks.
func TestRedirectsTakeNoCredentialAlong(t *testing.T) {
	r, elsewhere, s := newRegistry(t), newRegistry(t), open(t, folders(t))
	ref := r.push(t, "app:1", small("x", filler(1)))
	elsewhere.push(t, "app:1", small("x", filler(1)))
	r.fail(func(w http.ResponseWriter, q *http.Request) bool {
		if user, _, _ := q.BasicAuth(); user != "me" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return false
		}
		if strings.Contains(q.URL.Path, "/blobs/") {
			http.Redirect(w, q, strings.Replace(elsewhere.URL, "127.0.0.1", "localhost", 1)+q.URL.Path, http.StatusTemporaryRedirect)
			return false
		}
		return true
	})
	if _, err := s.Pull(context.Background(), ref, PullOptions{Auth: Auth{Username: "me", Password: "secret"}}); err != nil {
		t.Fatal(err)
	}
	if len(elsewhere.gets) == 0 || len(elsewhere.auths) != 0 {
		t.Errorf("the other host was asked for %v and saw %v", elsewhere.gets, elsewhere.auths)
	}
}

func TestTooManyRequests(t *testing.T) {
	r, s := newRegistry(t), open(t, folders(t))
	ref := r.push(t, "app:1", small("x", filler(1)))
	refused := map[string]bool{}
	r.fail(func(w http.ResponseWriter, q *http.Request) bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		if key := q.URL.Path; !refused[key] {
			refused[key] = true
			w.WriteHeader(http.StatusTooManyRequests)
			return false
		}
		return true
	})
	if _, err := s.Pull(context.Background(), ref, PullOptions{}); err != nil {
		t.Error(err)
	}
	if len(refused) < 4 { // manifest by tag, config, two layers
		t.Errorf("refused %v", refused)
	}
}

func TestArtifactsAreNoImages(t *testing.T) {
	r, s := newRegistry(t), open(t, folders(t))
	const chart = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",` +
		`"config":{"mediaType":"application/vnd.cncf.helm.config.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},` +
		`"layers":[{"mediaType":"application/vnd.cncf.helm.chart.content.v1.tar+gzip","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2}]}`
	r.fail(func(w http.ResponseWriter, q *http.Request) bool {
		if strings.Contains(q.URL.Path, "/blobs/") {
			t.Errorf("%s was fetched", q.URL.Path)
		}
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		_, _ = w.Write([]byte(chart))
		return false
	})
	_, err := s.Pull(context.Background(), r.host()+"/chart:1", PullOptions{})
	wantError(t, err, "is an OCI artifact", "helm.config", "not a container image")
}
