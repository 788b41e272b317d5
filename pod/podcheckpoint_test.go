package pod

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/pausa-run/pausa/runtime"
)

func TestCheckpointPod(t *testing.T) {
	w := newWorld(t)
	p := w.mustRun("web")
	one, two := w.mustStart(p, "one"), w.mustStart(p, "two")
	dir := t.TempDir()
	if err := w.m.CheckpointPod(t.Context(), p, []string{one, two[:12]}, dir); err != nil {
		t.Fatal(err)
	}
	var about podCheckpoint
	data, err := os.ReadFile(filepath.Join(dir, podCheckpointFile))
	if err == nil {
		err = json.Unmarshal(data, &about)
	}
	if err != nil || about.Version != podCheckpointVersion || about.Name != "web" || len(about.Containers) != 2 || about.Architecture == "" {
		t.Fatalf("%+v, %v", about, err)
	}
	for i, c := range about.Containers {
		if want := map[string]string{one: "one", two: "two"}[c.ID]; c.Name != want {
			t.Errorf("container %s is called %q, want %q", c.ID, c.Name, want)
		}
		folder := filepath.Join(dir, containerFolder(i))
		for name, want := range map[string]string{"checkpoint/core-1.img": "memory", checkpointRootfs: "diff of " + c.ID} {
			if got, err := os.ReadFile(filepath.Join(folder, name)); err != nil || string(got) != want {
				t.Errorf("%s of %s: %q, %v", name, c.Name, got, err)
			}
		}
		for _, name := range []string{checkpointConfig, checkpointSpec, checkpointStatus} {
			if st, err := os.Stat(filepath.Join(folder, name)); err != nil || st.Mode().Perm() != 0o600 {
				t.Errorf("%s of %s: %v, %v", name, c.Name, st, err)
			}
		}
	}
}

// Whatever fails, the folder is the caller's and empty.
func TestCheckpointPodFails(t *testing.T) {
	w := newWorld(t)
	p, other := w.mustRun("web"), w.mustRun("other")
	one, foreign := w.mustStart(p, "one"), w.mustStart(other, "foreign")
	created, err := w.m.CreateContainer(t.Context(), p, ContainerConfig{Name: "created", Image: "busybox"})
	if err != nil {
		t.Fatal(err)
	}
	dir, full, link := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "link")
	if err := errors.Join(os.WriteFile(filepath.Join(full, "mine"), nil, 0o600), os.Symlink(dir, link)); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		pod  string
		ids  []string
		dir  string
		want error
	}{
		"unknown pod":        {"nobody", []string{one}, dir, ErrNotFound},
		"unknown container":  {p, []string{"nobody"}, dir, ErrNotFound},
		"no containers":      {p, nil, dir, ErrInvalid},
		"another pod's":      {p, []string{one, foreign}, dir, ErrInvalid},
		"twice":              {p, []string{one, one[:12]}, dir, ErrInvalid},
		"not running":        {p, []string{one, created}, dir, ErrState},
		"a folder in use":    {p, []string{one}, full, ErrInvalid},
		"a link":             {p, []string{one}, link, ErrInvalid},
		"no folder":          {p, []string{one}, filepath.Join(dir, "none"), ErrInvalid},
		"the root":           {p, []string{one}, "/", ErrInvalid},
		"a relative folder":  {p, []string{one}, "here", ErrInvalid},
		"a folder with dots": {p, []string{one}, dir + "/../x", ErrInvalid},
	} {
		if err := w.m.CheckpointPod(t.Context(), c.pod, c.ids, c.dir); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	w.keeper.set("Checkpoint", runtime.ErrNoCRIU)
	if err := w.m.CheckpointPod(t.Context(), p, []string{one}, dir); !errors.Is(err, runtime.ErrNoCRIU) {
		t.Errorf("without CRIU: %v", err)
	}
	for folder, want := range map[string][]string{dir: nil, full: {"mine"}} {
		var names []string
		left, _ := os.ReadDir(folder)
		for _, e := range left {
			names = append(names, e.Name())
		}
		if !slices.Equal(names, want) {
			t.Errorf("%s holds %v, want %v", folder, names, want)
		}
	}
}
