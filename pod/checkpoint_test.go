package pod

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/pausa-run/pausa/runtime"
)

// readArchive is what an archive holds, by name.
func readArchive(t *testing.T, path string) map[string]string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if st, _ := f.Stat(); st.Mode().Perm() != 0o600 {
		t.Errorf("a container's memory is readable for others: %v", st.Mode())
	}
	out := map[string]string{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		data, _ := io.ReadAll(r)
		out[h.Name] = string(data)
	}
}

func TestCheckpoint(t *testing.T) {
	w := newWorld(t)
	id := w.mustStart(w.mustRun("web"), "main")
	location := filepath.Join(t.TempDir(), "c.tar")
	if err := os.WriteFile(location, []byte("an older one"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := w.m.Checkpoint(t.Context(), id[:12], location); err != nil {
		t.Fatal(err)
	}
	got := readArchive(t, location)
	if got["checkpoint/core-1.img"] != "memory" || got["rootfs-diff.tar"] != "diff of "+id {
		t.Errorf("archive %v", got)
	}
	var config checkpointedConfig
	var spec specs.Spec
	var status checkpointedStatus
	for name, to := range map[string]any{checkpointConfig: &config, checkpointSpec: &spec, checkpointStatus: &status} {
		if err := json.Unmarshal([]byte(got[name]), to); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if config.ID != id || config.Name != "main" || config.RootfsImage != "busybox" || config.RootfsImageRef != "sha256:1" || config.CheckpointedAt.IsZero() {
		t.Errorf("config %+v", config)
	}
	if spec.Process == nil || spec.Annotations["io.kubernetes.cri.container-name"] != "main" || spec.Annotations["io.kubernetes.cri.sandbox-name"] != "web" {
		t.Errorf("spec %+v", spec)
	}
	if status.StartedAt == 0 || status.Pid == 0 {
		t.Errorf("status %+v", status)
	}
	w.checkFolder(filepath.Dir(location), "c.tar")
}

// checkFolder fails the test if a folder holds anything else.
func (w *world) checkFolder(dir string, want ...string) {
	w.t.Helper()
	entries, _ := os.ReadDir(dir)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if strings.Join(names, " ") != strings.Join(want, " ") {
		w.t.Errorf("%s holds %v, want %v", dir, names, want)
	}
}

// A checkpoint that fails leaves nothing behind, and an older archive as it was.
func TestCheckpointFails(t *testing.T) {
	w := newWorld(t)
	id := w.mustStart(w.mustRun("web"), "main")
	dir := t.TempDir()
	location := filepath.Join(dir, "c.tar")
	if err := os.WriteFile(location, []byte("older"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.keeper.set("Checkpoint", runtime.ErrNoCRIU)
	if err := w.m.Checkpoint(t.Context(), id, location); !errors.Is(err, runtime.ErrNoCRIU) {
		t.Errorf("without CRIU: %v", err)
	}
	w.keeper.set("Checkpoint", nil)
	for _, bad := range []string{"c.tar", dir + "/../c.tar", "/", "", dir + "/none/c.tar", dir + "/a\x00b"} {
		if err := w.m.Checkpoint(t.Context(), id, bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("location %q: %v", bad, err)
		}
	}
	if err := w.m.Checkpoint(t.Context(), "nobody", location); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown container: %v", err)
	}
	pod := w.mustRun("terminal")
	created, err := w.m.CreateContainer(t.Context(), pod, ContainerConfig{Name: "c", Image: "busybox"})
	if err != nil {
		t.Fatal(err)
	}
	tty, err := w.m.CreateContainer(t.Context(), pod, ContainerConfig{Name: "t", Image: "busybox", Terminal: true})
	if err == nil {
		err = w.m.StartContainer(t.Context(), tty)
	}
	if err != nil {
		t.Fatal(err)
	}
	for id, word := range map[string]string{created: "only one that runs", tty: "terminal"} {
		if err := w.m.Checkpoint(t.Context(), id, location); !errors.Is(err, ErrState) || !strings.Contains(err.Error(), word) {
			t.Errorf("%v, want %q", err, word)
		}
	}
	w.checkFolder(dir, "c.tar")
	if old, _ := os.ReadFile(location); string(old) != "older" {
		t.Errorf("the older archive holds %q", old)
	}
}
