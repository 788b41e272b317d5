package cri

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/pausa-run/pausa/images"
)

// imageService is runtime.v1.ImageService.
type imageService struct {
	criv1.UnimplementedImageServiceServer
	images Images
	pull   PullFunc
}

// ListImages lists images, or the one that the filter names.
func (s *imageService) ListImages(ctx context.Context, r *criv1.ListImagesRequest) (*criv1.ListImagesResponse, error) {
	all, err := s.list(ctx, r.Filter)
	return &criv1.ListImagesResponse{Images: all}, err
}

// StreamImages is ListImages in parts.
func (s *imageService) StreamImages(r *criv1.StreamImagesRequest, out criv1.ImageService_StreamImagesServer) error {
	all, err := s.list(out.Context(), r.Filter)
	if err != nil {
		return err
	}
	return inParts(all, func(part []*criv1.Image) error { return out.Send(&criv1.StreamImagesResponse{Images: part}) })
}

func (s *imageService) list(ctx context.Context, f *criv1.ImageFilter) ([]*criv1.Image, error) {
	if f.GetImage().GetImage() != "" {
		img, err := s.images.Get(ctx, f.Image.Image)
		if errors.Is(err, images.ErrNotFound) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		return []*criv1.Image{criImage(&img)}, nil
	}
	all, err := s.images.List(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]*criv1.Image, 0, len(all))
	for i := range all {
		out = append(out, criImage(&all[i]))
	}
	return out, nil
}

func criImage(img *images.Image) *criv1.Image {
	out := &criv1.Image{
		Id: img.ID, RepoTags: img.RepoTags, RepoDigests: img.RepoDigests, Size: uint64(max(img.Size, 0)), Pinned: img.Pinned,
		Spec: &criv1.ImageSpec{Image: img.ID, Annotations: nil},
	}
	user, _, _ := strings.Cut(img.Config.Config.User, ":")
	if uid, err := strconv.ParseInt(user, 10, 64); err == nil {
		out.Uid = &criv1.Int64Value{Value: uid}
	} else if out.Username = user; user == "" {
		out.Uid = &criv1.Int64Value{Value: 0} // no user is root
	}
	return out
}

// ImageStatus tells of one image; one that is not here is no error, its image is missing.
func (s *imageService) ImageStatus(ctx context.Context, r *criv1.ImageStatusRequest) (*criv1.ImageStatusResponse, error) {
	if err := checkImage(r.Image); err != nil {
		return nil, err
	}
	img, err := s.images.Get(ctx, r.Image.Image)
	if errors.Is(err, images.ErrNotFound) {
		return &criv1.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	out := &criv1.ImageStatusResponse{Image: criImage(&img)}
	if r.Verbose {
		out.Info = info(struct {
			ImageSpec any       `json:"imageSpec"`
			CreatedAt time.Time `json:"createdAt"`
		}{img.Config, img.CreatedAt})
	}
	return out, nil
}

// PullImage brings an image here and returns its id.
func (s *imageService) PullImage(ctx context.Context, r *criv1.PullImageRequest) (*criv1.PullImageResponse, error) {
	if err := checkImage(r.Image); err != nil {
		return nil, err
	}
	auth, err := credentials(r.Auth)
	if err != nil {
		return nil, within("auth", err)
	}
	img, err := s.fetch(ctx, r.Image.Image, auth)
	if errors.Is(err, images.ErrUnverified) { // a kubelet knows it by the word at the beginning
		return nil, fmt.Errorf("%w: %w", crierrors.ErrSignatureValidationFailed, err)
	}
	if err != nil {
		return nil, fmt.Errorf("pull %s: %w", r.Image.Image, err)
	}
	return &criv1.PullImageResponse{ImageRef: img.ID}, nil
}

// fetch pulls an image; a daemon without registries has what was imported.
func (s *imageService) fetch(ctx context.Context, ref string, auth *Auth) (images.Image, error) {
	if s.pull != nil {
		return s.pull(ctx, ref, auth)
	}
	img, err := s.images.Get(ctx, ref)
	if errors.Is(err, images.ErrNotFound) {
		return img, fmt.Errorf("%w, and this daemon pulls from no registry: import it from an archive", err)
	}
	return img, err
}

// credentials reads them in each of the ways in which they come; nil when there are none.
func credentials(a *criv1.AuthConfig) (*Auth, error) {
	if a == nil {
		return nil, nil
	}
	for name, text := range map[string]string{
		"username": a.Username, "password": a.Password, "identity_token": a.IdentityToken, "registry_token": a.RegistryToken, "server_address": a.ServerAddress,
	} {
		// A line of a request cannot hold them, and they are never shown.
		if strings.ContainsAny(text, "\x00\r\n") {
			return nil, invalid(name, "contains a line break or a NUL byte")
		}
	}
	out := &Auth{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken, Server: a.ServerAddress}
	if a.Auth != "" && a.Username == "" {
		raw, err := base64.StdEncoding.DecodeString(a.Auth)
		user, password, ok := strings.Cut(strings.TrimRight(string(raw), "\x00"), ":")
		if err != nil || !ok {
			return nil, invalid("auth", "is not the base64 of user:password") // never shown
		}
		out.Username, out.Password = user, password
	}
	if *out == (Auth{Server: a.ServerAddress}) {
		return nil, nil
	}
	return out, nil
}

// RemoveImage removes an image with all its names; nothing to do is no error.
func (s *imageService) RemoveImage(ctx context.Context, r *criv1.RemoveImageRequest) (*criv1.RemoveImageResponse, error) {
	if err := checkImage(r.Image); err != nil {
		return nil, err
	}
	// By a name, the image goes as well as the name: a kubelet means the image.
	img, err := s.images.Get(ctx, r.Image.Image)
	if err == nil {
		err = s.images.Remove(ctx, img.ID)
	}
	if errors.Is(err, images.ErrNotFound) {
		err = nil
	}
	return &criv1.RemoveImageResponse{}, err
}

// ImageFsInfo tells what images take, and where.
func (s *imageService) ImageFsInfo(ctx context.Context, _ *criv1.ImageFsInfoRequest) (*criv1.ImageFsInfoResponse, error) {
	u, err := s.images.FSUsage(ctx)
	if err != nil {
		return nil, fmt.Errorf("read usage of images: %w", err)
	}
	fs := &criv1.FilesystemUsage{
		Timestamp: time.Now().UnixNano(), FsId: &criv1.FilesystemIdentifier{Mountpoint: u.Path}, UsedBytes: u64(u.Bytes), InodesUsed: u64(u.Inodes),
	}
	return &criv1.ImageFsInfoResponse{ImageFilesystems: []*criv1.FilesystemUsage{fs}, ContainerFilesystems: []*criv1.FilesystemUsage{fs}}, nil
}
