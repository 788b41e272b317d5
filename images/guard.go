package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/imageverifier/bindir"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// verifierTimeout is how long one verifier may take, in nanoseconds.
const verifierTimeout = 60_000_000_000

// ErrRefused is what a pull wraps that the settings or a verifier forbid.
var ErrRefused = errors.New("image is refused")

// ErrUnverified is the ErrRefused of a verifier.
var ErrUnverified = fmt.Errorf("%w by its verification", ErrRefused)

// errStalled is what a pull ends with when the registry sends nothing.
var errStalled = errors.New("the registry sends nothing")

// allowed says whether the settings let an image of this full name be pulled.
func (s *Store) allowed(full string) error {
	if s.opts.DigestOnly && !strings.Contains(full, "@") {
		return fmt.Errorf("%w: it is named by a tag, and images.digest_only is set: write its digest, as name@sha256:…", ErrRefused)
	}
	return nil
}

// verify asks each program in the verifier folder, as containerd does: it gets
// -name, -digest and -stdin-media-type, and the descriptor on standard input;
// an exit status other than 0 refuses the image. Without its folder nothing is pulled.
func (s *Store) verify(ctx context.Context, full string, target ocispec.Descriptor) error {
	dir := s.opts.VerifierDir
	if dir == "" {
		return nil
	}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: the folder of images.verifier_dir, %s, does not exist: make it, or clear the setting", ErrRefused, dir)
	}
	v := bindir.NewImageVerifier(&bindir.Config{BinDir: dir, MaxVerifiers: -1, PerVerifierTimeout: verifierTimeout})
	judgement, err := v.VerifyImage(ctx, full, target)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnverified, err)
	}
	if !judgement.OK {
		return fmt.Errorf("%w: %s", ErrUnverified, short(judgement.Reason))
	}
	return nil
}

// turn waits for one of the turns that pulls have.
func (s *Store) turn(ctx context.Context) (done func(), err error) {
	if s.turns == nil {
		return func() {}, nil
	}
	select {
	case s.turns <- struct{}{}:
		return func() { <-s.turns }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// patience ends a wait for the registry that lasts too long. Only the time in
// which the registry is waited for counts, not that for the disk.
type patience struct {
	limit  time.Duration // 0 is for ever
	cancel context.CancelCauseFunc
	ctx    context.Context
}

func (s *Store) patience(ctx context.Context) *patience {
	ctx, cancel := context.WithCancelCause(ctx)
	return &patience{limit: s.opts.PullProgressTimeout, cancel: cancel, ctx: ctx}
}

// during runs one wait; its error is errStalled when it was ended.
func (p *patience) during(wait func() error) error {
	if p.limit > 0 {
		stop := time.AfterFunc(p.limit, func() {
			p.cancel(fmt.Errorf("%w for %s (images.pull_progress_timeout)", errStalled, p.limit))
		})
		defer stop.Stop()
	}
	err := wait()
	if cause := context.Cause(p.ctx); err != nil && errors.Is(cause, errStalled) {
		return cause
	}
	return err
}

// patientReader reads a blob and gives up when nothing comes.
type patientReader struct {
	io.ReadCloser
	p *patience
}

func (r *patientReader) Read(b []byte) (n int, err error) {
	err = r.p.during(func() error {
		n, err = r.ReadCloser.Read(b)
		return err
	})
	return n, err
}

func (r *patientReader) Close() error {
	defer r.p.cancel(nil)
	return r.ReadCloser.Close()
}

// Seek lets a fetch that was cut off go on where it stopped.
func (r *patientReader) Seek(offset int64, whence int) (int64, error) {
	seeker, ok := r.ReadCloser.(io.Seeker)
	if !ok {
		return 0, errors.New("the registry's answer cannot be read from the middle")
	}
	return seeker.Seek(offset, whence)
}
