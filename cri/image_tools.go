package cri

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/pausa-run/pausa/cri/pausav1"
	"github.com/pausa-run/pausa/images"
	"github.com/pausa-run/pausa/pod"
)

// exportChunk is how much of an archive goes in one message.
const exportChunk = 512 << 10

// ImageTools is what the command line does with images; *images.Store has it.
type ImageTools interface {
	Pull(ctx context.Context, ref string, o images.PullOptions) (images.Image, error)
	Push(ctx context.Context, ref string, o images.PushOptions) (manifest string, err error)
	Tag(ctx context.Context, ref, name string) (images.Image, error)
	Export(ctx context.Context, w io.Writer, refs []string, format string) error
	Inspect(ctx context.Context, ref string) (images.Inspection, error)
	Explain(ctx context.Context, ref string, auth images.Auth) (images.Explanation, error)
	Prune(ctx context.Context, o images.PruneOptions) ([]images.Removed, error)
	Account(ctx context.Context) ([]images.Item, error)
	GarbageCollect(ctx context.Context) error
	View(ctx context.Context, ref string) (path string, err error)
	Unview(ctx context.Context, ref string) error
}

// tools are the image store's, or why there are none.
func (s *pausaService) tools() (ImageTools, error) {
	if s.o.ImageTools == nil {
		return nil, fmt.Errorf("images: %w: the daemon runs without registries", pod.ErrUnavailable)
	}
	return s.o.ImageTools, nil
}

// PullImage pulls an image and tells how far it is.
func (s *pausaService) PullImage(r *pausav1.PullImageRequest, out pausav1.Pausa_PullImageServer) error {
	tools, err := s.tools()
	if err != nil {
		return err
	}
	if r.Ref == "" {
		return invalid("ref", "is empty")
	}
	return progress(out, func(tell func(images.Progress)) (string, error) {
		img, err := tools.Pull(out.Context(), r.Ref, images.PullOptions{Auth: authOf(r.Credential), Platform: r.Platform, Progress: tell})
		return img.ID, err
	})
}

// PushImage sends an image to a registry and tells how far it is.
func (s *pausaService) PushImage(r *pausav1.PushImageRequest, out pausav1.Pausa_PushImageServer) error {
	tools, err := s.tools()
	if err != nil {
		return err
	}
	if r.Ref == "" {
		return invalid("ref", "is empty")
	}
	return progress(out, func(tell func(images.Progress)) (string, error) {
		return tools.Push(out.Context(), r.Ref, images.PushOptions{To: r.To, Auth: authOf(r.Credential), Progress: tell})
	})
}

func authOf(c *pausav1.RegistryCredential) images.Auth {
	return images.Auth{
		Username: c.GetUsername(), Password: c.GetPassword(), Auth: c.GetAuth(),
		IdentityToken: c.GetIdentityToken(), ServerAddress: c.GetServer(),
	}
}

// progress sends what work tells. A client that reads slowly misses steps: it
// must not slow the work down, which others may share.
func progress(out interface {
	Send(*pausav1.ImageProgress) error
}, work func(tell func(images.Progress)) (result string, err error),
) error {
	steps := make(chan *pausav1.ImageProgress, 1024)
	sent := make(chan error, 1)
	go func() {
		var err error
		for m := range steps {
			if err == nil {
				err = out.Send(m)
			}
		}
		sent <- err
	}()
	result, err := work(func(p images.Progress) {
		m := &pausav1.ImageProgress{Digest: p.Digest, Bytes: p.Bytes, Total: p.Total, Done: p.Done}
		select {
		case steps <- m:
		default:
		}
	})
	close(steps)
	if lost := <-sent; err == nil {
		err = lost
	}
	if err != nil {
		return err
	}
	return out.Send(&pausav1.ImageProgress{Result: result})
}

// TagImage gives an image one more name.
func (s *pausaService) TagImage(ctx context.Context, r *pausav1.TagImageRequest) (*pausav1.TagImageResponse, error) {
	tools, err := s.tools()
	if err != nil {
		return nil, err
	}
	full, err := images.Normalize(r.Name)
	if err != nil {
		return nil, err
	}
	if _, err := tools.Tag(ctx, r.Ref, full); err != nil {
		return nil, err
	}
	return &pausav1.TagImageResponse{Name: full}, nil
}

// UntagImage takes a name away, and the image with its last one.
func (s *pausaService) UntagImage(ctx context.Context, r *pausav1.ImageRequest) (*pausav1.UntagImageResponse, error) {
	if r.Ref == "" {
		return nil, invalid("ref", "is empty")
	}
	return &pausav1.UntagImageResponse{}, s.o.Images.Remove(ctx, r.Ref)
}

// ExportImage sends an archive in chunks.
func (s *pausaService) ExportImage(r *pausav1.ExportImageRequest, out pausav1.Pausa_ExportImageServer) error {
	tools, err := s.tools()
	if err != nil {
		return err
	}
	if len(r.Refs) == 0 {
		return invalid("refs", "is empty: name an image")
	}
	w := bufio.NewWriterSize(exportWriter{out}, exportChunk)
	if err := tools.Export(out.Context(), w, r.Refs, r.Format); err != nil {
		return err
	}
	return w.Flush()
}

type exportWriter struct {
	out pausav1.Pausa_ExportImageServer
}

func (w exportWriter) Write(b []byte) (int, error) {
	for rest := b; len(rest) > 0; {
		n := min(len(rest), exportChunk)
		if err := w.out.Send(&pausav1.ExportImageResponse{Data: rest[:n]}); err != nil {
			return len(b) - len(rest), err
		}
		rest = rest[n:]
	}
	return len(b), nil
}

// InspectImage tells all of one image.
func (s *pausaService) InspectImage(ctx context.Context, r *pausav1.ImageRequest) (*pausav1.ImageReport, error) {
	return report(s, func(t ImageTools) (images.Inspection, error) { return t.Inspect(ctx, r.Ref) })
}

// ExplainImage tells where an image would be pulled from.
func (s *pausaService) ExplainImage(ctx context.Context, r *pausav1.PullImageRequest) (*pausav1.ImageReport, error) {
	return report(s, func(t ImageTools) (images.Explanation, error) { return t.Explain(ctx, r.Ref, authOf(r.Credential)) })
}

// PruneImages removes images that nothing uses.
func (s *pausaService) PruneImages(ctx context.Context, r *pausav1.PruneImagesRequest) (*pausav1.ImageReport, error) {
	age, err := seconds("min_age_seconds", r.MinAgeSeconds)
	if err != nil {
		return nil, err
	}
	return report(s, func(t ImageTools) (Pruned, error) {
		gone, err := t.Prune(ctx, images.PruneOptions{All: r.All, DryRun: r.DryRun, MinAge: age})
		out := Pruned{Removed: append([]images.Removed{}, gone...)}
		if err != nil {
			out.Error = err.Error()
		}
		return out, nil
	})
}

// Pruned is what PruneImages answers: what went, and why the rest did not.
type Pruned struct {
	Removed []images.Removed `json:"removed"`
	Error   string           `json:"error,omitempty"`
}

// AccountImages names every byte of the images folder.
func (s *pausaService) AccountImages(ctx context.Context, r *pausav1.AccountImagesRequest) (*pausav1.ImageReport, error) {
	return report(s, func(t ImageTools) ([]images.Item, error) {
		if r.Collect {
			if err := t.GarbageCollect(ctx); err != nil {
				return nil, err
			}
		}
		return t.Account(ctx)
	})
}

// report answers with what ask gives, as JSON.
func report[T any](s *pausaService, ask func(ImageTools) (T, error)) (*pausav1.ImageReport, error) {
	tools, err := s.tools()
	if err != nil {
		return nil, err
	}
	v, err := ask(tools)
	if err != nil {
		return nil, err
	}
	data, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("write report: %w", err)
	}
	return &pausav1.ImageReport{Json: data}, nil
}

// MountImage mounts an image on the host, for people to look at.
func (s *pausaService) MountImage(ctx context.Context, r *pausav1.ImageRequest) (*pausav1.MountImageResponse, error) {
	tools, err := s.tools()
	if err != nil {
		return nil, err
	}
	path, err := tools.View(ctx, r.Ref)
	return &pausav1.MountImageResponse{Path: path}, err
}

// UnmountImage ends MountImage.
func (s *pausaService) UnmountImage(ctx context.Context, r *pausav1.ImageRequest) (*pausav1.UnmountImageResponse, error) {
	tools, err := s.tools()
	if err != nil {
		return nil, err
	}
	return &pausav1.UnmountImageResponse{}, tools.Unview(ctx, r.Ref)
}
