package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pausa-run/pausa/cri/pausav1"
	"github.com/pausa-run/pausa/images"
	"github.com/pausa-run/pausa/pod"
)

// pausaService is pausa.v1.Pausa, the command line's own API.
type pausaService struct {
	pausav1.UnimplementedPausaServer
	o        Options
	stopping <-chan struct{}
}

// objects are the declared ones, or why there are none.
func (s *pausaService) objects() (Objects, error) {
	if s.o.Objects == nil {
		return nil, fmt.Errorf("declared objects: %w: the daemon runs without them", pod.ErrUnavailable)
	}
	return s.o.Objects, nil
}

// Info tells versions, folders and counts.
func (s *pausaService) Info(ctx context.Context, _ *pausav1.InfoRequest) (*pausav1.InfoResponse, error) {
	now := s.o.Pods.Snapshot()
	out := &pausav1.InfoResponse{
		Version: s.o.Version, DaemonPid: int32(os.Getpid()),
		Pods: int32(len(now.Pods)), Containers: int32(len(now.Containers)),
	}
	if s.o.Info == nil {
		return out, nil
	}
	own, err := s.o.Info(ctx)
	if err != nil {
		return nil, fmt.Errorf("tell of the daemon: %w", err)
	}
	out.StateDir, out.RunDir, out.Cgroup, out.Warnings = own.StateDir, own.RunDir, own.Cgroup, own.Warnings
	out.KeeperPid, out.KeeperVersion = int32(own.KeeperPid), own.KeeperVersion
	if !own.StartedAt.IsZero() {
		out.StartedAt = own.StartedAt.Format(time.RFC3339)
	}
	return out, nil
}

// Apply declares objects.
func (s *pausaService) Apply(ctx context.Context, r *pausav1.ApplyRequest) (*pausav1.ApplyResponse, error) {
	objects, err := s.objects()
	if err != nil {
		return nil, err
	}
	in := make([]Object, 0, len(r.Objects))
	for i, o := range r.Objects {
		if len(o.GetJson()) == 0 {
			return nil, invalid(fmt.Sprintf("objects[%d].json", i), "is empty")
		}
		in = append(in, Object{JSON: o.Json, Source: o.Source})
	}
	results, err := objects.Apply(ctx, in, r.DryRun)
	if err != nil {
		return nil, err
	}
	out := &pausav1.ApplyResponse{}
	for _, x := range results {
		out.Results = append(out.Results, &pausav1.ApplyResult{Kind: x.Kind, Namespace: x.Namespace, Name: x.Name, Outcome: x.Outcome, Error: x.Error})
	}
	return out, nil
}

// Get returns objects with their status.
func (s *pausaService) Get(ctx context.Context, r *pausav1.GetRequest) (*pausav1.GetResponse, error) {
	objects, err := s.objects()
	if err != nil {
		return nil, err
	}
	found, err := objects.Get(ctx, Selection{r.Kind, r.Namespace, r.Name, r.LabelSelector})
	return &pausav1.GetResponse{Objects: found}, err
}

// Delete marks objects for deletion.
func (s *pausaService) Delete(ctx context.Context, r *pausav1.DeleteRequest) (*pausav1.DeleteResponse, error) {
	objects, err := s.objects()
	if err != nil {
		return nil, err
	}
	if !r.All && r.Name == "" && r.LabelSelector == "" {
		return nil, invalid("name", "is empty: give a name, a label_selector or all")
	}
	o := DeleteOptions{All: r.All, Wait: r.Wait}
	if r.GraceSeconds != nil {
		grace, err := seconds("grace_seconds", *r.GraceSeconds)
		if err != nil {
			return nil, err
		}
		o.Grace = &grace
	}
	gone, err := objects.Delete(ctx, Selection{r.Kind, r.Namespace, r.Name, r.LabelSelector}, o)
	if err != nil {
		return nil, err
	}
	out := &pausav1.DeleteResponse{}
	for _, x := range gone {
		out.Deleted = append(out.Deleted, &pausav1.ObjectRef{Kind: x.Kind, Namespace: x.Namespace, Name: x.Name})
	}
	return out, nil
}

// ImportImage takes an archive in chunks.
func (s *pausaService) ImportImage(in pausav1.Pausa_ImportImageServer) error {
	first, err := in.Recv()
	if err != nil {
		return fmt.Errorf("receive archive: %w", err)
	}
	var archive io.Reader = &chunks{in: in, rest: first.Data}
	if first.File != nil {
		f, err := openLocal(first.File)
		if err != nil {
			return status.Errorf(codes.FailedPrecondition, "read the archive: %v", err)
		}
		defer func() { _ = f.Close() }() // only read
		archive = f
	}
	got, err := s.o.Images.Import(in.Context(), archive, images.ImportOptions{Name: first.Name})
	if err != nil {
		return fmt.Errorf("import image: %w", err)
	}
	out := &pausav1.ImportImageResponse{}
	for _, img := range got {
		out.Names = append(out.Names, img.RepoTags...)
		out.Ids = append(out.Ids, img.ID)
	}
	return in.SendAndClose(out)
}

// openLocal opens a file of the client's: the client may have other mounts.
func openLocal(l *pausav1.LocalFile) (*os.File, error) {
	f, err := os.Open(l.Path)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(int(f.Fd()), &st); err == nil && (st.Dev != l.Device || st.Ino != l.Inode || st.Mode&unix.S_IFMT != unix.S_IFREG) {
		err = fmt.Errorf("%s is not that file here", l.Path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// chunks reads the archive out of the requests.
type chunks struct {
	in   pausav1.Pausa_ImportImageServer
	rest []byte
}

func (c *chunks) Read(b []byte) (int, error) {
	for len(c.rest) == 0 {
		r, err := c.in.Recv()
		if errors.Is(err, io.EOF) {
			return 0, io.EOF
		}
		if err != nil {
			return 0, fmt.Errorf("receive archive: %s", status.Convert(err).Message())
		}
		c.rest = r.Data
	}
	n := copy(b, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}
