package reconcile

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/pausa-run/pausa/pod/manifest"
)

// Whatever is in a file of the store, opening it works, and what cannot be used is set aside.
func FuzzStoreFile(f *testing.F) {
	f.Add([]byte(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"x","namespace":"default","uid":"u"},"spec":{"containers":[{"name":"c","image":"b"}]}}`))
	f.Add([]byte(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"../../x","namespace":"default","uid":"u"}}`))
	f.Add([]byte(`{"apiVersion":"apps/v1","kind":"Deployment"}`))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		path := filepath.Join(dir, "objects", "Pod", "default", "x.json")
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := openStore(dir, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		_, stored := s.get(manifest.Ref{Kind: manifest.KindPod, Namespace: "default", Name: "x"})
		_, missing := os.Stat(path)
		if stored != (missing == nil) || len(s.list("", "")) > 1 {
			t.Errorf("stored %v, file: %v, objects %d", stored, missing, len(s.list("", "")))
		}
	})
}
