package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path"
	"strings"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
)

// registryAddress is where the registry listens inside the host.
const registryAddress = "127.0.0.1:5000"

// serveRegistry is a registry with one image, for reading only. A rate above 0
// is how many bytes a second one connection gets at most, as registries have it.
// It also answers on the socket control, which tells how much it sent.
func serveRegistry(l layout, rate int64, control string) error {
	var sent atomic.Int64
	mux := http.NewServeMux()
	mux.HandleFunc("/sent", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, sent.Load()) })
	mux.HandleFunc("/v2/", func(w http.ResponseWriter, r *http.Request) {
		name := path.Base(r.URL.Path)
		switch kind := path.Base(path.Dir(r.URL.Path)); {
		case r.URL.Path == "/v2/":
		case kind == "manifests" && (name == "1" || name == l.manifest.Digest.String()):
			w.Header().Set("Content-Type", l.manifest.MediaType)
			serveBlob(w, r, l, l.manifest.Digest)
		case kind == "blobs" && digest.Digest(name).Validate() == nil:
			w.Header().Set("Content-Type", "application/octet-stream")
			serveBlob(&metered{w, &sent, rate}, r, l, digest.Digest(name))
		default:
			http.NotFound(w, r)
		}
	})
	server := http.Server{Addr: registryAddress, Handler: mux, ReadHeaderTimeout: time.Minute}
	inside, err := net.Listen("unix", control)
	if err != nil {
		return err
	}
	go func() { _ = server.Serve(inside) }()
	return server.ListenAndServe()
}

func serveBlob(w http.ResponseWriter, r *http.Request, l layout, d digest.Digest) {
	f, err := os.Open(l.blob(d))
	if err != nil {
		http.Error(w, strings.ReplaceAll(err.Error(), l.dir, ""), http.StatusNotFound)
		return
	}
	defer f.Close()
	w.Header().Set("Docker-Content-Digest", d.String())
	http.ServeContent(w, r, "", time.Time{}, f)
}

// metered counts what is sent, and sends no faster than rate.
type metered struct {
	http.ResponseWriter
	sent *atomic.Int64
	rate int64
}

func (m *metered) Write(p []byte) (int, error) {
	n, err := m.ResponseWriter.Write(p)
	m.sent.Add(int64(n))
	if m.rate > 0 {
		time.Sleep(time.Duration(n) * time.Second / time.Duration(m.rate))
	}
	return n, err
}
