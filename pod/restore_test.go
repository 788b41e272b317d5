package pod

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/pausa-run/pausa/runtime/restore"
)

// checkpointed is a pod's checkpoint, and the configurations that it is of.
func (w *world) checkpointed() (dir string, pod Config, ctrs []ContainerConfig) {
	w.t.Helper()
	pod, dir = podConfig("web"), w.t.TempDir()
	p, err := w.m.Run(w.t.Context(), pod)
	if err != nil {
		w.t.Fatal(err)
	}
	ctrs = []ContainerConfig{{Name: "main", Image: "busybox", Command: []string{"sh"}, OwnPID: true}}
	id, err := w.m.CreateContainer(w.t.Context(), p, ctrs[0])
	if err == nil {
		err = w.m.StartContainer(w.t.Context(), id)
	}
	if err == nil {
		err = w.m.CheckpointPod(w.t.Context(), p, []string{id}, dir)
	}
	if err == nil {
		err = w.m.Remove(w.t.Context(), p)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return dir, pod, ctrs
}

// change edits a JSON file of a checkpoint.
func change[T any](t *testing.T, path string, edit func(*T)) {
	t.Helper()
	var content T
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, &content)
	}
	if err == nil {
		edit(&content)
		data, err = json.Marshal(content)
	}
	if err == nil {
		err = os.WriteFile(path, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Nothing is left of a pod whose checkpoint is refused, and the error says why.
func TestRestorePodRefusals(t *testing.T) {
	inMain := func(name string) func(dir string) string {
		return func(dir string) string { return filepath.Join(dir, containerFolder(0), name) }
	}
	config, spec := inMain(checkpointConfig), inMain(checkpointSpec)
	for name, c := range map[string]struct {
		word string
		edit func(t *testing.T, dir string, pod *Config, ctrs *[]ContainerConfig)
	}{
		"images that are none": {"inventory.img", nil},
		"another version": {"version 9", func(t *testing.T, dir string, _ *Config, _ *[]ContainerConfig) {
			change(t, filepath.Join(dir, podCheckpointFile), func(p *podCheckpoint) { p.Version = 9 })
		}},
		"another processor": {"processor", func(t *testing.T, dir string, _ *Config, _ *[]ContainerConfig) {
			change(t, filepath.Join(dir, podCheckpointFile), func(p *podCheckpoint) { p.Architecture = "vax" })
		}},
		"more containers": {"has 2 containers", func(t *testing.T, dir string, _ *Config, _ *[]ContainerConfig) {
			change(t, filepath.Join(dir, podCheckpointFile), func(p *podCheckpoint) { p.Containers = append(p.Containers, p.Containers...) })
		}},
		"another container": {"no container", func(_ *testing.T, _ string, _ *Config, ctrs *[]ContainerConfig) { (*ctrs)[0].Name = "other" }},
		"no containers":     {"the request 0", func(_ *testing.T, _ string, _ *Config, ctrs *[]ContainerConfig) { *ctrs = nil }},
		"another command":   {"another command", func(_ *testing.T, _ string, _ *Config, ctrs *[]ContainerConfig) { (*ctrs)[0].Command = []string{"ash"} }},
		"another folder":    {"working directory", func(_ *testing.T, _ string, _ *Config, ctrs *[]ContainerConfig) { (*ctrs)[0].WorkingDir = "/tmp" }},
		"another user":      {"another user", func(_ *testing.T, _ string, _ *Config, ctrs *[]ContainerConfig) { (*ctrs)[0].User = "web" }},
		"another env": {"environment", func(_ *testing.T, _ string, _ *Config, ctrs *[]ContainerConfig) {
			(*ctrs)[0].Env = []EnvVar{{"A", "b"}}
		}},
		"a terminal": {"environment", func(_ *testing.T, _ string, _ *Config, ctrs *[]ContainerConfig) {
			(*ctrs)[0].Terminal, (*ctrs)[0].Env = true, nil
		}},
		"the host's network": {"shares a namespace", func(_ *testing.T, _ string, pod *Config, _ *[]ContainerConfig) { pod.HostNetwork = true }},
		"another image": {"of the image", func(t *testing.T, dir string, _ *Config, _ *[]ContainerConfig) {
			change(t, config(dir), func(c *checkpointedConfig) { c.RootfsImageRef = "sha256:2" })
		}},
		"no process": {"no process", func(t *testing.T, dir string, _ *Config, _ *[]ContainerConfig) {
			change(t, spec(dir), func(s *specs.Spec) { s.Process = nil })
		}},
		"a large file": {"more than", func(t *testing.T, dir string, _ *Config, _ *[]ContainerConfig) {
			if err := os.Truncate(config(dir), maxContainerDump+1); err != nil {
				t.Fatal(err)
			}
		}},
		"a link to a file outside": {podCheckpointFile, func(t *testing.T, dir string, _ *Config, _ *[]ContainerConfig) {
			outside := filepath.Join(t.TempDir(), "pod.json")
			if err := errors.Join(os.Rename(filepath.Join(dir, podCheckpointFile), outside), os.Symlink(outside, filepath.Join(dir, podCheckpointFile))); err != nil {
				t.Fatal(err)
			}
		}},
		"a link to a folder outside": {"open checkpoint", func(t *testing.T, dir string, _ *Config, _ *[]ContainerConfig) {
			outside := filepath.Join(t.TempDir(), "c")
			if err := errors.Join(os.Rename(filepath.Join(dir, containerFolder(0)), outside), os.Symlink(outside, filepath.Join(dir, containerFolder(0)))); err != nil {
				t.Fatal(err)
			}
		}},
		"no changed files": {checkpointRootfs, func(t *testing.T, dir string, _ *Config, _ *[]ContainerConfig) {
			if err := os.Remove(inMain(checkpointRootfs)(dir)); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			dir, pod, ctrs := w.checkpointed()
			if c.edit != nil {
				c.edit(t, dir, &pod, &ctrs)
			}
			_, _, err := w.m.RestorePod(t.Context(), pod, ctrs, dir)
			if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.word) {
				t.Errorf("%v, want %q", err, c.word)
			}
			if name == "images that are none" && !errors.Is(err, restore.ErrRefused) {
				t.Errorf("%v is no refusal", err)
			}
			if pods, mounted := w.m.Pods(), w.images.mounts; len(pods) > 0 || len(mounted) > 0 {
				t.Errorf("left: pods %v, mounts %v", pods, mounted)
			}
		})
	}
}

// A restore joins no pod that is there, and leaves it alone.
func TestRestorePodOfATakenName(t *testing.T) {
	w := newWorld(t)
	dir, pod, ctrs := w.checkpointed()
	id, err := w.m.Run(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.m.RestorePod(t.Context(), pod, ctrs, dir); !errors.Is(err, ErrExists) {
		t.Errorf("%v", err)
	}
	if p, err := w.m.Pod(id); err != nil || !p.Ready {
		t.Errorf("the pod that was there: %v, %v", p.Ready, err)
	}
	for _, path := range []string{"", "/", "here", dir + "/..", filepath.Join(dir, "none")} {
		if _, _, err := w.m.RestorePod(t.Context(), pod, ctrs, path); !errors.Is(err, ErrInvalid) {
			t.Errorf("path %q: %v", path, err)
		}
	}
}
