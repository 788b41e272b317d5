package images

import (
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/distribution/reference"
)

// Keyring finds the credential for an image among those of docker's
// configuration files, whose keys name a registry, or a part of one, as in
// "registry.example.com/team", "*.example.com" or "https://index.docker.io/v1/".
// The zero value is empty.
type Keyring struct{ keys []key }

type key struct {
	host, path string // host may hold the wildcards of path.Match within its parts
	auth       Auth
}

// credential is one entry of a docker configuration file.
type credential struct {
	Username      string `json:"username"`
	Password      string `json:"password"`
	Auth          string `json:"auth"`
	IdentityToken string `json:"identitytoken"`
}

// Add takes the credentials of a config.json. The error tells nothing of what
// is in it.
func (k *Keyring) Add(config []byte) error {
	var file struct {
		Auths map[string]credential `json:"auths"`
	}
	if json.Unmarshal(config, &file) != nil {
		return errors.New(`it is no docker configuration: {"auths": {"REGISTRY": {"auth": "…"}}} is expected`)
	}
	k.add(file.Auths)
	return nil
}

// AddLegacy takes the credentials of a file of docker's older form, .dockercfg.
func (k *Keyring) AddLegacy(config []byte) error {
	var auths map[string]credential
	if json.Unmarshal(config, &auths) != nil {
		return errors.New(`it is no .dockercfg: {"REGISTRY": {"auth": "…"}} is expected`)
	}
	k.add(auths)
	return nil
}

// add takes also what is no good as a credential: its use says so.
func (k *Keyring) add(auths map[string]credential) {
	for name, c := range auths {
		if c == (credential{}) {
			continue // its secret is kept by a program of docker's
		}
		host, path := splitKey(name)
		k.keys = append(k.keys, key{host, path, Auth{Username: c.Username, Password: c.Password, Auth: c.Auth, IdentityToken: c.IdentityToken}})
	}
	// The most specific comes first: the longest path, and a host without wildcards.
	slices.SortStableFunc(k.keys, func(a, b key) int {
		if d := len(b.path) - len(a.path); d != 0 {
			return d
		}
		if d := strings.Count(a.host, "*") - strings.Count(b.host, "*"); d != 0 {
			return d
		}
		return strings.Compare(a.host, b.host)
	})
}

// splitKey gives host and path of a key; /v1 and /v2 are the API's, no part of a name.
func splitKey(name string) (host, rest string) {
	if _, after, ok := strings.Cut(name, "://"); ok {
		name = after
	}
	host, rest, _ = strings.Cut(name, "/")
	for _, api := range []string{"v1", "v2"} {
		if after, ok := strings.CutPrefix(rest, api); ok && (after == "" || after[0] == '/') {
			rest = after
			break
		}
	}
	return canonical(host), strings.Trim(rest, "/")
}

// For gives the credentials for the image ref, the most specific first, each
// for the host of its registry and no other. The error wraps ErrInvalid.
func (k *Keyring) For(ref string) ([]Auth, error) {
	full, err := Normalize(ref)
	if err != nil {
		return nil, err
	}
	named, err := reference.ParseNormalizedNamed(full)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	host := reference.Domain(named)
	var out []Auth
	for _, e := range k.keys {
		if matchHost(e.host, canonical(host)) && strings.HasPrefix(reference.Path(named), e.path) {
			e.auth.ServerAddress = host
			out = append(out, e.auth)
		}
	}
	return out, nil
}

// matchHost compares part by part: "*.example.com" is neither "example.com" nor
// "a.b.example.com", and a port must be the same.
func matchHost(pattern, host string) bool {
	pattern, wantPort, _ := strings.Cut(pattern, ":")
	host, port, _ := strings.Cut(host, ":")
	patterns, parts := strings.Split(pattern, "."), strings.Split(host, ".")
	if wantPort != port || len(patterns) != len(parts) {
		return false
	}
	for i, p := range patterns {
		if ok, err := path.Match(p, parts[i]); err != nil || !ok {
			return false
		}
	}
	return true
}
