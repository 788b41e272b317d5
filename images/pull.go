package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	cimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	pullTries  = 4               // of one pull, each goes on where the last one stopped
	pullPause  = time.Second / 2 // before the second try; doubles each time
	pullResume = 24 * time.Hour  // how long what a failed pull fetched is kept
)

// PullOptions of Pull.
type PullOptions struct {
	Auth     Auth
	Progress func(Progress) // called from several goroutines, one at a time; may be nil
}

// Auth is a credential for one registry. Its zero value stands for what the
// user's docker configuration has for the registry, or nothing.
type Auth struct {
	Username, Password string
	Auth               string // base64 of username:password, instead of the two
	IdentityToken      string // for the registry's token service
	ServerAddress      string // registry that it belongs to; "" is the one of the image
}

// Progress is how far one blob of a pull is.
type Progress struct {
	Ref    string // image that is pulled, in full
	Digest string // blob, "sha256:…"
	Bytes  int64  // of it that are here
	Total  int64
	Done   bool // verified and stored
}

// Pull fetches and unpacks an image from its registry, and gives it the name
// ref. Callers who ask for the same image with the same credential at once
// share one pull. The error wraps ErrInvalid, or ErrNotFound when the registry
// does not have it.
func (s *Store) Pull(ctx context.Context, ref string, o PullOptions) (Image, error) {
	full, err := Normalize(ref)
	if err != nil {
		return Image{}, fmt.Errorf("pull image: %w", err)
	}
	creds, err := credentials(full, o.Auth)
	if err != nil {
		return Image{}, fmt.Errorf("pull image %s: %w", full, err)
	}
	secret := sha256.Sum256(fmt.Appendf(nil, "%q", []string{o.Auth.Username, o.Auth.Password, o.Auth.Auth, o.Auth.IdentityToken, o.Auth.ServerAddress}))
	img, err := s.flights.do(ctx, full+" "+hex.EncodeToString(secret[:]), o.Progress, func(ctx context.Context, f *flight) (Image, error) {
		return s.pull(ctx, full, creds, f.tell)
	})
	if err != nil {
		return Image{}, fmt.Errorf("pull image %s: %w", full, err)
	}
	return img, nil
}

func (s *Store) pull(ctx context.Context, full string, creds credentialFunc, tell func(Progress)) (Image, error) {
	ctx, done, err := s.pullLease(ctx, full)
	if err != nil {
		return Image{}, err
	}
	var img Image
	for try, pause := 1, pullPause; ; try, pause = try+1, pause*2 {
		img, err = s.pullOnce(ctx, full, creds, tell)
		if err == nil || try == pullTries || !passing(err) {
			break
		}
		s.log.Info("a pull is tried again", "image", full, "try", try, "err", err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
	done(err)
	return img, s.explain(err)
}

func (s *Store) pullOnce(ctx context.Context, full string, creds credentialFunc, tell func(Progress)) (Image, error) {
	resolver := s.resolver(ctx, creds)
	_, target, err := resolver.Resolve(ctx, full)
	if err != nil {
		return Image{}, registryError(err)
	}
	fetcher, err := resolver.Fetcher(ctx, full)
	if err != nil {
		return Image{}, err
	}
	source, err := docker.AppendDistributionSourceLabel(s.content, full)
	if err != nil {
		return Image{}, err
	}
	fetch := func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		p := Progress{Ref: full, Digest: d.Digest.String(), Total: d.Size}
		handler := remotes.FetchHandler(s.content, watched{fetcher, p, tell})
		_, err := handler(ctx, d)
		if statusOf(err) == http.StatusRequestedRangeNotSatisfiable {
			// The registry cannot go on in the middle: begin again.
			if err = s.content.Abort(ctx, remotes.MakeRefKey(ctx, d)); err == nil {
				_, err = handler(ctx, d)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("fetch %s: %w", d.Digest, registryError(err))
		}
		p.Bytes, p.Done = d.Size, true
		tell(p)
		return source(ctx, d)
	}
	target.Annotations = nil
	if err := s.take(ctx, &taking{target: target, fetch: cimages.HandlerFunc(fetch), missing: "was not fetched"}); err != nil {
		return Image{}, err
	}
	images, err := s.keep(ctx, []named{{full, target}})
	if err != nil {
		return Image{}, err
	}
	return images[0], nil
}

// pullLease keeps what is fetched, also for a later pull of the same image
// when this one fails or the process is killed.
func (s *Store) pullLease(ctx context.Context, full string) (context.Context, func(error), error) {
	ctx = in(ctx)
	purpose := "pull " + full
	expire := time.Now().Add(pullResume).UTC().Format(time.RFC3339)
	l, err := s.leases.Create(ctx, leases.WithRandomID(),
		leases.WithLabels(map[string]string{labelPurpose: purpose, labelExpire: expire}))
	if err != nil {
		return nil, nil, s.explain(err)
	}
	return leases.WithLease(ctx, l.ID), func(failed error) {
		ctx := context.WithoutCancel(ctx)
		if failed != nil && (passing(failed) || errors.Is(failed, context.Canceled)) {
			return
		}
		all, err := s.leases.List(ctx)
		for _, l := range all {
			if l.Labels[labelPurpose] == purpose {
				err = errors.Join(err, s.leases.Delete(ctx, l))
			}
		}
		if err != nil {
			s.log.Warn("leases of a pull cannot be removed; they expire", "image", full, "err", err)
		}
		s.collectSoon()
	}, nil
}

// statusOf is the HTTP status that an error of a registry carries, 0 for none.
func statusOf(err error) int {
	var status remoteerrors.ErrUnexpectedStatus
	if errors.As(err, &status) {
		return status.StatusCode
	}
	return 0
}

// passing says whether an error may be gone at the next try.
func passing(err error) bool {
	if status := statusOf(err); status != 0 {
		return status == http.StatusTooManyRequests || status >= 500
	}
	var network net.Error
	return errors.As(err, &network) || errors.Is(err, io.ErrUnexpectedEOF)
}

// registryError puts what a registry answered into our words.
func registryError(err error) error {
	if status := statusOf(err); status == http.StatusUnauthorized || status == http.StatusForbidden ||
		errors.Is(err, docker.ErrInvalidAuthorization) {
		return fmt.Errorf("the registry refuses access, or has no such image: check the name and the credential: %w", err)
	}
	if errdefs.IsNotFound(err) {
		return fmt.Errorf("%w in the registry: check the name and the tag: %w", ErrNotFound, err)
	}
	return err
}

// watched tells how far each blob is while it is read.
type watched struct {
	remotes.Fetcher
	progress Progress
	tell     func(Progress)
}

func (w watched) Fetch(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	rc, err := w.Fetcher.Fetch(ctx, d)
	if err != nil {
		return nil, err
	}
	r := &watchedReader{ReadCloser: rc, watched: w}
	if seeker, ok := rc.(io.Seeker); ok {
		return &watchedSeeker{r, seeker}, nil
	}
	return r, nil
}

type watchedReader struct {
	io.ReadCloser
	watched
	told time.Time
}

func (r *watchedReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.progress.Bytes += int64(n)
	if now := time.Now(); now.Sub(r.told) > 100*time.Millisecond {
		r.told = now
		r.tell(r.progress)
	}
	return n, err
}

// watchedSeeker lets a fetch that was cut off go on where it stopped.
type watchedSeeker struct {
	*watchedReader
	seeker io.Seeker
}

func (r *watchedSeeker) Seek(offset int64, whence int) (int64, error) {
	at, err := r.seeker.Seek(offset, whence)
	if err == nil {
		r.progress.Bytes = at
	}
	return at, err
}
