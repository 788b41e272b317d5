package reconcile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/pausa-run/pausa/pod/manifest"
)

// volumes makes and removes what pods mount: STATE/pods/UID/volumes/NAME, secrets
// in RUN/volumes/UID/NAME, subPaths pinned in STATE/pods/UID/subpaths.
type volumes struct {
	state, run string

	mu   sync.Mutex                      // guards seen
	seen map[types.UID]map[string]string // resourceVersion that each volume shows
}

// lookup finds an object by kind, namespace and name.
type lookup func(kind, namespace, name string) (manifest.Object, bool)

func newVolumes(stateDir, runDir string) *volumes {
	return &volumes{state: filepath.Join(stateDir, "pods"), run: filepath.Join(runDir, "volumes"), seen: map[types.UID]map[string]string{}}
}

// path is where a volume is on the host.
func (v *volumes) path(uid types.UID, vol *corev1.Volume) string {
	switch {
	case vol.HostPath != nil:
		return filepath.Clean(vol.HostPath.Path)
	case isSecret(vol):
		return filepath.Join(v.run, string(uid), vol.Name)
	}
	return filepath.Join(v.state, string(uid), "volumes", vol.Name)
}

// prepare makes all volumes of a pod; what is there already stays.
func (v *volumes) prepare(p *corev1.Pod, find lookup) error {
	for i := range p.Spec.Volumes {
		if err := v.make(p, &p.Spec.Volumes[i], find); err != nil {
			return fmt.Errorf("volume %s: %w", p.Spec.Volumes[i].Name, err)
		}
	}
	return nil
}

// refresh shows changed objects to a running pod.
func (v *volumes) refresh(p *corev1.Pod, find lookup) error {
	var errs []error
	for i := range p.Spec.Volumes {
		vol := &p.Spec.Volumes[i]
		if !isProjected(vol) {
			continue
		}
		if err := v.project(p, vol, find); err != nil {
			errs = append(errs, fmt.Errorf("volume %s: %w", vol.Name, err))
		}
	}
	return errors.Join(errs...)
}

func (v *volumes) make(p *corev1.Pod, vol *corev1.Volume, find lookup) error {
	path := v.path(p.UID, vol)
	switch {
	case vol.HostPath != nil:
		return makeHostPath(path, *vol.HostPath.Type)
	case vol.Image != nil:
		return nil // mounted with each container
	case vol.EmptyDir != nil:
		return makeEmptyDir(path, p, vol.EmptyDir)
	}
	return v.project(p, vol, find)
}

func fsGroup(p *corev1.Pod) *int64 {
	if p.Spec.SecurityContext == nil {
		return nil
	}
	return p.Spec.SecurityContext.FSGroup
}

// makeHostPath does what the type asks for: makes it, or checks it.
func makeHostPath(path string, t corev1.HostPathType) error {
	switch t {
	case corev1.HostPathUnset:
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return os.MkdirAll(path, 0o755) // as engines have always done for binds
		}
		return nil
	case corev1.HostPathDirectoryOrCreate:
		return os.MkdirAll(path, 0o755)
	case corev1.HostPathFileOrCreate:
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o644)
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
		t = corev1.HostPathFile
	}
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("hostPath of type %s: %w", t, err)
	}
	mode := info.Mode()
	ok := map[corev1.HostPathType]bool{
		corev1.HostPathDirectory: mode.IsDir(),
		corev1.HostPathFile:      mode.IsRegular(),
		corev1.HostPathSocket:    mode&fs.ModeSocket != 0,
		corev1.HostPathCharDev:   mode&fs.ModeCharDevice != 0,
		corev1.HostPathBlockDev:  mode&fs.ModeDevice != 0 && mode&fs.ModeCharDevice == 0,
	}
	if !ok[t] {
		return fmt.Errorf("hostPath %s is a %s, not of type %s", path, strings.TrimSpace(mode.String()), t)
	}
	return nil
}

// remove takes away all volumes of a pod; hostPaths stay. Nothing may use them any more.
func (v *volumes) remove(uid types.UID) error {
	if uid == "" || strings.ContainsAny(string(uid), "/") || uid == "." || uid == ".." {
		return fmt.Errorf("uid %q is not a file name", uid)
	}
	v.mu.Lock()
	delete(v.seen, uid)
	v.mu.Unlock()
	return errors.Join(removeTree(filepath.Join(v.state, string(uid))), removeTree(filepath.Join(v.run, string(uid))))
}

// sweep removes the volumes of every pod that is not known.
func (v *volumes) sweep(known map[types.UID]bool) error {
	var errs []error
	for _, dir := range []string{v.state, v.run} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		for _, d := range entries {
			if !known[types.UID(d.Name())] {
				errs = append(errs, v.remove(types.UID(d.Name())))
			}
		}
	}
	return errors.Join(errs...)
}
