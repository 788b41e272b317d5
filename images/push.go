package images

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"
)

// PushOptions of Push.
type PushOptions struct {
	To       string // name in the registry; "" is the name that the image is asked for by
	Auth     Auth
	Progress func(Progress) // called from several goroutines, one at a time; may be nil
}

// Push sends the image ref to a registry. Blobs that the registry has are not
// sent. Of an index that is here in part, only this host's manifest goes. The
// error wraps ErrNotFound or ErrInvalid.
func (s *Store) Push(ctx context.Context, ref string, o PushOptions) (manifest string, err error) {
	r, err := s.cache.Load().find(ref)
	if err != nil {
		return "", fmt.Errorf("push image: %w", err)
	}
	to := o.To
	if to == "" {
		if names := exportNames(s.cache.Load(), r, ref); len(names) == 1 {
			to = names[0]
		} else {
			return "", fmt.Errorf("push image: %w %q: it is no name: say under which name it goes to which registry", ErrInvalid, short(ref))
		}
	}
	full, err := Normalize(to)
	if err != nil {
		return "", fmt.Errorf("push image: %w", err)
	}
	creds, err := credentials(full, o.Auth)
	if err != nil {
		return "", fmt.Errorf("push image %s: %w", full, err)
	}
	target, err := s.push(ctx, r, full, creds, o.Progress)
	if err != nil {
		return "", fmt.Errorf("push image %s: %w", full, registryError(err))
	}
	return target.Digest.String(), nil
}

func (s *Store) push(ctx context.Context, r *record, full string, creds credentialFunc, tell func(Progress)) (ocispec.Descriptor, error) {
	ctx, done, err := s.lease(ctx, "push") // no blob goes away meanwhile
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer done()
	target, err := s.manifestOf(ctx, r.manifest)
	if err != nil {
		return target, err
	}
	pusher, err := s.resolver(ctx, creds).Pusher(ctx, full)
	if err != nil {
		return target, err
	}
	if tell == nil {
		tell = func(Progress) {}
	}
	w := &watchedPusher{Pusher: pusher, ref: full, blobs: newKeyed(), tell: tell}
	return target, remotes.PushContent(ctx, w, target, s.content, semaphore.NewWeighted(maxFetches), platforms.All, nil) // all that manifestOf found is here
}

// watchedPusher tells how far each blob of a push is, and sends one that several
// images of an index have once.
type watchedPusher struct {
	remotes.Pusher
	ref   string
	blobs *keyed // by digest, those that are on their way

	mu   sync.Mutex
	tell func(Progress) // under mu
}

func (p *watchedPusher) report(d ocispec.Descriptor, sent int64, done bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tell(Progress{Ref: p.ref, Digest: d.Digest.String(), Bytes: sent, Total: d.Size, Done: done})
}

func (p *watchedPusher) Push(ctx context.Context, d ocispec.Descriptor) (content.Writer, error) {
	if err := p.blobs.Lock(ctx, d.Digest.String()); err != nil {
		return nil, err
	}
	w, err := p.Pusher.Push(ctx, d)
	if err != nil {
		p.blobs.Unlock(d.Digest.String())
		if errdefs.IsAlreadyExists(err) {
			p.report(d, d.Size, true)
		}
		return nil, err
	}
	p.report(d, 0, false)
	return &watchedWriter{Writer: w, pusher: p, blob: d}, nil
}

type watchedWriter struct {
	content.Writer
	pusher *watchedPusher
	blob   ocispec.Descriptor
	sent   int64
	told   time.Time
	closed sync.Once
}

func (w *watchedWriter) Close() error {
	defer w.closed.Do(func() { w.pusher.blobs.Unlock(w.blob.Digest.String()) })
	return w.Writer.Close()
}

func (w *watchedWriter) Write(b []byte) (int, error) {
	n, err := w.Writer.Write(b)
	w.sent += int64(n)
	if now := time.Now(); now.Sub(w.told) > 100*time.Millisecond {
		w.told = now
		w.pusher.report(w.blob, w.sent, false)
	}
	return n, err
}

func (w *watchedWriter) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	err := w.Writer.Commit(ctx, size, expected, opts...)
	if err == nil || errdefs.IsAlreadyExists(err) {
		w.pusher.report(w.blob, w.blob.Size, true)
	}
	return err
}
