package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pausa-run/pausa/cri/pausav1"
)

// fakePausa is the fake's pausa.v1 where the names of its methods are taken by CRI's.
type fakePausa struct{ *fakeDaemon }

func (f fakePausa) PullImage(r *pausav1.PullImageRequest, out pausav1.Pausa_PullImageServer) error {
	switch {
	case strings.HasPrefix(r.GetRef(), "slow/"):
		return f.pullInParts(out)
	case strings.Contains(r.GetRef(), "nowhere"):
		return status.Error(codes.NotFound, "image is not in the registry")
	case strings.Contains(r.GetRef(), "private") && r.GetCredential().GetPassword() != "secret" && r.GetCredential().GetAuth() != "c2VjcmV0":
		return status.Error(codes.Internal, "the registry refuses access")
	}
	for _, m := range []*pausav1.ImageProgress{
		{Digest: "sha256:aaaabbbbccccdddd", Bytes: 500_000, Total: 2_000_000},
		{Digest: "sha256:aaaabbbbccccdddd", Bytes: 2_000_000, Total: 2_000_000, Done: true},
		{Result: "sha256:2" + r.GetPlatform()},
	} {
		if err := out.Send(m); err != nil {
			return err
		}
	}
	return nil
}

func (f fakePausa) PushImage(r *pausav1.PushImageRequest, out pausav1.Pausa_PushImageServer) error {
	return out.Send(&pausav1.ImageProgress{Result: "sha256:pushed-" + r.GetRef() + "-" + r.GetTo()})
}

func (f fakePausa) TagImage(_ context.Context, r *pausav1.TagImageRequest) (*pausav1.TagImageResponse, error) {
	if f.find(r.GetRef()) == nil {
		return nil, status.Error(codes.NotFound, "image not found")
	}
	return &pausav1.TagImageResponse{Name: "docker.io/library/" + r.GetName()}, nil
}

func (f fakePausa) UntagImage(ctx context.Context, r *pausav1.ImageRequest) (*pausav1.UntagImageResponse, error) {
	_, err := f.RemoveImage(ctx, &criv1.RemoveImageRequest{Image: &criv1.ImageSpec{Image: r.GetRef()}})
	return &pausav1.UntagImageResponse{}, err
}

func (f fakePausa) ExportImage(r *pausav1.ExportImageRequest, out pausav1.Pausa_ExportImageServer) error {
	for _, part := range []string{r.GetFormat(), " of ", strings.Join(r.GetRefs(), " ")} {
		if part == "bad" {
			return status.Error(codes.NotFound, "image not found")
		}
		if err := out.Send(&pausav1.ExportImageResponse{Data: []byte(part)}); err != nil {
			return err
		}
	}
	return nil
}

func (f fakePausa) InspectImage(_ context.Context, r *pausav1.ImageRequest) (*pausav1.ImageReport, error) {
	return &pausav1.ImageReport{Json: []byte(`{"id":"` + r.GetRef() + `"}`)}, nil
}

func (f fakePausa) ExplainImage(_ context.Context, r *pausav1.PullImageRequest) (*pausav1.ImageReport, error) {
	return &pausav1.ImageReport{Json: []byte(`{"ref":"` + r.GetRef() + `","hostsFile":"","attempts":[` +
		`{"endpoint":"http://mirror/v2","credential":"none","status":"404 Not Found"},` +
		`{"endpoint":"http://own/v2","credential":"none","status":"200 OK","digest":"sha256:d","used":true}]}`)}, nil
}

func (f fakePausa) PruneImages(_ context.Context, r *pausav1.PruneImagesRequest) (*pausav1.ImageReport, error) {
	if r.GetAll() {
		return &pausav1.ImageReport{Json: []byte(`{"removed":[],"error":"remove image x: image is in use"}`)}, nil
	}
	return &pausav1.ImageReport{Json: []byte(`{"removed":[{"id":"sha256:1","names":["a:1","b:1"],"size":1500}]}`)}, nil
}

func (f fakePausa) AccountImages(_ context.Context, r *pausav1.AccountImagesRequest) (*pausav1.ImageReport, error) {
	items := `{"path":"content/blobs/sha256/a","kind":"blob","bytes":4096,"usedBy":["x:1"]}`
	if !r.GetCollect() {
		items += `,{"path":"stranger","kind":"unknown","bytes":512}`
	}
	return &pausav1.ImageReport{Json: []byte("[" + items + "]")}, nil
}

func (f fakePausa) MountImage(context.Context, *pausav1.ImageRequest) (*pausav1.MountImageResponse, error) {
	return &pausav1.MountImageResponse{Path: "/run/x"}, nil
}

func (f fakePausa) UnmountImage(context.Context, *pausav1.ImageRequest) (*pausav1.UnmountImageResponse, error) {
	return &pausav1.UnmountImageResponse{}, nil
}

func TestImagesPull(t *testing.T) {
	f := startFake(t)
	f.run(t, "images", "pull", "x", "--platform", "/arm").want(t, 0, "sha256:2/arm\n", "1 of 1 blobs, 2MB of 2MB, ")
	f.run(t, "images", "pull", "x", "--progress", "none").want(t, 0, "sha256:2\n", "")
	r := f.run(t, "images", "pull", "x", "--progress", "json")
	var last totals
	if err := json.Unmarshal([]byte(r.err), &last); err != nil || last.Bytes != 2_000_000 || last.Done != 1 || !last.Ended {
		t.Errorf("%s: %v", r.err, err)
	}
	r = f.run(t, "images", "pull", "x", "--progress", "bars")
	r.want(t, 0, "sha256:2\n", "aaaabbbbcccc")
	f.run(t, "images", "pull", "nowhere/x", "--progress", "bars").want(t, 1, "", "image is not in the registry")
	f.run(t, "images", "pull", "x", "--progress", "loud").want(t, 2, "", `unknown progress "loud"`)
	f.run(t, "images", "pull", "private/x", "--progress", "none", "--creds", "me:secret").want(t, 0, "sha256:2\n", "")
	f.run(t, "images", "pull", "private/x", "--creds", "me:wrong").want(t, 1, "", "refuses access")
	f.run(t, "images", "pull", "private/x", "--creds", "me").want(t, 1, "", "write --creds USER:PASSWORD")
	f.run(t, "images", "pull", "private/x", "--creds", ":x").want(t, 1, "", "needs a user and a password")
	file := write(t, "auth.json", `{"auths":{"https://index.docker.io/v1/":{"auth":"c2VjcmV0"},"host:5000":{"auth":"eA=="}}}`)
	f.run(t, "images", "pull", "private/x", "--progress", "none", "--authfile", file).want(t, 0, "sha256:2\n", "")
	f.run(t, "images", "pull", "other:1/private", "--authfile", file).want(t, 1, "", "has no credential for other:1")
	f.run(t, "images", "pull", "x", "--authfile", file, "--creds", "a:b").want(t, 2, "", "exclude each other")
	f.run(t, "images", "pull", "x", "--authfile", write(t, "bad.json", "{")).want(t, 1, "", "is no docker configuration")
}

func TestPlainProgressIsALineASecond(t *testing.T) {
	var out bytes.Buffer
	at := now()
	l := &lines{w: &out, now: func() time.Time { return at }, print: plainLine, blobs: map[string]*blob{}}
	for i, step := range []struct {
		after time.Duration
		bytes int64
	}{{0, 0}, {400 * time.Millisecond, 100_000}, {600 * time.Millisecond, 500_000}, {time.Second, 900_000}} {
		at = at.Add(step.after)
		l.step(&pausav1.ImageProgress{Digest: "sha256:0123456789abcdef", Bytes: step.bytes, Total: 1_000_000, Done: i > 4})
	}
	l.end(errors.New("cable pulled"))
	want := "0 of 1 blobs, 500kB of 1MB, 500kB/s; 0123456789ab 500kB\n" +
		"0 of 1 blobs, 900kB of 1MB, 400kB/s; 0123456789ab 900kB\n" +
		"0 of 1 blobs, 900kB of 1MB, 450kB/s; 0123456789ab 900kB\n"
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
}

func TestImagesChange(t *testing.T) {
	f := startFake(t)
	f.run(t, "images", "push", "x:1", "r/y:2").want(t, 0, "sha256:pushed-x:1-r/y:2\n", "")
	f.run(t, "images", "push").want(t, 2, "", "name one image")
	f.run(t, "images", "tag", "localhost/busybox:latest", "a:1", "b:1").want(t, 0, "docker.io/library/a:1\ndocker.io/library/b:1\n", "")
	f.run(t, "images", "tag", "nope", "a:1").want(t, 1, "", "image not found")
	f.run(t, "images", "tag", "nope").want(t, 2, "", "new name")
	f.run(t, "images", "export", "a", "b").want(t, 0, "oci of a b", "")
	dir := t.TempDir()
	file := filepath.Join(dir, "x.tar")
	f.run(t, "images", "save", "a", "-f", file, "--format", "docker").want(t, 0, "", "")
	if data, err := os.ReadFile(file); err != nil || string(data) != "docker of a" {
		t.Errorf("%s, %v", data, err)
	}
	f.run(t, "images", "export", "bad", "-f", filepath.Join(dir, "y.tar")).want(t, 1, "", "image not found")
	if list, err := os.ReadDir(dir); err != nil || len(list) != 1 {
		t.Errorf("left %v, %v", list, err)
	}
	f.run(t, "images", "export", "a", "--format", "zip").want(t, 2, "", "there are oci and docker")
	f.run(t, "images", "mount", "a").want(t, 0, "/run/x\n", "")
	f.run(t, "images", "unmount", "a").want(t, 0, "", "")
}

func TestImagesReports(t *testing.T) {
	f := startFake(t)
	f.run(t, "images", "inspect", "a").want(t, 0, `"id": "a"`, "")
	f.run(t, "images", "inspect", "a", "-o", "yaml").want(t, 0, "id: a", "")
	f.run(t, "images", "explain", "a").want(t, 0, "2 *   http://own/v2      none         200 OK, sha256:d", "")
	f.run(t, "images", "explain", "a", "-o", "json").want(t, 0, `"used": true`, "")
	f.run(t, "images", "prune").want(t, 0, "sha256:1 a:1 b:1\n", "1.5kB of blobs removed")
	f.run(t, "images", "prune", "--all", "--dry-run").want(t, 1, "", "image is in use")
	f.run(t, "images", "gc", "--dry-run").want(t, 0, "\n4608 bytes, of which 512 are orphans\n", "")
	f.run(t, "images", "gc", "--dry-run", "--orphans").want(t, 0, "stranger   unknown   512     <orphan>\n", "")
	f.run(t, "images", "gc").want(t, 0, "\n4096 bytes, of which 0 are orphans\n", "")
}
