package reconcile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
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
	case vol.Secret != nil:
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

// refresh shows changed ConfigMaps and Secrets to a running pod.
func (v *volumes) refresh(p *corev1.Pod, find lookup) error {
	var errs []error
	for i := range p.Spec.Volumes {
		vol := &p.Spec.Volumes[i]
		if vol.ConfigMap == nil && vol.Secret == nil {
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
		return makeEmptyDir(path, vol.EmptyDir, fsGroup(p))
	}
	return v.project(p, vol, find)
}

func fsGroup(p *corev1.Pod) *int64 {
	if p.Spec.SecurityContext == nil {
		return nil
	}
	return p.Spec.SecurityContext.FSGroup
}

// makeEmptyDir makes the folder under another name and renames it, so that one
// that is there is complete and stays as the pod has left it.
func makeEmptyDir(path string, e *corev1.EmptyDirVolumeSource, group *int64) error {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = makeSharedDir(path, group)
	}
	if err != nil || e.Medium != corev1.StorageMediumMemory || isMount(path) {
		return err
	}
	options := "mode=0777"
	if group != nil {
		options = "mode=2777,gid=" + strconv.FormatInt(*group, 10)
	}
	if e.SizeLimit != nil && !e.SizeLimit.IsZero() {
		options += ",size=" + strconv.FormatInt(e.SizeLimit.Value(), 10)
	}
	if err := unix.Mount("tmpfs", path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	return nil
}

func makeSharedDir(path string, group *int64) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return err
	}
	mode := fs.FileMode(0o777)
	if group != nil {
		mode |= fs.ModeSetgid
	}
	if err := own(tmp, mode, group); err != nil {
		return err
	}
	return os.Rename(tmp, path)
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

// source is the object that a configMap or secret volume shows, and its files.
func source(p *corev1.Pod, vol *corev1.Volume, find lookup) (version string, files map[string]file, err error) {
	var data map[string][]byte
	var items []corev1.KeyToPath
	var mode int32
	var name string
	var optional bool
	kind := manifest.KindConfigMap
	if s := vol.Secret; s != nil {
		kind, name, items, mode, optional = manifest.KindSecret, s.SecretName, s.Items, *s.DefaultMode, s.Optional != nil && *s.Optional
	} else {
		c := vol.ConfigMap
		name, items, mode, optional = c.Name, c.Items, *c.DefaultMode, c.Optional != nil && *c.Optional
	}
	o, ok := find(kind, p.Namespace, name)
	switch {
	case !ok && !optional:
		return "", nil, fmt.Errorf("%s %s/%s does not exist; apply it, or set optional: true", kind, p.Namespace, name)
	case ok:
		data, version = contentOf(o), o.Meta().ResourceVersion
	}
	files, err = selectFiles(data, items, mode, optional)
	if err != nil {
		return "", nil, fmt.Errorf("%s %s/%s %w", kind, p.Namespace, name, err)
	}
	return version, files, nil
}

// contentOf is the data of a ConfigMap or a Secret.
func contentOf(o manifest.Object) map[string][]byte {
	out := map[string][]byte{}
	switch v := o.Value().(type) {
	case *corev1.Secret:
		return v.Data
	case *corev1.ConfigMap:
		for k, s := range v.Data {
			out[k] = []byte(s)
		}
		for k, b := range v.BinaryData {
			out[k] = b
		}
	}
	return out
}

func selectFiles(data map[string][]byte, items []corev1.KeyToPath, mode int32, optional bool) (map[string]file, error) {
	files := map[string]file{}
	if len(items) == 0 {
		for key, content := range data {
			files[key] = file{content, fs.FileMode(mode)}
		}
		return files, nil
	}
	for _, it := range items {
		content, ok := data[it.Key]
		if !ok && optional {
			continue
		}
		if !ok {
			return nil, fmt.Errorf("has no key %q", it.Key)
		}
		m := mode
		if it.Mode != nil {
			m = *it.Mode
		}
		files[filepath.Clean(it.Path)] = file{content, fs.FileMode(m)}
	}
	return files, nil
}

// project writes a configMap or secret volume if it does not show the object's present version.
func (v *volumes) project(p *corev1.Pod, vol *corev1.Volume, find lookup) error {
	version, files, err := source(p, vol, find)
	if err != nil {
		return err
	}
	path := v.path(p.UID, vol)
	v.mu.Lock()
	known, shown := v.seen[p.UID][vol.Name]
	v.mu.Unlock()
	if shown && known == version {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if vol.Secret != nil && !onTmpfs(path) {
		if err := unix.Mount("tmpfs", path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0755,size=4m"); err != nil {
			return fmt.Errorf("mount tmpfs: %w", err)
		}
	}
	if err := writeFiles(path, files, fsGroup(p)); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.seen[p.UID] == nil {
		v.seen[p.UID] = map[string]string{}
	}
	v.seen[p.UID][vol.Name] = version
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
