package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"syscall"
	"time"

	cimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
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
	Platform string         // "linux/arm64"; "" is this host's
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
	if err := s.allowed(full); err != nil {
		return Image{}, fmt.Errorf("pull image %s: %w", full, err)
	}
	job := pullJob{full: full, creds: creds}
	if o.Platform != "" {
		p, err := platforms.Parse(o.Platform)
		if err != nil {
			return Image{}, fmt.Errorf("pull image %s: platform %q: %w: write it as linux/arm64", full, short(o.Platform), ErrInvalid)
		}
		job.platform, job.wanted = anyPlatform{platforms.Only(p)}, platforms.Format(p)
	}
	secret := sha256.Sum256(fmt.Appendf(nil, "%q", []string{o.Auth.Username, o.Auth.Password, o.Auth.Auth, o.Auth.IdentityToken, o.Auth.ServerAddress, o.Platform}))
	img, err := s.flights.do(ctx, full+" "+hex.EncodeToString(secret[:]), o.Progress, func(ctx context.Context, f *flight) (Image, error) {
		done, err := s.turn(ctx)
		if err != nil {
			return Image{}, err
		}
		defer done()
		job.tell = f.tell
		return s.pull(ctx, &job)
	})
	if err != nil {
		return Image{}, fmt.Errorf("pull image %s: %w", full, err)
	}
	return img, nil
}

// pullJob is one pull that callers may share.
type pullJob struct {
	full     string
	creds    credentialFunc
	tell     func(Progress)
	platform platforms.MatchComparer // nil is this host's; else the name stands for that manifest alone, not for the index
	wanted   string                  // what platform is called
}

func (s *Store) pull(ctx context.Context, j *pullJob) (Image, error) {
	ctx, done, err := s.pullLease(ctx, j.full)
	if err != nil {
		return Image{}, err
	}
	var img Image
	for try, pause := 1, pullPause; ; try, pause = try+1, pause*2 {
		img, err = s.pullOnce(ctx, j)
		if err == nil || try == pullTries || !passing(err) {
			break
		}
		s.log.Info("a pull is tried again", "image", j.full, "try", try, "err", err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
	done(err)
	return img, s.explain(err)
}

func (s *Store) pullOnce(ctx context.Context, j *pullJob) (Image, error) {
	resolver := s.resolver(ctx, j.creds)
	target, err := s.resolve(ctx, resolver, j.full)
	if err != nil {
		return Image{}, err
	}
	if err := s.verify(ctx, j.full, target); err != nil {
		return Image{}, err
	}
	fetch, err := s.fetchFrom(ctx, resolver, j)
	if err != nil {
		return Image{}, err
	}
	if j.platform != nil {
		if target, err = s.choosePlatform(ctx, target, fetch, j); err != nil {
			return Image{}, err
		}
	}
	if err := s.take(ctx, &taking{target: target, fetch: fetch, platform: j.platform, wanted: j.wanted, missing: "was not fetched", remote: true}); err != nil {
		return Image{}, err
	}
	images, err := s.keep(ctx, []named{{j.full, target}})
	if err != nil {
		return Image{}, err
	}
	return images[0], nil
}

// resolve asks the registry what a name stands for.
func (s *Store) resolve(ctx context.Context, resolver remotes.Resolver, full string) (ocispec.Descriptor, error) {
	var target ocispec.Descriptor
	p := s.patience(ctx)
	defer p.cancel(nil)
	err := p.during(func() (err error) {
		_, target, err = resolver.Resolve(p.ctx, full)
		return err
	})
	target.Annotations = nil
	return target, registryError(err)
}

// fetchFrom gives the handler that brings blobs into the content store.
func (s *Store) fetchFrom(ctx context.Context, resolver remotes.Resolver, j *pullJob) (cimages.HandlerFunc, error) {
	whole, err := resolver.Fetcher(ctx, j.full)
	if err != nil {
		return nil, err
	}
	ranged(resolver)
	parts, err := resolver.Fetcher(ctx, j.full)
	if err != nil {
		return nil, err
	}
	source, err := docker.AppendDistributionSourceLabel(s.content, j.full)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		first := whole
		if d.Size >= s.ranging.from && s.ranges.TryAcquire(1) {
			defer s.ranges.Release(1)
			first = rangedFetcher{parts, s.ranging.part}
		}
		p := Progress{Ref: j.full, Digest: d.Digest.String(), Total: d.Size}
		if err := s.bring(ctx, d, watched{first, s, p, j.tell}, watched{whole, s, p, j.tell}); err != nil {
			return nil, fmt.Errorf("fetch %s: %w", d.Digest, registryError(err))
		}
		p.Bytes, p.Done = d.Size, true
		j.tell(p)
		return source(ctx, d)
	}, nil
}

// bring puts a blob into the content store. When it cannot be gone on with what
// an earlier try left, or that proves to be wrong, it begins again, once.
func (s *Store) bring(ctx context.Context, d ocispec.Descriptor, first, again remotes.Fetcher) (err error) {
	for _, fetcher := range []remotes.Fetcher{first, again} {
		_, err = remotes.FetchHandler(s.content, fetcher)(ctx, d)
		if statusOf(err) != http.StatusRequestedRangeNotSatisfiable && !errdefs.IsFailedPrecondition(err) {
			return err
		}
		if left := s.content.Abort(ctx, remotes.MakeRefKey(ctx, d)); left != nil && !errdefs.IsNotFound(left) {
			return errors.Join(err, left)
		}
	}
	return err
}

// choosePlatform fetches an index and gives its manifest for the platform.
func (s *Store) choosePlatform(ctx context.Context, target ocispec.Descriptor, fetch cimages.HandlerFunc, j *pullJob) (ocispec.Descriptor, error) {
	if !cimages.IsIndexType(target.MediaType) {
		return target, nil
	}
	if target.Size > maxDocument {
		return target, fmt.Errorf("%s is an index of %d bytes; the limit is %d", target.Digest, target.Size, maxDocument)
	}
	if _, err := fetch(ctx, target); err != nil {
		return target, err
	}
	found, err := cimages.LimitManifests(cimages.FilterPlatforms(cimages.ChildrenHandler(s.content), j.platform), j.platform, 1)(ctx, target)
	if err != nil {
		return target, fmt.Errorf("read index %s: %w", target.Digest, err)
	}
	if len(found) == 0 {
		return target, fmt.Errorf("%w: it has no image for %s", ErrNotFound, j.wanted)
	}
	found[0].Annotations = nil
	return found[0], nil
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
	s.pulling.Store(l.ID, true)
	return leases.WithLease(ctx, l.ID), func(failed error) {
		ctx := context.WithoutCancel(ctx)
		s.pulling.Delete(l.ID)
		if failed != nil && (passing(failed) || errors.Is(failed, context.Canceled)) {
			return
		}
		all, err := s.leases.List(ctx)
		for _, l := range all {
			if _, busy := s.pulling.Load(l.ID); !busy && l.Labels[labelPurpose] == purpose {
				err = errors.Join(err, s.evenIfFull(func() error { return s.leases.Delete(ctx, l) }))
			}
		}
		if err != nil {
			s.log.Warn("leases of a pull cannot be removed; they expire", "image", full, "err", err)
		}
		if errors.Is(failed, syscall.ENOSPC) {
			s.garbage() // who is told that the disk is full finds it as it was
			return
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
	var file *fs.PathError
	if errors.As(err, &file) || errors.Is(err, syscall.ENOSPC) {
		return false // the disk; every errno is a net.Error by its methods
	}
	var network net.Error
	return errors.As(err, &network) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, errStalled)
}

// registryError puts what a registry answered into our words.
func registryError(err error) error {
	if err == nil {
		return nil
	}
	if status := statusOf(err); status == http.StatusUnauthorized || status == http.StatusForbidden ||
		errors.Is(err, docker.ErrInvalidAuthorization) {
		return fmt.Errorf("%w: check the name and the credential: %w", ErrAccess, err)
	}
	if errdefs.IsNotFound(err) {
		return fmt.Errorf("%w in the registry: check the name and the tag: %w", ErrNotFound, err)
	}
	return err
}

// watched tells how far each blob is while it is read.
type watched struct {
	remotes.Fetcher
	store    *Store
	progress Progress
	tell     func(Progress)
}

func (w watched) Fetch(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	var rc io.ReadCloser
	p := w.store.patience(ctx)
	err := p.during(func() (err error) {
		rc, err = w.Fetcher.Fetch(p.ctx, d)
		return err
	})
	if err != nil {
		p.cancel(nil)
		return nil, err
	}
	r := &watchedReader{ReadCloser: &patientReader{rc, p}, watched: w}
	if _, ok := rc.(io.Seeker); ok {
		return &watchedSeeker{r}, nil
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
}

func (r *watchedSeeker) Seek(offset int64, whence int) (int64, error) {
	at, err := r.ReadCloser.(io.Seeker).Seek(offset, whence)
	if err == nil {
		r.progress.Bytes = at
	}
	return at, err
}
