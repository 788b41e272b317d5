package images

import (
	"fmt"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// namelessPrefix begins the record of an image that has no name.
const namelessPrefix = "sha256:"

// minIDPrefix is how many hex digits of an id are enough to ask by.
const minIDPrefix = 6

// Normalize gives ref in full: "busybox" is docker.io/library/busybox:latest.
// A reference with a tag and a digest loses the tag: the digest decides.
func Normalize(ref string) (string, error) {
	if strings.HasPrefix(ref, namelessPrefix) {
		return "", fmt.Errorf("%w %q: it is an id, not a name", ErrInvalid, short(ref))
	}
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return "", fmt.Errorf("%w %q: %w: write it as registry/repository:tag", ErrInvalid, short(ref), err)
	}
	return named.String(), nil
}

// short keeps error texts readable whatever somebody sent.
func short(s string) string {
	if len(s) > 300 {
		return s[:300] + "…"
	}
	return s
}

// alternatives are the full names that ref may stand for, best first: what has
// no registry may also be an image that was made on this host.
func alternatives(ref string) ([]string, error) {
	full, err := Normalize(ref)
	if err != nil {
		return nil, err
	}
	first, _, slash := strings.Cut(ref, "/")
	if slash && (strings.ContainsAny(first, ".:") || first == "localhost" || strings.ToLower(first) != first) {
		return []string{full}, nil
	}
	local, err := Normalize("localhost/" + ref)
	if err != nil {
		return []string{full}, nil
	}
	return []string{full, local}, nil
}

// idPrefix gives the hex digits of ref when it can be an id or a part of one.
func idPrefix(ref string) (string, bool) {
	hex := strings.TrimPrefix(ref, namelessPrefix)
	if len(hex) < minIDPrefix || len(hex) > 64 {
		return "", false
	}
	for _, r := range hex {
		if (r < '0' || r > '9') && (r < 'a' || r > 'f') {
			return "", false
		}
	}
	return hex, true
}

// tagAndDigest gives what of a record's name and target goes into Image's lists.
func tagAndDigest(name string, target digest.Digest) (tag, repoDigest string) {
	if strings.HasPrefix(name, namelessPrefix) {
		return "", ""
	}
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name, ""
	}
	if tagged, ok := named.(reference.NamedTagged); ok {
		tag = tagged.String()
	}
	return tag, named.Name() + "@" + target.String()
}
