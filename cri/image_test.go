package cri

import (
	"context"
	"fmt"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pausa-run/pausa/images"
)

func withUser(u string) ocispec.Image {
	return ocispec.Image{Config: ocispec.ImageConfig{User: u}}
}

func TestImages(t *testing.T) {
	d := newDaemon(t)
	ctx := t.Context()
	d.images.all = []images.Image{
		{ID: "sha256:a", RepoTags: []string{"x:1", "x:2"}, RepoDigests: []string{"x@sha256:m"}, Size: 5, Config: withUser("1002:5")},
		{ID: "sha256:b", RepoTags: []string{"y:1"}, Size: 6, Pinned: true, Config: withUser("www-data")},
	}
	all, err := d.img.ListImages(ctx, &criv1.ListImagesRequest{})
	if err != nil || len(all.Images) != 2 || all.Images[0].Uid.Value != 1002 || all.Images[1].Username != "www-data" || all.Images[1].Uid != nil || !all.Images[1].Pinned || all.Images[0].Size != 5 {
		t.Errorf("list: %v %v", all, err)
	}
	one, err := d.img.ListImages(ctx, &criv1.ListImagesRequest{Filter: &criv1.ImageFilter{Image: &criv1.ImageSpec{Image: "y:1"}}})
	if err != nil || len(one.Images) != 1 || one.Images[0].Id != "sha256:b" {
		t.Errorf("filter: %v %v", one, err)
	}
	none, err := d.img.ListImages(ctx, &criv1.ListImagesRequest{Filter: &criv1.ImageFilter{Image: &criv1.ImageSpec{Image: "z"}}})
	if err != nil || len(none.Images) != 0 {
		t.Errorf("filter of nothing: %v %v", none, err)
	}
	stream, err := d.img.StreamImages(ctx, &criv1.StreamImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := stream.Recv(); err != nil || len(r.Images) != 2 {
		t.Errorf("stream: %v %v", r, err)
	}
	st, err := d.img.ImageStatus(ctx, &criv1.ImageStatusRequest{Image: &criv1.ImageSpec{Image: "x:1"}, Verbose: true})
	if err != nil || st.Image.Id != "sha256:a" || st.Info["info"] == "" {
		t.Errorf("status: %v %v", st, err)
	}
	st, err = d.img.ImageStatus(ctx, &criv1.ImageStatusRequest{Image: &criv1.ImageSpec{Image: "z"}})
	if err != nil || st.Image != nil {
		t.Errorf("status of nothing: %v %v", st, err)
	}
	for range 2 { // by one of its names the whole image goes, and once more is no error
		if _, err := d.img.RemoveImage(ctx, &criv1.RemoveImageRequest{Image: &criv1.ImageSpec{Image: "x:1"}}); err != nil {
			t.Error(err)
		}
	}
	if len(d.images.all) != 1 {
		t.Errorf("left: %v", d.images.all)
	}
	fs, err := d.img.ImageFsInfo(ctx, &criv1.ImageFsInfoRequest{})
	if err != nil || fs.ImageFilesystems[0].FsId.Mountpoint != "/" || fs.ImageFilesystems[0].UsedBytes.Value != 10 || fs.ImageFilesystems[0].Timestamp == 0 {
		t.Errorf("fs info: %v %v", fs, err)
	}
	_, err = d.img.ImageStatus(ctx, &criv1.ImageStatusRequest{})
	wantCode(t, err, codes.InvalidArgument, "image.image")
}

func TestPull(t *testing.T) {
	var asked *Auth
	d := newDaemon(t, func(o *Options) {
		o.Pull = func(_ context.Context, ref string, a *Auth) (images.Image, error) {
			asked = a
			return images.Image{ID: "sha256:" + ref}, nil
		}
	})
	r, err := d.img.PullImage(t.Context(), &criv1.PullImageRequest{Image: &criv1.ImageSpec{Image: "x:1"}, Auth: &criv1.AuthConfig{Auth: "bWU6YTpi", ServerAddress: "r"}})
	if err != nil || r.ImageRef != "sha256:x:1" || asked == nil || *asked != (Auth{Username: "me", Password: "a:b", Server: "r"}) {
		t.Errorf("pull: %v %v %+v", r, err, asked)
	}
	_, err = d.img.PullImage(t.Context(), &criv1.PullImageRequest{Image: &criv1.ImageSpec{Image: "x:1"}, Auth: &criv1.AuthConfig{Auth: "secret!"}})
	wantCode(t, err, codes.InvalidArgument, "auth.auth")
	if a, err := credentials(&criv1.AuthConfig{ServerAddress: "r"}); a != nil || err != nil {
		t.Errorf("an address alone is a credential: %v %v", a, err)
	}
}

// A kubelet shows the reason SignatureValidationFailed for an error of code
// Unknown whose text begins with that word.
func TestPullOfTheUnverified(t *testing.T) {
	d := newDaemon(t, func(o *Options) {
		o.Pull = func(context.Context, string, *Auth) (images.Image, error) {
			return images.Image{}, fmt.Errorf("pull image x: %w: not signed by us", images.ErrUnverified)
		}
	})
	_, err := d.img.PullImage(t.Context(), &criv1.PullImageRequest{Image: &criv1.ImageSpec{Image: "x:1"}})
	wantCode(t, err, codes.Unknown, "not signed by us")
	if text := status.Convert(err).Message(); !strings.HasPrefix(text, "SignatureValidationFailed: ") {
		t.Error(text)
	}
}

func TestPullWithoutRegistries(t *testing.T) {
	d := newDaemon(t)
	d.images.all = []images.Image{{ID: "sha256:a", RepoTags: []string{"x:1"}}}
	r, err := d.img.PullImage(t.Context(), &criv1.PullImageRequest{Image: &criv1.ImageSpec{Image: "x:1"}})
	if err != nil || r.ImageRef != "sha256:a" {
		t.Errorf("one that is here: %v %v", r, err)
	}
	_, err = d.img.PullImage(t.Context(), &criv1.PullImageRequest{Image: &criv1.ImageSpec{Image: "z"}})
	wantCode(t, err, codes.NotFound, "import it")
}
