package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/containerd/containerd/v2/core/remotes"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	partsAtOnce = 4 // of one blob
	rangedBlobs = 1 // at once, of all pulls: for the memory
)

// ranging says which blobs come by several requests, in bytes.
type ranging struct {
	from int64 // the smallest such blob: one that is worth several connections
	part int64 // of a request
}

func defaultRanging() ranging { return ranging{from: 16 << 20, part: 1 << 20} }

// span is the part of a blob that the requests of a context are for.
type span struct {
	from, to int64
	ignored  atomic.Bool // the registry sends the whole blob instead
}

type spanKey struct{}

// bounded adds the end of the span to requests that go on from a byte in it.
type bounded struct{ http.RoundTripper }

func (b bounded) RoundTrip(q *http.Request) (*http.Response, error) {
	s, _ := q.Context().Value(spanKey{}).(*span)
	var from int64
	if s != nil {
		if _, err := fmt.Sscanf(q.Header.Get("Range"), "bytes=%d-", &from); err != nil || from < s.from || from >= s.to {
			s = nil // also what is asked of a token service
		}
	}
	if s == nil {
		return b.RoundTripper.RoundTrip(q)
	}
	q = q.Clone(q.Context())
	q.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", from, s.to-1))
	r, err := b.RoundTripper.RoundTrip(q)
	if err == nil && r.StatusCode == http.StatusOK {
		s.ignored.Store(true)
	}
	return r, err
}

// rangedFetcher fetches blobs by several requests at once, if the registry can.
// Its fetcher must ask for a range also where that begins with the first byte.
type rangedFetcher struct {
	remotes.Fetcher
	part int64 // bytes of a request
}

func (f rangedFetcher) Fetch(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(ctx)
	return &rangedReader{fetcher: f.Fetcher, size: f.part, d: d, ctx: ctx, cancel: cancel}, nil
}

// rangedReader reads a blob in order. Its first request shows whether the
// registry knows ranges; then parts come ahead of what is read.
type rangedReader struct {
	fetcher remotes.Fetcher
	size    int64 // of a part
	d       ocispec.Descriptor
	ctx     context.Context
	cancel  context.CancelFunc
	work    sync.WaitGroup

	at    int64 // next byte that is read
	begun bool
	first io.ReadCloser // as far as end
	end   int64
	ahead chan *part // parts after that, in order
	part  *part
	free  chan []byte // buffers that were read
}

// Seek says where the first Read begins.
func (r *rangedReader) Seek(offset int64, whence int) (int64, error) {
	if whence != io.SeekStart || r.begun {
		return 0, errors.New("a blob that comes in parts can only be read on")
	}
	r.at = offset
	return offset, nil
}

func (r *rangedReader) Read(p []byte) (n int, err error) {
	if !r.begun {
		return r.begin(p)
	}
	if r.at == r.d.Size {
		return 0, io.EOF
	}
	if r.at < r.end {
		n, err = r.first.Read(p[:min(int64(len(p)), r.end-r.at)])
		if r.at += int64(n); errors.Is(err, io.EOF) {
			err = nil
			if r.at < r.end {
				err = io.ErrUnexpectedEOF
			}
		}
		return n, err
	}
	if r.part == nil {
		part, ok := <-r.ahead
		if !ok {
			return 0, context.Cause(r.ctx)
		}
		r.part = part
	}
	n, err = r.part.read(p)
	r.at += int64(n)
	if errors.Is(err, io.EOF) {
		r.free <- r.part.data[:cap(r.part.data)]
		r.part, err = nil, nil
	}
	return n, err
}

// begin does the first request and, unless it is answered with the whole blob, those for the rest.
func (r *rangedReader) begin(p []byte) (int, error) {
	r.begun = true
	s := &span{from: r.at, to: min(r.at+r.size, r.d.Size)}
	var err error
	if r.first, err = r.open(s); err != nil {
		return 0, err
	}
	r.end = s.to
	n, err := r.first.Read(p[:min(int64(len(p)), r.end-r.at)])
	r.at += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		return n, err
	}
	if s.ignored.Load() {
		r.end = r.d.Size
		return n, nil
	}
	r.ahead = make(chan *part, partsAtOnce)
	r.free = make(chan []byte, partsAtOnce)
	for range partsAtOnce {
		r.free <- nil
	}
	r.work.Go(func() { r.fetchAhead(s.to) })
	return n, nil
}

func (r *rangedReader) fetchAhead(from int64) {
	defer close(r.ahead)
	for ; from < r.d.Size; from += r.size {
		s := &span{from: from, to: min(from+r.size, r.d.Size)}
		select {
		case buffer := <-r.free:
			part := newPart(buffer, s.to-s.from, r.size)
			r.work.Go(func() { part.fill(func() (io.ReadCloser, error) { return r.open(s) }) })
			r.ahead <- part
		case <-r.ctx.Done():
			return
		}
	}
}

// open asks for a span; the request goes out with the first Read.
func (r *rangedReader) open(s *span) (io.ReadCloser, error) {
	rc, err := r.fetcher.Fetch(context.WithValue(r.ctx, spanKey{}, s), r.d)
	if err != nil {
		return nil, err
	}
	seeker, ok := rc.(io.Seeker)
	if !ok {
		return nil, errors.Join(errors.New("the registry's answer cannot be read from the middle"), rc.Close())
	}
	if _, err := seeker.Seek(s.from, io.SeekStart); err != nil {
		return nil, errors.Join(err, rc.Close())
	}
	return rc, nil
}

// Close ends all requests and waits for them.
func (r *rangedReader) Close() error {
	r.cancel()
	r.work.Wait()
	if r.first != nil {
		return r.first.Close()
	}
	return nil
}

// part is a span that is read while it comes.
type part struct {
	data []byte
	used int // of data, by its reader

	mu   sync.Mutex
	more *sync.Cond
	have int   // bytes of data that came
	err  error // why no more come; io.EOF when all are there
}

// newPart is a part of size bytes, in the buffer of an earlier one if there is one; most is that of the largest.
func newPart(buffer []byte, size, most int64) *part {
	if buffer == nil {
		buffer = make([]byte, most)
	}
	p := &part{data: buffer[:size]}
	p.more = sync.NewCond(&p.mu)
	return p
}

func (p *part) fill(open func() (io.ReadCloser, error)) {
	rc, err := open()
	if err == nil {
		for have := 0; err == nil && have < len(p.data); {
			var n int
			n, err = rc.Read(p.data[have:])
			have += n
			p.came(n, nil)
		}
		_ = rc.Close() // all that is wanted was read, or the error is known
	}
	p.came(0, err)
}

// came says that n bytes more are there, and that no more will be after an
// error or the last byte.
func (p *part) came(n int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.have += n
	switch {
	case p.have == len(p.data):
		p.err = io.EOF
	case errors.Is(err, io.EOF):
		p.err = io.ErrUnexpectedEOF
	case err != nil:
		p.err = err
	}
	p.more.Signal()
}

func (p *part) read(b []byte) (int, error) {
	p.mu.Lock()
	for p.used == p.have && p.err == nil {
		p.more.Wait()
	}
	have, err := p.have, p.err
	p.mu.Unlock()
	if p.used == have {
		return 0, err
	}
	n := copy(b, p.data[p.used:have])
	p.used += n
	return n, nil
}
