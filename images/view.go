package images

import (
	"context"
	"fmt"
	"strings"
)

// viewPrefix begins the ids of mounts that belong to no container. No
// container's id has a dot.
const viewPrefix = "view."

// View mounts an image read-only for people to look at and gives the path. A
// second View of the same image gives the same path. It is gone after a reboot.
func (s *Store) View(ctx context.Context, ref string) (string, error) {
	r, err := s.cache.Load().find(ref)
	if err != nil {
		return "", fmt.Errorf("mount image: %w", err)
	}
	return s.Mount(ctx, viewID(r.ID), r.ID, MountOptions{ReadOnly: true})
}

// Unview takes back what View mounted; it is no error when nothing is mounted.
func (s *Store) Unview(ctx context.Context, ref string) error {
	r, err := s.cache.Load().find(ref)
	if err != nil {
		return fmt.Errorf("unmount image: %w", err)
	}
	return s.Unmount(ctx, viewID(r.ID))
}

func viewID(image string) string { return viewPrefix + strings.TrimPrefix(image, namelessPrefix)[:16] }

// dropViews forgets the views of a host that was started again since.
func (s *Store) dropViews() {
	for id := range s.used {
		if !strings.HasPrefix(id, viewPrefix) || isMount(s.rootfs.of(id)) {
			continue
		}
		if err := s.unmount(id); err != nil {
			s.log.Warn("a mount of an image that is gone cannot be forgotten", "mount", id, "err", err)
		}
	}
}

// usage is how errors call what uses an image.
func usage(id string) string {
	if strings.HasPrefix(id, viewPrefix) {
		return "is mounted: end that with 'pausa images unmount'"
	}
	container, _, volume := strings.Cut(id, ".")
	if volume {
		return "is a volume of container " + container + ": remove that first"
	}
	return "is the root file system of container " + id + ": remove that first"
}
