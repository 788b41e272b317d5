package pod

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pausa-run/pausa/images"
	"github.com/pausa-run/pausa/runtime"
)

// withVolume makes a container with the image mounted at /data.
func (w *world) withVolume(sub string) (id string, err error) {
	w.t.Helper()
	cfg := ContainerConfig{Name: "c", Image: "busybox", Mounts: []runtime.Mount{
		{Source: w.t.TempDir(), Destination: "/host"},
		{Image: "data", Source: sub, Destination: "/data"},
	}}
	if id, err = w.m.CreateContainer(w.t.Context(), w.mustRun("web"), cfg); err == nil {
		err = w.m.StartContainer(w.t.Context(), id)
	}
	return id, err
}

func TestImageVolume(t *testing.T) {
	w := newWorld(t)
	id, err := w.withVolume("")
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(w.images.root, id+".image0")
	w.keeper.mu.Lock()
	mounts := w.keeper.ctrs[id].spec.Spec.Mounts
	w.keeper.mu.Unlock()
	found := false
	for _, m := range mounts {
		if m.Destination == "/data" {
			found = m.Source == root && slices.Contains(m.Options, "ro")
		}
	}
	if !found {
		t.Errorf("%s is not mounted read-only: %+v", root, mounts)
	}
	w.restart()
	if got, _ := w.images.Mounted(); !slices.Contains(got, id+".image0") {
		t.Errorf("a restart of the daemon took the volume of a running container: %v", got)
	}
	if err := w.m.RemoveContainer(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if got, _ := w.images.Mounted(); len(got) != 0 {
		t.Errorf("left mounted: %v", got)
	}
}

func TestImageVolumeWithoutTheSubPath(t *testing.T) {
	w := newWorld(t)
	_, err := w.withVolume("no/such")
	if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), `image data has no path "no/such"`) {
		t.Error(err)
	}
}

// linked has a link in each image that leads outside.
type linked struct{ *fakeImages }

func (l linked) Mount(ctx context.Context, id, ref string, o images.MountOptions) (string, error) {
	dir, err := l.fakeImages.Mount(ctx, id, ref, o)
	return dir, errors.Join(err, os.Symlink("/etc", filepath.Join(dir, "out")))
}

func TestImageVolumeLinksStayInside(t *testing.T) {
	w := newWorld(t)
	w.m.opts.Images = linked{w.images}
	id, err := w.withVolume("out")
	if err != nil {
		t.Fatal(err)
	}
	w.keeper.mu.Lock()
	defer w.keeper.mu.Unlock()
	for _, m := range w.keeper.ctrs[id].spec.Spec.Mounts {
		if m.Destination == "/data" && m.Source != filepath.Join(w.images.root, id+".image0", "etc") {
			t.Errorf("mounted %s", m.Source)
		}
	}
}
