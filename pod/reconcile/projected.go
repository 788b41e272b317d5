package reconcile

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/pausa-run/pausa/pod/manifest"
)

// isProjected says whether a volume shows objects, which a container does not change.
func isProjected(vol *corev1.Volume) bool { return len(projections(vol).Sources) > 0 }

// isSecret says whether a volume may not touch a disk.
func isSecret(vol *corev1.Volume) bool {
	return slices.ContainsFunc(projections(vol).Sources, func(s corev1.VolumeProjection) bool { return s.Secret != nil })
}

// projections is a volume that shows objects as a projected one, which has
// everything that the others have.
func projections(vol *corev1.Volume) *corev1.ProjectedVolumeSource {
	one := func(s corev1.VolumeProjection, mode *int32, user *int64) *corev1.ProjectedVolumeSource {
		return &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{s}, DefaultMode: mode, DefaultUser: user}
	}
	switch {
	case vol.Projected != nil:
		return vol.Projected
	case vol.ConfigMap != nil:
		c := vol.ConfigMap
		return one(corev1.VolumeProjection{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: c.LocalObjectReference, Items: c.Items, Optional: c.Optional}}, c.DefaultMode, c.DefaultUser)
	case vol.Secret != nil:
		s := vol.Secret
		name := corev1.LocalObjectReference{Name: s.SecretName}
		return one(corev1.VolumeProjection{Secret: &corev1.SecretProjection{LocalObjectReference: name, Items: s.Items, Optional: s.Optional}}, s.DefaultMode, s.DefaultUser)
	case vol.DownwardAPI != nil:
		d := vol.DownwardAPI
		return one(corev1.VolumeProjection{DownwardAPI: &corev1.DownwardAPIProjection{Items: d.Items}}, d.DefaultMode, d.DefaultUser)
	}
	return &corev1.ProjectedVolumeSource{}
}

// files are what a volume shows now, and a version that changes with them.
func (v *volumes) files(p *corev1.Pod, vol *corev1.Volume, find lookup) (version string, files map[string]file, err error) {
	src := projections(vol)
	all := file{mode: fs.FileMode(*src.DefaultMode), user: src.DefaultUser}
	files = map[string]file{}
	for _, s := range src.Sources {
		var some map[string]file
		var shown string
		switch {
		case s.DownwardAPI != nil:
			shown, some, err = ownFacts(p, s.DownwardAPI.Items, all)
		case s.Secret != nil:
			shown, some, err = objectFiles(p, manifest.KindSecret, s.Secret.Name, s.Secret.Items, isTrue(s.Secret.Optional), all, find)
		default:
			shown, some, err = objectFiles(p, manifest.KindConfigMap, s.ConfigMap.Name, s.ConfigMap.Items, isTrue(s.ConfigMap.Optional), all, find)
		}
		if err != nil {
			return "", nil, err
		}
		version += shown + " "
		maps.Copy(files, some) // a later source wins
	}
	return version, files, nil
}

// objectFiles are the files of a ConfigMap or a Secret.
func objectFiles(p *corev1.Pod, kind, name string, items []corev1.KeyToPath, optional bool, all file, find lookup) (version string, files map[string]file, err error) {
	var data map[string][]byte
	o, ok := find(kind, p.Namespace, name)
	switch {
	case !ok && !optional:
		return "", nil, fmt.Errorf("%s %s/%s does not exist; apply it, or set optional: true", kind, p.Namespace, name)
	case ok:
		data, version = contentOf(o), o.Meta().ResourceVersion
	}
	files, err = selectFiles(data, items, all, optional)
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

// selectFiles are the items of data, or all of it; all has what an item does not say.
func selectFiles(data map[string][]byte, items []corev1.KeyToPath, all file, optional bool) (map[string]file, error) {
	files := map[string]file{}
	if len(items) == 0 {
		for key, content := range data {
			files[key] = file{content, all.mode, all.user}
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
		files[filepath.Clean(it.Path)] = all.with(content, it.Mode, it.User)
	}
	return files, nil
}

// ownFacts are files that tell a pod of itself.
func ownFacts(p *corev1.Pod, items []corev1.DownwardAPIVolumeFile, all file) (version string, files map[string]file, err error) {
	files = map[string]file{}
	for _, it := range items {
		var text string
		switch {
		case it.FieldRef == nil:
			text, err = resourceValue(p, nil, it.ResourceFieldRef)
		case it.FieldRef.FieldPath == "metadata.labels":
			text = lines(p.Labels)
		case it.FieldRef.FieldPath == "metadata.annotations":
			text = lines(p.Annotations)
		default:
			text, err = fieldValue(p, it.FieldRef.FieldPath, podFacts{})
		}
		if err != nil {
			return "", nil, err
		}
		files[filepath.Clean(it.Path)] = all.with([]byte(text), it.Mode, it.User)
	}
	return p.ResourceVersion, files, nil
}

// lines shows a map as Kubernetes does: sorted, with quoted values.
func lines(m map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+"="+strconv.Quote(m[k]))
	}
	return strings.Join(out, "\n")
}

// with is a file with what an item says of it.
func (f file) with(content []byte, mode *int32, user *int64) file {
	f.content = content
	if mode != nil {
		f.mode = fs.FileMode(*mode)
	}
	if user != nil {
		f.user = user
	}
	return f
}

// project writes a volume that shows objects if it does not show their present version.
func (v *volumes) project(p *corev1.Pod, vol *corev1.Volume, find lookup) error {
	version, files, err := v.files(p, vol, find)
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
	if isSecret(vol) && !onTmpfs(path) {
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
