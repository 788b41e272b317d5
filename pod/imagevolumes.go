package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	securejoin "github.com/cyphar/filepath-securejoin"

	"github.com/pausa-run/pausa/images"
	"github.com/pausa-run/pausa/runtime"
)

// imageVolumes mounts the images among a container's mounts, read-only, and
// gives the mounts with the places where they are; c.op is held. Removing the
// container takes them back, also those of a call that failed.
func (m *Manager) imageVolumes(ctx context.Context, c *container, mounts []runtime.Mount) ([]runtime.Mount, error) {
	podCfg, n := &c.pod.rec.Config, 0
	for i, mt := range mounts {
		if mt.Image == "" {
			continue
		}
		opts := images.MountOptions{ReadOnly: true, UIDMaps: imageMaps(podCfg.UIDMaps), GIDMaps: imageMaps(podCfg.GIDMaps)}
		root, err := m.opts.Images.Mount(ctx, volumeID(c.rec.ID, n), mt.Image, opts)
		if err != nil {
			return nil, fmt.Errorf("mount image volume at %s: %w", mt.Destination, err)
		}
		n++
		source, err := securejoin.SecureJoin(root, mt.Source) // links in the image stay in it; nobody can change them
		if err == nil {
			_, err = os.Lstat(source)
		}
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("%w: image volume at %s: image %s has no path %q", ErrInvalid, mt.Destination, mt.Image, mt.Source)
		}
		if err != nil {
			return nil, fmt.Errorf("image volume at %s: %w", mt.Destination, err)
		}
		mounts[i].Source, mounts[i].Image, mounts[i].Readonly = source, "", true
	}
	return mounts, nil
}

// unmountVolumes takes back the images that imageVolumes mounted.
func (m *Manager) unmountVolumes(ctx context.Context, c *container) error {
	n := 0
	var errs []error
	for _, mt := range c.rec.Config.Mounts {
		if mt.Image != "" {
			errs = append(errs, m.opts.Images.Unmount(ctx, volumeID(c.rec.ID, n)))
			n++
		}
	}
	return errors.Join(errs...)
}

// volumeID is the id of a container's n-th image volume.
func volumeID(container string, n int) string { return container + ".image" + strconv.Itoa(n) }

// volumeOwner is the container that a mount with that id belongs to.
func volumeOwner(id string) string {
	owner, _, _ := strings.Cut(id, ".")
	return owner
}
