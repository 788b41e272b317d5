package pod

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"
)

// CDIDevices are the names of the CDI devices that are given, and those that
// annotations with the prefix cdi.k8s.io/ ask for, each once.
func CDIDevices(given []string, annotations map[string]string) ([]string, error) {
	_, asked, err := cdi.ParseAnnotations(annotations)
	if err != nil {
		return nil, fmt.Errorf("%w: CDI devices in annotations: %w", ErrInvalid, err)
	}
	slices.Sort(asked) // annotations have no order
	var out []string
	for _, name := range append(slices.Clone(given), asked...) {
		if _, _, _, err := parser.ParseQualifiedName(name); err != nil {
			return nil, fmt.Errorf("%w: CDI device %.300q: %w", ErrInvalid, name, err)
		}
		if !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out, nil
}

// injectCDI edits an OCI spec as the specs of the devices say. The folders are
// read each time: devices come and go.
func injectCDI(spec *specs.Spec, devices, dirs []string) error {
	if len(devices) == 0 {
		return nil
	}
	if len(dirs) == 0 {
		return fmt.Errorf("%w: CDI devices %s: there is no folder of CDI specs: set cdi.spec_dirs", ErrInvalid, strings.Join(devices, ", "))
	}
	cache, err := cdi.NewCache(cdi.WithSpecDirs(dirs...), cdi.WithAutoRefresh(false))
	if err != nil {
		return fmt.Errorf("read CDI specs in %s: %w", strings.Join(dirs, ", "), err)
	}
	missing, err := cache.InjectDevices(spec, devices...)
	if len(missing) > 0 {
		err = fmt.Errorf("%w: no spec in %s has the CDI device %s", ErrInvalid, strings.Join(dirs, ", "), strings.Join(missing, ", "))
		return errors.Join(err, specErrors(cache))
	}
	if err != nil {
		return fmt.Errorf("%w: CDI devices %s: %w", ErrInvalid, strings.Join(devices, ", "), err)
	}
	return nil
}

// specErrors are those of specs that cannot be read: the missing device may be in one.
func specErrors(cache *cdi.Cache) error {
	all := cache.GetErrors()
	var errs []error
	for _, path := range slices.Sorted(maps.Keys(all)) {
		errs = append(errs, fmt.Errorf("CDI spec %s: %w", path, errors.Join(all[path]...)))
	}
	return errors.Join(errs...)
}
