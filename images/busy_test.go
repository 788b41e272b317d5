package images

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/pausa-run/pausa/integration/mkimage/image"
)

// A store with pulls that wait in the middle, one that was given up, containers,
// image volumes, views and strangers is accounted for to the byte.
func TestAccountOfABusyStore(t *testing.T) {
	ctx := context.Background()
	r, o := newRegistry(t), folders(t)
	s := open(t, o)
	load(t, s, small("localhost/a:1", filler(1)))
	write(t, filepath.Join(mountAs(t, s, "c1", "localhost/a:1"), "written"), strings.Repeat("x", 100_000))
	if _, err := s.Mount(ctx, "c1.image0", "localhost/a:1", MountOptions{ReadOnly: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.View(ctx, "localhost/a:1"); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(o.Root, "stranger"), "who put this here?")
	running, givenUp := r.push(t, "running:1", small("r", image.Filler(5, 1<<20))), r.push(t, "given-up:1", small("g", image.Filler(6, 1<<20)))
	begun, goOn := make(chan string, 100), make(chan struct{})
	await := func(repo string) {
		for path := ""; !strings.Contains(path, repo); path = <-begun { //nolint:revive // others are not waited for
		}
	}
	r.fail(func(_ http.ResponseWriter, q *http.Request) bool {
		if q.Method != http.MethodGet || !strings.Contains(q.URL.Path, "/blobs/") {
			return true
		}
		begun <- q.URL.Path
		select {
		case <-goOn:
		case <-q.Context().Done():
		}
		return false
	})
	result := make(chan error, 2)
	stopped, stop := context.WithCancel(ctx)
	go func() {
		_, err := s.Pull(stopped, givenUp, PullOptions{})
		result <- err
	}()
	await("/given-up/")
	stop()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	s.flights.work.Wait()
	running2, stop2 := context.WithCancel(ctx)
	defer stop2()
	go func() {
		_, err := s.Pull(running2, running, PullOptions{})
		result <- err
	}()
	await("/running/")
	settle(t, s)

	items := steadyAccount(t, s, o.Root)
	uses := map[string]bool{}
	for _, i := range items {
		if i.Orphan() && i.Path != "stranger" {
			t.Errorf("orphan %+v", i)
		}
		for _, u := range i.UsedBy {
			uses[strings.SplitN(u, ", kept until", 2)[0]] = true
		}
	}
	for _, want := range []string{"localhost/a:1", "container c1", "container c1.image0", "pull " + running, "pull " + givenUp} {
		if !uses[want] {
			t.Errorf("nothing is used by %q: %v", want, uses)
		}
	}
	stop2()
	close(goOn)
	<-result
	for _, id := range []string{"c1", "c1.image0"} {
		if err := s.Unmount(ctx, id); err != nil {
			t.Error(err)
		}
	}
	if err := s.Unview(ctx, "localhost/a:1"); err != nil {
		t.Error(err)
	}
}

// settle waits until nothing changes in the background.
func settle(t *testing.T, s *Store) {
	t.Helper()
	s.garbage()
	s.closeSpares()
	for left := []string{""}; len(left) > 0; {
		left, _ = filepath.Glob(s.path("trash", "*"))
	}
}

// steadyAccount is an account whose sum is that of du; what a pull still writes
// may come between the two, a few times.
func steadyAccount(t *testing.T, s *Store, root string) []Item {
	t.Helper()
	var sum, want uint64
	for range 20 {
		items, err := s.Account(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		sum = 0
		for _, i := range items {
			sum += i.Bytes
		}
		if want = du(t, root); sum == want {
			return items
		}
	}
	t.Fatalf("sum %d, du says %d", sum, want)
	return nil
}

// threePlatforms is an archive with one image for three machines, this one among them.
func threePlatforms(t *testing.T, name string) []byte {
	t.Helper()
	blobs := map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, arch := range []string{"amd64", "arm64", "s390x"} {
		spec := small("", filler(len(index.Manifests)+1))
		spec.Platform = ocispec.Platform{OS: "linux", Architecture: arch}
		var one ocispec.Index
		for r := tar.NewReader(bytes.NewReader(packed(t, spec))); ; {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			data, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			if h.Name == "index.json" {
				err = json.Unmarshal(data, &one)
			} else if strings.HasPrefix(h.Name, "blobs/sha256/") && !strings.HasSuffix(h.Name, "/") {
				blobs[h.Name] = data
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		m := one.Manifests[0]
		m.Platform, m.Annotations = &spec.Platform, nil
		index.Manifests = append(index.Manifests, m)
	}
	data := text(t, index)
	top := describe(ocispec.MediaTypeImageIndex, data)
	blobs["blobs/sha256/"+top.Digest.Encoded()] = data
	top.Annotations = map[string]string{"io.containerd.image.name": name}
	blobs["index.json"] = text(t, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{top}})
	return files(t, blobs)
}

func TestExportOfSeveralPlatforms(t *testing.T) {
	ctx := context.Background()
	data := threePlatforms(t, "localhost/multi:1")
	for _, all := range []bool{true, false} {
		from, to := open(t, folders(t)), open(t, folders(t))
		list, err := from.Import(ctx, bytes.NewReader(data), ImportOptions{AllPlatforms: all})
		if err != nil || len(list) != 1 {
			t.Fatalf("all %v: %+v, %v", all, list, err)
		}
		var docker bytes.Buffer
		if err := from.Export(ctx, &docker, []string{"localhost/multi:1"}, FormatDocker); err != nil {
			t.Fatal(err)
		}
		if own, err := open(t, folders(t)).Import(ctx, &docker, ImportOptions{AllPlatforms: true}); err != nil || len(own) != 1 || own[0].ID != list[0].ID {
			t.Errorf("all %v: docker archive: %+v, %v", all, own, err)
		}
		var out bytes.Buffer
		if err := from.Export(ctx, &out, []string{"localhost/multi:1"}, FormatOCI); err != nil {
			t.Fatalf("all %v: %v", all, err)
		}
		back, err := to.Import(ctx, bytes.NewReader(out.Bytes()), ImportOptions{AllPlatforms: all})
		if err != nil || len(back) != 1 || back[0].ID != list[0].ID {
			t.Fatalf("all %v: back %+v, %v", all, back, err)
		}
		if len(back[0].RepoTags) != 1 || back[0].RepoTags[0] != "localhost/multi:1" {
			t.Errorf("all %v: names %v", all, back[0].RepoTags)
		}
		if all && back[0].RepoDigests[0] != list[0].RepoDigests[0] {
			t.Errorf("the index was lost: %v, %v", list[0].RepoDigests, back[0].RepoDigests)
		}
		if all {
			r := newRegistry(t)
			pushed := r.host() + "/multi:1"
			if _, err := from.Push(ctx, "localhost/multi:1", PushOptions{To: pushed}); err != nil {
				t.Error(err)
			}
			if other, err := to.Pull(ctx, pushed, PullOptions{Platform: "linux/s390x"}); err != nil || other.Config.Architecture != "s390x" {
				t.Errorf("another platform of what was pushed: %+v, %v", other.Config.Platform, err)
			}
		}
		n := 0 // a manifest, a config and a layer for each machine, a layer of all, and the index
		err = to.content.Walk(in(ctx), func(content.Info) error { n++; return nil })
		if err != nil {
			t.Fatal(err)
		}
		if want := map[bool]int{true: 3*(2+1) + 1 + 1, false: 2 + 2}[all]; n < want {
			t.Errorf("all %v: %d blobs came back, want %d", all, n, want)
		}
	}
}
