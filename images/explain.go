package images

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/distribution/reference"
)

// Explanation says where an image would be pulled from.
type Explanation struct {
	Ref       string    `json:"ref"`               // full name
	HostsFile string    `json:"hostsFile"`         // that decides, "" for none
	Refused   string    `json:"refused,omitempty"` // why the settings forbid it
	Attempts  []Attempt `json:"attempts"`          // in the order in which a pull makes them
}

// Attempt is one place that was asked for the image.
type Attempt struct {
	Endpoint   string `json:"endpoint"`   // URL of the registry's API
	Credential string `json:"credential"` // where it comes from, never itself
	Status     string `json:"status"`     // what came back
	Digest     string `json:"digest,omitempty"`
	Used       bool   `json:"used"` // a pull takes the image from here
}

// Explain asks every endpoint for the image ref, in the order of a pull, and
// fetches nothing but the manifest's digest. The error wraps ErrInvalid.
func (s *Store) Explain(ctx context.Context, ref string, auth Auth) (Explanation, error) {
	full, err := Normalize(ref)
	if err != nil {
		return Explanation{}, fmt.Errorf("explain: %w", err)
	}
	creds, err := credentials(full, auth)
	if err != nil {
		return Explanation{}, fmt.Errorf("explain %s: %w", full, err)
	}
	named, err := reference.ParseNormalizedNamed(full)
	if err != nil {
		return Explanation{}, fmt.Errorf("explain %s: %w", full, err)
	}
	domain := reference.Domain(named)
	out := Explanation{Ref: full, HostsFile: s.hostsFile(domain), Attempts: []Attempt{}}
	if err := s.allowed(full); err != nil {
		out.Refused = err.Error()
	}
	sent := &requests{}
	options := s.hostOptions(creds)
	options.UpdateClient = sent.watch
	hosts, err := config.ConfigureHosts(ctx, options)(domain)
	if err != nil {
		return Explanation{}, fmt.Errorf("explain %s: read its hosts.toml: %w", full, err)
	}
	found := false
	for _, h := range hosts {
		sent.begin(h.Host)
		a := s.attempt(ctx, full, h)
		out.Attempts = append(out.Attempts, sent.before(&a, h)...)
		a.Credential = credentialSource(h.Host, creds, auth)
		a.Used = a.Digest != "" && !found
		found = found || a.Used
		out.Attempts = append(out.Attempts, a)
	}
	return out, nil
}

// attempt asks one endpoint.
func (s *Store) attempt(ctx context.Context, full string, h docker.RegistryHost) Attempt {
	a := Attempt{Endpoint: h.Scheme + "://" + h.Host + h.Path}
	if !h.Capabilities.Has(docker.HostCapabilityResolve) || !h.Capabilities.Has(docker.HostCapabilityPull) {
		a.Status = "not asked: hosts.toml does not let it resolve and pull"
		return a
	}
	one := docker.NewResolver(docker.ResolverOptions{Hosts: func(string) ([]docker.RegistryHost, error) {
		return []docker.RegistryHost{h}, nil
	}})
	target, err := s.resolve(ctx, one, full)
	status := statusOf(err)
	switch {
	case err == nil:
		a.Status, a.Digest = "200 OK", target.Digest.String()
	case status != 0:
		a.Status = fmt.Sprintf("%d %s", status, http.StatusText(status))
	case errors.Is(err, ErrNotFound):
		a.Status = "404 Not Found"
	default:
		a.Status = err.Error()
	}
	return a
}

// hostsFile is the hosts.toml that holds for a registry.
func (s *Store) hostsFile(domain string) string {
	if s.opts.RegistryConfig == "" {
		return ""
	}
	dir, err := config.HostDirFromRoot(s.opts.RegistryConfig)(domain)
	if err != nil || dir == "" {
		return ""
	}
	file := filepath.Join(dir, "hosts.toml")
	if _, err := os.Stat(file); err != nil {
		return ""
	}
	return file
}

// credentialSource says where the credential for a host comes from.
func credentialSource(host string, creds credentialFunc, given Auth) string {
	user, secret, err := creds(host)
	switch _, own, _ := given.split(); {
	case err != nil:
		return "none: " + err.Error()
	case secret == "":
		return "none"
	case own != "" && own == secret:
		return ofUser(user, "given with the request")
	}
	return ofUser(user, "docker's configuration")
}

func ofUser(user, source string) string {
	if user == "" {
		return source + " (token)"
	}
	return source + " (user " + short(user) + ")"
}

// requests sees what really goes to a host: where both are allowed, https is
// tried first, and http when the answer is not TLS.
type requests struct {
	mu      sync.Mutex
	host    string
	schemes []string
	errors  []error // of the schemes
}

func (r *requests) watch(c *http.Client) error {
	c.Transport = watching{c.Transport, r}
	return nil
}

// begin forgets what went to another host.
func (r *requests) begin(host string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.host, r.schemes, r.errors = host, nil, nil
}

// before gives a the scheme that was used in the end, and the attempts with
// others that came before.
func (r *requests) before(a *Attempt, h docker.RegistryHost) []Attempt {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []Attempt
	for i, scheme := range r.schemes {
		endpoint := scheme + "://" + h.Host + h.Path
		if i == len(r.schemes)-1 {
			a.Endpoint = endpoint
		} else if r.errors[i] != nil {
			status := r.errors[i].Error()
			if noTLS := new(tls.RecordHeaderError); errors.As(r.errors[i], noTLS) {
				status = "it answers, but not in TLS"
			}
			out = append(out, Attempt{Endpoint: endpoint, Credential: "none", Status: status})
		}
	}
	return out
}

type watching struct {
	http.RoundTripper
	*requests
}

func (w watching) RoundTrip(q *http.Request) (*http.Response, error) {
	answer, err := w.RoundTripper.RoundTrip(q)
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := len(w.schemes); q.URL.Host == w.host && (n == 0 || w.schemes[n-1] != q.URL.Scheme) {
		w.schemes, w.errors = append(w.schemes, q.URL.Scheme), append(w.errors, err)
	}
	return answer, err
}
