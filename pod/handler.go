package pod

import (
	"errors"
	"fmt"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/pausa-run/pausa/runtime"
)

// handler finds a runtime handler that can make containers now.
func (m *Manager) handler(name string) (runtime.Handler, error) {
	h, err := m.opts.Handlers.Find(name)
	switch {
	case errors.Is(err, runtime.ErrNotFound):
		return h, fmt.Errorf("%w: %w", ErrInvalid, err)
	case err != nil:
		return h, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return h, nil
}

// checkHandler refuses what a handler would ignore, as far as it tells.
func checkHandler(h runtime.Handler, spec *specs.Spec) error {
	for _, mt := range spec.Mounts {
		switch {
		case len(mt.UIDMappings)+len(mt.GIDMappings) > 0 && !h.Features.IDMap:
			return fmt.Errorf("%w: mount at %s: runtime handler %s does not tell that it can map ids", ErrInvalid, mt.Destination, h.Name)
		case slices.Contains(mt.Options, "rro") && !h.Features.RecursiveReadOnly:
			return fmt.Errorf("%w: mount at %s: runtime handler %s does not tell that it can make mounts recursively read-only", ErrInvalid, mt.Destination, h.Name)
		}
	}
	if spec.Linux.Seccomp != nil && h.Features.NoSeccomp {
		return fmt.Errorf("%w: runtime handler %s is built without seccomp: use the profile unconfined", ErrInvalid, h.Name)
	}
	return nil
}
