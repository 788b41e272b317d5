package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func busybox(t *testing.T) Spec {
	t.Helper()
	if _, err := os.Stat(BusyboxPath); err != nil {
		t.Skipf("no busybox here: %v", err)
	}
	s, err := Busybox("")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func entries(t *testing.T, archive []byte) map[string][]byte {
	t.Helper()
	m := map[string][]byte{}
	for tr := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return m
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		m[h.Name] = data
	}
}

func TestSameBytesEveryTime(t *testing.T) {
	for _, format := range []string{FormatOCI, FormatDocker} {
		s := busybox(t)
		s.Format = format
		s.Layers = append(s.Layers, Filler(1, 5000))
		a, err := Bytes(s)
		if err != nil {
			t.Fatal(err)
		}
		b, err := Bytes(s)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(a, b) {
			t.Errorf("%s: two runs gave different bytes", format)
		}
	}
}

func TestBusyboxHoldsWhatPodsNeed(t *testing.T) {
	var l bytes.Buffer
	if err := writeLayer(&l, busybox(t).Layers[0]); err != nil {
		t.Fatal(err)
	}
	got := entries(t, l.Bytes())
	for _, p := range []string{"bin/busybox", "bin/sh", "bin/sleep", "usr/bin/wget", "usr/sbin/httpd", "etc/passwd", "etc/group", "tmp/", "home/app/"} {
		if _, ok := got[p]; !ok {
			t.Errorf("%s is missing", p)
		}
	}
}

func TestOCIArchiveNamesItsImage(t *testing.T) {
	a, err := Bytes(Spec{Name: "localhost/x:1", Layers: []Layer{{Text("a", "b")}}})
	if err != nil {
		t.Fatal(err)
	}
	files := entries(t, a)
	var index ocispec.Index
	if err := json.Unmarshal(files["index.json"], &index); err != nil {
		t.Fatal(err)
	}
	if n := index.Manifests[0].Annotations[annotationImageName]; n != "localhost/x:1" {
		t.Errorf("name %q", n)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(files["blobs/sha256/"+index.Manifests[0].Digest.Encoded()], &m); err != nil {
		t.Fatal(err)
	}
	if _, ok := files["blobs/sha256/"+m.Layers[0].Digest.Encoded()]; !ok {
		t.Error("the layer is not in the archive")
	}
}

func TestRefusals(t *testing.T) {
	if _, err := Bytes(Spec{}); err == nil || !strings.Contains(err.Error(), "layer") {
		t.Errorf("no layer: %v", err)
	}
	if _, err := Bytes(Spec{Format: "zip", Layers: []Layer{{}}}); err == nil || !strings.Contains(err.Error(), "zip") {
		t.Errorf("unknown format: %v", err)
	}
	script := filepath.Join(t.TempDir(), "busybox")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Busybox(script); err == nil || !strings.Contains(err.Error(), "busybox-static") {
		t.Errorf("a script instead of a static program: %v", err)
	}
}
