package pod

import (
	"encoding/json"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/pausa-run/pausa/runtime"
)

// FuzzImageConfig makes the request for a container of an image with any
// config: its working folder is clean and absolute, its environment has each
// name once, its user is in bounds, and its labels change nothing at all.
func FuzzImageConfig(f *testing.F) {
	for _, s := range []string{
		`{"User":"4294967296","WorkingDir":"/proc/self/fd/7","Cmd":["x"]}`, `{"User":"-1:0","WorkingDir":"../../..","Entrypoint":[""]}`,
		`{"Env":["A=1","A=2","=x","B",""],"StopSignal":"SIGRTMIN+99","Cmd":["x"]}`,
		`{"Cmd":["x"],"Labels":{"io.kubernetes.container.name":"host","run.oci.handler":"x","pausa.run/for":"y"},"Volumes":{"/../../etc":{}}}`,
	} {
		f.Add([]byte(s))
	}
	rootfs := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		var img ocispec.ImageConfig
		if json.Unmarshal(data, &img) != nil {
			return
		}
		spec := specFrom(rootfs, &img)
		plain := img
		plain.Labels, plain.Volumes, plain.ExposedPorts = nil, nil, nil
		if without := specFrom(rootfs, &plain); !reflect.DeepEqual(spec, without) {
			t.Errorf("labels, volumes or ports of the image change the container:\n%+v\n%+v", spec, without)
		}
		if spec == nil {
			return
		}
		if cwd := spec.Cwd; !filepath.IsAbs(cwd) || cwd != filepath.Clean(cwd) {
			t.Errorf("working folder %q", cwd)
		}
		if spec.UID > maxID || spec.GID > maxID || slices.Max(append(spec.AdditionalGIDs, 0)) > maxID {
			t.Errorf("user %d, groups %d %v", spec.UID, spec.GID, spec.AdditionalGIDs)
		}
		names := map[string]bool{}
		for _, e := range spec.Env {
			name, _, ok := strings.Cut(e, "=")
			if !ok || name == "" || names[name] {
				t.Errorf("environment %q", spec.Env)
			}
			names[name] = true
		}
		if s := parseSignal(stopSignal("", img.StopSignal)); s < 1 || s > 64 {
			t.Errorf("stop signal %d of %q", s, img.StopSignal)
		}
	})
}

// specFrom is what of a container comes from its image; nil when that is refused.
func specFrom(rootfs string, img *ocispec.ImageConfig) *runtime.ContainerConfig {
	cfg, podCfg := &ContainerConfig{Image: "x"}, &Config{Hostname: "h"}
	args, err := commandLine(cfg, img)
	if err != nil {
		return nil
	}
	u, err := resolveUser(rootfs, cfg, img.User)
	if err != nil {
		return nil
	}
	return &runtime.ContainerConfig{
		Args: args, Env: environment(cfg, podCfg, img), Cwd: workingDir(cfg, img), UID: u.UID, GID: u.GID, AdditionalGIDs: u.AdditionalGIDs,
	}
}
