package images

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pausa-run/pausa/integration/mkimage/image"
)

// Small enough that the race detector need not watch many bytes.
const (
	rangesFrom = 1 << 20
	partSize   = 64 << 10
)

// bigBlob makes a registry answer requests for its one blob that is large for s by serve,
// and gives the reference of an image that has it.
func bigBlob(t *testing.T, r *testRegistry, s *Store, serve func(w http.ResponseWriter, q *http.Request, blob []byte)) string {
	t.Helper()
	s.ranging = ranging{from: rangesFrom, part: partSize}
	ref := r.push(t, "app:1", small("x", image.Filler(1, rangesFrom+4*partSize)))
	inner := r.Config.Handler
	var mu sync.Mutex
	blobs := map[string][]byte{}
	r.fail(func(w http.ResponseWriter, q *http.Request) bool {
		mu.Lock()
		blob, known := blobs[q.URL.Path]
		mu.Unlock()
		if !strings.Contains(q.URL.Path, "/blobs/") || q.Method != http.MethodGet || known && blob == nil {
			return true
		}
		if !known {
			mu.Lock()
			blobs[q.URL.Path] = nil // what comes here again goes through
			mu.Unlock()
			asked := q.Clone(q.Context())
			asked.Header.Del("Range")
			whole := httptest.NewRecorder()
			inner.ServeHTTP(whole, asked)
			if blob = whole.Body.Bytes(); len(blob) < rangesFrom {
				_, _ = w.Write(blob)
				return false
			}
			mu.Lock()
			blobs[q.URL.Path] = blob
			mu.Unlock()
		}
		serve(w, q, blob)
		return false
	})
	return ref
}

func serveRange(w http.ResponseWriter, q *http.Request, blob []byte) {
	http.ServeContent(w, q, "", time.Time{}, bytes.NewReader(blob))
}

func TestLargeBlobsComeInParts(t *testing.T) {
	r, s := newRegistry(t), open(t, folders(t))
	var mu sync.Mutex
	var asked []string
	var sent atomic.Int64
	second := make(chan struct{})
	ref := bigBlob(t, r, s, func(w http.ResponseWriter, q *http.Request, blob []byte) {
		mu.Lock()
		asked = append(asked, q.Header.Get("Range"))
		n := len(asked)
		mu.Unlock()
		if n == 3 {
			close(second)
		}
		if n == 2 {
			<-second // the third must not wait for the second's end
		}
		serveRange(counting{w, &sent}, q, blob)
	})
	var last, total int64
	_, err := s.Pull(context.Background(), ref, PullOptions{Progress: func(p Progress) {
		if p.Total < rangesFrom {
			return
		}
		if p.Bytes < last || p.Bytes > p.Total {
			t.Errorf("progress from %d to %d of %d", last, p.Bytes, p.Total)
		}
		last, total = p.Bytes, p.Total
	}})
	if err != nil {
		t.Fatal(err)
	}
	if last != total || sent.Load() != total || int64(len(asked)) != (total+partSize-1)/partSize {
		t.Errorf("%d of %d bytes came, %d were sent by %d requests", last, total, sent.Load(), len(asked))
	}
	for _, a := range asked {
		var from, to int64
		if _, err := fmt.Sscanf(a, "bytes=%d-%d", &from, &to); err != nil || to-from >= partSize {
			t.Errorf("asked for %q", a)
		}
	}
}

type counting struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c counting) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return c.ResponseWriter.Write(p)
}

func TestRegistriesWithoutRanges(t *testing.T) {
	for name, refuse := range map[string]func(w http.ResponseWriter, q *http.Request, blob []byte){
		"ignored": func(w http.ResponseWriter, _ *http.Request, blob []byte) {
			w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
			_, _ = w.Write(blob)
		},
		"refused": func(w http.ResponseWriter, q *http.Request, blob []byte) {
			if q.Header.Get("Range") != "" {
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				return
			}
			_, _ = w.Write(blob)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, s := newRegistry(t), open(t, folders(t))
			var n, sent atomic.Int64
			ref := bigBlob(t, r, s, func(w http.ResponseWriter, q *http.Request, blob []byte) {
				n.Add(1)
				refuse(counting{w, &sent}, q, blob)
			})
			img, err := s.Pull(context.Background(), ref, PullOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if n.Load() > 2 || sent.Load() > img.Size {
				t.Errorf("%d bytes by %d requests; the image has %d", sent.Load(), n.Load(), img.Size)
			}
		})
	}
}

// Parts that fail are fetched again, and what came before is not.
func TestPartsThatFailAreTriedAgain(t *testing.T) {
	for name, fail := range map[string]func(w http.ResponseWriter, q *http.Request, blob []byte){
		"busy":    func(w http.ResponseWriter, _ *http.Request, _ []byte) { w.WriteHeader(http.StatusTooManyRequests) },
		"broken":  func(w http.ResponseWriter, _ *http.Request, _ []byte) { w.WriteHeader(http.StatusBadGateway) },
		"aborted": func(http.ResponseWriter, *http.Request, []byte) { panic(http.ErrAbortHandler) },
		"cut off": func(w http.ResponseWriter, q *http.Request, blob []byte) {
			serveRange(&cutWriter{ResponseWriter: w, left: partSize / 2}, q, blob)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, s := newRegistry(t), open(t, folders(t))
			var n, sent atomic.Int64
			ref := bigBlob(t, r, s, func(w http.ResponseWriter, q *http.Request, blob []byte) {
				if i := n.Add(1); i == 5 || i == 6 {
					fail(w, q, blob)
					return
				}
				serveRange(counting{w, &sent}, q, blob)
			})
			img, err := s.Pull(context.Background(), ref, PullOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if most := img.Size + 2*partsAtOnce*partSize; sent.Load() > most {
				t.Errorf("%d bytes were sent; the image has %d", sent.Load(), img.Size)
			}
		})
	}
}

// cutWriter breaks the connection in the middle of an answer.
type cutWriter struct {
	http.ResponseWriter
	left int
}

func (c *cutWriter) Write(p []byte) (int, error) {
	if c.left -= len(p); c.left < 0 {
		panic(http.ErrAbortHandler)
	}
	return c.ResponseWriter.Write(p)
}

func TestWrongPartsAreNotBelieved(t *testing.T) {
	r, s := newRegistry(t), open(t, folders(t))
	var honest atomic.Bool
	ref := bigBlob(t, r, s, func(w http.ResponseWriter, q *http.Request, blob []byte) {
		if !honest.Load() {
			blob = bytes.Clone(blob)
			blob[len(blob)-partSize-1] ^= 1
		}
		serveRange(w, q, blob)
	})
	_, err := s.Pull(context.Background(), ref, PullOptions{})
	wantError(t, err, "digest")
	if list, _ := s.List(context.Background()); len(list) > 0 {
		t.Errorf("images %+v", list)
	}
	honest.Store(true)
	if _, err := s.Pull(context.Background(), ref, PullOptions{}); err != nil {
		t.Errorf("from an honest registry: %v", err)
	}
}

// Where a redirect leads, parts are asked for without the credential.
func TestPartsOverRedirects(t *testing.T) {
	r, s := newRegistry(t), open(t, folders(t))
	var mu sync.Mutex
	var blob []byte
	var asked, auths []string
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		mu.Lock()
		asked, auths = append(asked, q.Header.Get("Range")), append(auths, q.Header.Get("Authorization"))
		b := blob
		mu.Unlock()
		serveRange(w, q, b)
	}))
	t.Cleanup(other.Close)
	ref := bigBlob(t, r, s, func(w http.ResponseWriter, q *http.Request, b []byte) {
		mu.Lock()
		blob = b
		mu.Unlock()
		if _, _, ok := q.BasicAuth(); !ok {
			w.Header().Set("WWW-Authenticate", `Basic realm="r"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		http.Redirect(w, q, strings.Replace(other.URL, "127.0.0.1", "localhost", 1)+"/there", http.StatusTemporaryRedirect)
	})
	if _, err := s.Pull(context.Background(), ref, PullOptions{Auth: Auth{Username: "u", Password: "p"}}); err != nil {
		t.Fatal(err)
	}
	if len(asked) < rangesFrom/partSize {
		t.Errorf("asked for %q", asked)
	}
	for i, a := range asked {
		if strings.HasSuffix(a, "-") || auths[i] != "" {
			t.Errorf("asked for %q with the credential %q", a, auths[i])
		}
	}
}
