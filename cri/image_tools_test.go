package cri

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/pausa-run/pausa/cri/pausav1"
	"github.com/pausa-run/pausa/images"
)

// fakeTools knows the image x:1.
type fakeTools struct {
	ImageTools
	pulled    images.PullOptions
	pushed    images.PushOptions
	pruned    images.PruneOptions
	collected bool
	viewed    map[string]bool
}

func (f *fakeTools) known(ref string) error {
	if ref != "x:1" {
		return images.ErrNotFound
	}
	return nil
}

func (f *fakeTools) Pull(_ context.Context, ref string, o images.PullOptions) (images.Image, error) {
	f.pulled = o
	o.Progress(images.Progress{Ref: ref, Digest: "sha256:l", Bytes: 5, Total: 10})
	o.Progress(images.Progress{Ref: ref, Digest: "sha256:l", Bytes: 10, Total: 10, Done: true})
	return images.Image{ID: "sha256:x"}, f.known(ref)
}

func (f *fakeTools) Push(_ context.Context, ref string, o images.PushOptions) (string, error) {
	f.pushed = o
	return "sha256:m", f.known(ref)
}

func (f *fakeTools) Tag(_ context.Context, ref, _ string) (images.Image, error) {
	return images.Image{}, f.known(ref)
}

func (f *fakeTools) Export(_ context.Context, w io.Writer, refs []string, format string) error {
	if _, err := io.WriteString(w, strings.Repeat(format, 700_000)); err != nil {
		return err
	}
	return f.known(refs[0])
}

func (f *fakeTools) Inspect(_ context.Context, ref string) (images.Inspection, error) {
	return images.Inspection{ConfigDigest: "sha256:x"}, f.known(ref)
}

func (f *fakeTools) Explain(_ context.Context, ref string, a images.Auth) (images.Explanation, error) {
	return images.Explanation{Ref: ref, HostsFile: a.Username}, nil
}

func (f *fakeTools) Prune(_ context.Context, o images.PruneOptions) ([]images.Removed, error) {
	f.pruned = o
	return []images.Removed{{ID: "sha256:y"}}, errors.New("one stays")
}

func (f *fakeTools) Account(context.Context) ([]images.Item, error) {
	return []images.Item{{Path: "a", Bytes: 7}}, nil
}

func (f *fakeTools) GarbageCollect(context.Context) error { f.collected = true; return nil }

func (f *fakeTools) View(_ context.Context, ref string) (string, error) {
	f.viewed[ref] = true
	return "/view", f.known(ref)
}

func (f *fakeTools) Unview(_ context.Context, ref string) error {
	delete(f.viewed, ref)
	return nil
}

func withTools(t *testing.T) (*daemon, *fakeTools) {
	f := &fakeTools{viewed: map[string]bool{}}
	return newDaemon(t, func(o *Options) { o.ImageTools = f }), f
}

func TestPullTellsItsSteps(t *testing.T) {
	d, f := withTools(t)
	cred := &pausav1.RegistryCredential{Username: "me", Password: "secret", Server: "r"}
	s, err := d.own.PullImage(t.Context(), &pausav1.PullImageRequest{Ref: "x:1", Credential: cred, Platform: "linux/arm64"})
	if err != nil {
		t.Fatal(err)
	}
	var got []*pausav1.ImageProgress
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, m)
	}
	if len(got) != 3 || got[0].Bytes != 5 || !got[1].Done || got[1].Digest != "sha256:l" || got[2].Result != "sha256:x" {
		t.Errorf("steps: %v", got)
	}
	if f.pulled.Auth != (images.Auth{Username: "me", Password: "secret", ServerAddress: "r"}) || f.pulled.Platform != "linux/arm64" {
		t.Errorf("asked for %+v", f.pulled)
	}
	s, err = d.own.PullImage(t.Context(), &pausav1.PullImageRequest{Ref: "none"})
	for err == nil {
		_, err = s.Recv()
	}
	wantCode(t, err, codes.NotFound, "image not found")
	s, err = d.own.PullImage(t.Context(), &pausav1.PullImageRequest{})
	if err == nil {
		_, err = s.Recv()
	}
	wantCode(t, err, codes.InvalidArgument, "ref")
}

func TestPush(t *testing.T) {
	d, f := withTools(t)
	s, err := d.own.PushImage(t.Context(), &pausav1.PushImageRequest{Ref: "x:1", To: "r/y:2"})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := s.Recv(); err != nil || m.Result != "sha256:m" || f.pushed.To != "r/y:2" {
		t.Errorf("push: %v %v %+v", m, err, f.pushed)
	}
}

func TestExport(t *testing.T) {
	d, _ := withTools(t)
	s, err := d.own.ExportImage(t.Context(), &pausav1.ExportImageRequest{Refs: []string{"x:1"}, Format: "oci"})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil || len(m.Data) > exportChunk {
			t.Fatal(len(m.GetData()), err)
		}
		n += len(m.Data)
	}
	if n != 2_100_000 {
		t.Errorf("%d bytes", n)
	}
	s, err = d.own.ExportImage(t.Context(), &pausav1.ExportImageRequest{})
	if err == nil {
		_, err = s.Recv()
	}
	wantCode(t, err, codes.InvalidArgument, "refs")
}

func TestImageReports(t *testing.T) {
	d, f := withTools(t)
	ctx := t.Context()
	tag, err := d.own.TagImage(ctx, &pausav1.TagImageRequest{Ref: "x:1", Name: "busybox"})
	if err != nil || tag.Name != "docker.io/library/busybox:latest" {
		t.Errorf("tag: %v %v", tag, err)
	}
	_, err = d.own.TagImage(ctx, &pausav1.TagImageRequest{Ref: "x:1", Name: "Not Good"})
	wantCode(t, err, codes.InvalidArgument, "Not Good")
	r, err := d.own.InspectImage(ctx, &pausav1.ImageRequest{Ref: "x:1"})
	if err != nil || !strings.Contains(string(r.Json), `"configDigest":"sha256:x"`) {
		t.Errorf("inspect: %s %v", r.GetJson(), err)
	}
	_, err = d.own.InspectImage(ctx, &pausav1.ImageRequest{Ref: "none"})
	wantCode(t, err, codes.NotFound, "not found")
	r, err = d.own.ExplainImage(ctx, &pausav1.PullImageRequest{Ref: "x:1", Credential: &pausav1.RegistryCredential{Username: "me"}})
	if err != nil || !strings.Contains(string(r.Json), `"hostsFile":"me"`) {
		t.Errorf("explain: %s %v", r.GetJson(), err)
	}
	r, err = d.own.PruneImages(ctx, &pausav1.PruneImagesRequest{All: true, MinAgeSeconds: 60})
	if err != nil || string(r.Json) != `{"removed":[{"id":"sha256:y","names":null,"size":0}],"error":"one stays"}` || !f.pruned.All || f.pruned.MinAge.Minutes() != 1 {
		t.Errorf("prune: %s %v", r.GetJson(), err)
	}
	_, err = d.own.PruneImages(ctx, &pausav1.PruneImagesRequest{MinAgeSeconds: -1})
	wantCode(t, err, codes.InvalidArgument, "min_age_seconds")
	for _, collect := range []bool{false, true} {
		r, err = d.own.AccountImages(ctx, &pausav1.AccountImagesRequest{Collect: collect})
		if err != nil || !strings.Contains(string(r.Json), `"bytes":7`) || f.collected != collect {
			t.Errorf("account: %s %v", r.GetJson(), err)
		}
	}
	m, err := d.own.MountImage(ctx, &pausav1.ImageRequest{Ref: "x:1"})
	if err != nil || m.Path != "/view" || !f.viewed["x:1"] {
		t.Errorf("mount: %v %v", m, err)
	}
	if _, err := d.own.UnmountImage(ctx, &pausav1.ImageRequest{Ref: "x:1"}); err != nil || f.viewed["x:1"] {
		t.Errorf("unmount: %v", err)
	}
}

func TestUntag(t *testing.T) {
	d := newDaemon(t)
	d.images.all = []images.Image{{ID: "sha256:a", RepoTags: []string{"x:1", "x:2"}}}
	if _, err := d.own.UntagImage(t.Context(), &pausav1.ImageRequest{Ref: "x:1"}); err != nil || len(d.images.all) != 1 || len(d.images.all[0].RepoTags) != 1 {
		t.Errorf("left %+v, %v", d.images.all, err)
	}
	_, err := d.own.UntagImage(t.Context(), &pausav1.ImageRequest{Ref: "none"})
	wantCode(t, err, codes.NotFound, "not found")
	_, err = d.own.UntagImage(t.Context(), &pausav1.ImageRequest{})
	wantCode(t, err, codes.InvalidArgument, "ref")
}

func TestWithoutImageTools(t *testing.T) {
	d := newDaemon(t)
	_, err := d.own.InspectImage(t.Context(), &pausav1.ImageRequest{Ref: "x:1"})
	wantCode(t, err, codes.Unavailable, "without registries")
}
