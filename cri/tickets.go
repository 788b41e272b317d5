package cri

import (
	"net/http"
	"net/url"
	"sync"
	"time"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// ticketLife is how long an address can be used, as in cri-streaming.
const ticketLife = time.Minute

// tickets are the addresses that have been given out and not been used. The
// streaming server has its own; these also say what an address is for.
type tickets struct {
	mu  sync.Mutex
	all map[string]ticket // by path
}

type ticket struct {
	request any
	until   time.Time
}

func (t *tickets) add(address string, request any) {
	u, err := url.Parse(address)
	if err != nil {
		return // nobody can use it then
	}
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	for path, old := range t.all {
		if now.After(old.until) {
			delete(t.all, path)
		}
	}
	if t.all == nil {
		t.all = map[string]ticket{}
	}
	t.all[u.Path] = ticket{request, now.Add(ticketLife)}
}

// take gives the request of an address once.
func (t *tickets) take(path string) (request any, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	one, ok := t.all[path]
	delete(t.all, path)
	return one.request, ok && time.Now().Before(one.until)
}

func (s *streamer) exec(r *criv1.ExecRequest) (*criv1.ExecResponse, error) {
	resp, err := s.server.GetExec(r)
	if err == nil {
		s.tickets.add(resp.Url, r)
	}
	return resp, err
}

func (s *streamer) attach(r *criv1.AttachRequest) (*criv1.AttachResponse, error) {
	resp, err := s.server.GetAttach(r)
	if err == nil {
		s.tickets.add(resp.Url, r)
	}
	return resp, err
}

func (s *streamer) portForward(r *criv1.PortForwardRequest) (*criv1.PortForwardResponse, error) {
	resp, err := s.server.GetPortForward(r)
	if err == nil {
		s.tickets.add(resp.Url, r)
	}
	return resp, err
}

// ServeHTTP answers at the addresses that were given out, once at each.
func (s *streamer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	request, ok := s.tickets.take(r.URL.Path)
	if !ok {
		http.NotFound(w, r)
		return
	}
	if want, ok := request.(wanted); ok && wsstream.IsWebSocketRequest(r) {
		s.websocket(w, r, want)
		return
	}
	s.server.ServeHTTP(w, r)
}
