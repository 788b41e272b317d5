package images

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

// credentialFunc gives user and secret for the host that is contacted; an empty
// user makes the secret an identity token.
type credentialFunc func(host string) (user, secret string, err error)

// resolver talks to registries as the hosts.toml files say. Plain HTTP is for
// what they name with http://, and for localhost with a port.
func (s *Store) resolver(ctx context.Context, creds credentialFunc) remotes.Resolver {
	configured := config.ConfigureHosts(ctx, s.hostOptions(creds))
	return docker.NewResolver(docker.ResolverOptions{Hosts: func(host string) ([]docker.RegistryHost, error) {
		hosts, err := configured(host)
		for i := range hosts {
			hosts[i].Authorizer = &oneAtATime{Authorizer: hosts[i].Authorizer}
		}
		return hosts, err
	}})
}

// oneAtATime keeps apart requests that need a token: the library reads one's
// expiry while another request is given it.
type oneAtATime struct {
	mu sync.Mutex
	docker.Authorizer
}

func (o *oneAtATime) Authorize(ctx context.Context, q *http.Request) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.Authorizer.Authorize(ctx, q)
}

// ranged makes a resolver's fetchers ask for ranges, also from the first byte
// on. That the parts are as large as can be leaves the choice of them to rangedFetcher.
func ranged(r remotes.Resolver) {
	if o, ok := r.(remotes.ResolverWithOptions); ok {
		o.SetOptions(transfer.WithMaxConcurrentDownloads(2), transfer.WithConcurrentLayerFetchBuffer(math.MaxInt))
	}
}

func (s *Store) hostOptions(creds credentialFunc) config.HostOptions {
	o := config.HostOptions{Credentials: creds, UpdateClient: func(c *http.Client) error {
		c.Transport = bounded{c.Transport}
		return nil
	}}
	if s.opts.RegistryConfig != "" {
		o.HostDir = config.HostDirFromRoot(s.opts.RegistryConfig)
	}
	return o
}

// credentials gives auth to the host that it belongs to and to no other: not
// to a mirror, and not where a redirect leads. Other hosts get what the
// user's docker configuration has for them.
func credentials(full string, a Auth) (credentialFunc, error) {
	user, secret, err := a.split()
	if err != nil {
		return nil, err
	}
	named, err := reference.ParseNormalizedNamed(full)
	if err != nil {
		return nil, err
	}
	owner := reference.Domain(named)
	if a.ServerAddress != "" {
		owner = hostOf(a.ServerAddress)
	}
	return func(host string) (string, string, error) {
		if secret != "" && canonical(host) == canonical(owner) {
			return user, secret, nil
		}
		return fromDockerConfig(host)
	}, nil
}

// split gives user and secret; without a user the secret is a token.
func (a Auth) split() (user, secret string, err error) {
	switch {
	case a.IdentityToken != "":
		return "", a.IdentityToken, nil
	case a.Auth != "":
		plain, err := base64.StdEncoding.DecodeString(a.Auth)
		if err != nil {
			return "", "", errors.New("the credential's field auth is not base64")
		}
		user, secret, ok := strings.Cut(strings.Trim(string(plain), "\x00"), ":")
		if !ok {
			return "", "", errors.New("the credential's field auth is not base64 of username:password")
		}
		return user, secret, nil
	case a.Username != "" && a.Password == "":
		return "", "", fmt.Errorf("the credential of %s has no password", short(a.Username))
	}
	return a.Username, a.Password, nil
}

// hostOf takes the host from an address as docker's files have it, with or
// without scheme and path.
func hostOf(address string) string {
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	if err != nil {
		return address
	}
	return u.Host
}

// canonical gives Docker Hub's several hosts one name.
func canonical(host string) string {
	switch host = strings.ToLower(host); host {
	case "docker.io", "registry-1.docker.io", "index.docker.io", "auth.docker.io":
		return "docker.io"
	}
	return host
}

func fromDockerConfig(host string) (string, string, error) {
	if canonical(host) == "docker.io" {
		host = name.DefaultRegistry
	}
	registry, err := name.NewRegistry(host)
	if err != nil {
		return "", "", nil //nolint:nilerr // a host that the file cannot name is not in it
	}
	found, err := authn.DefaultKeychain.Resolve(registry)
	if err != nil {
		return "", "", fmt.Errorf("read docker's configuration: %w", err)
	}
	auth, err := found.Authorization()
	if err != nil {
		return "", "", fmt.Errorf("read the credential of %s: %w", host, err)
	}
	if auth.IdentityToken != "" {
		return "", auth.IdentityToken, nil
	}
	return auth.Username, auth.Password, nil
}
