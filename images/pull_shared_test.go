package images

import (
	"context"
	"errors"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

// A pull that the registry refuses must take nothing from another pull of the
// same image, with a better credential, that is under way.
func TestARefusedPullLeavesAnotherAlone(t *testing.T) {
	ctx := context.Background()
	r, s := newRegistry(t), open(t, folders(t))
	ref := r.push(t, "team/app:1", small("x", filler(1)))
	fetching, refused := make(chan struct{}), make(chan struct{})
	first := true
	r.fail(func(w http.ResponseWriter, q *http.Request) bool {
		if user, _, _ := q.BasicAuth(); user != "me" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return false
		}
		r.mu.Lock()
		wait := first && strings.Contains(q.URL.Path, "/blobs/")
		first = first && !wait
		r.mu.Unlock()
		if wait {
			close(fetching)
			<-refused
		}
		return true
	})
	result := make(chan error, 1)
	go func() {
		_, err := s.Pull(ctx, ref, PullOptions{Auth: Auth{Username: "me", Password: "secret"}})
		result <- err
	}()
	<-fetching
	if _, err := s.Pull(ctx, ref, PullOptions{Auth: Auth{Username: "you", Password: "wrong"}}); !errors.Is(err, ErrAccess) {
		t.Errorf("a pull with a wrong password: %v", err)
	}
	s.garbage()
	close(refused)
	if err := <-result; err != nil {
		t.Fatalf("the pull with the right one: %v", err)
	}
	wantFile(t, filepath.Join(mountAs(t, s, "c1", ref), "name"), "x")
	if all, err := s.leases.List(in(ctx)); err != nil || len(all) != 0 {
		t.Errorf("leases are left: %v, %v", all, err)
	}
}
