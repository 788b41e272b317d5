package pod

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/pausa-run/pausa/internal/atomicfile"
	"github.com/pausa-run/pausa/runtime"
)

func TestRestartKeepsWhatRuns(t *testing.T) {
	w := newWorld(t)
	id := w.mustRun("web")
	c, ended := w.mustStart(id, "main"), w.mustStart(id, "ends")
	before, _ := w.m.Pod(id)
	w.m.Close()
	w.keeper.end(ended, runtime.Exit{Code: 5}) // while no daemon is there
	w.restart()
	after, err := w.m.Pod(id)
	if err != nil || !after.Ready || after.Pid != before.Pid || after.IPs[0] != before.IPs[0] {
		t.Fatalf("pod %+v, %v; want it as before: %+v", after, err, before)
	}
	if v, _ := w.m.Container(c); v.Status != runtime.Running || v.Pid == 0 {
		t.Errorf("container %+v; want running", v)
	}
	if v, _ := w.m.Container(ended); v.Status != runtime.Exited || v.Exit.Code != 5 {
		t.Errorf("container %+v; want exited with 5", v)
	}
	if again := w.mustRun("web"); again != id {
		t.Errorf("the same request made %s; want %s", again, id)
	}
	if err := w.m.Remove(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	w.checkEmpty()
}

// TestRestartUndoesTheHalfMade cuts Run off after each of its writes.
func TestRestartUndoesTheHalfMade(t *testing.T) {
	for name, edit := range map[string]func(*podRecord){
		"not made": func(r *podRecord) { r.Made = false },
		"removing": func(r *podRecord) { r.Removing = true },
		"old boot": func(r *podRecord) { r.BootID = "another" },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			id := w.mustRun("web")
			w.mustStart(id, "main")
			w.m.Close()
			file := filepath.Join(w.run, "pods", id, "pod.json")
			var rec podRecord
			if err := atomicfile.ReadJSON(file, &rec); err != nil {
				t.Fatal(err)
			}
			edit(&rec)
			if err := atomicfile.WriteJSON(file, rec); err != nil {
				t.Fatal(err)
			}
			w.restart()
			w.checkEmpty()
		})
	}
}

func TestRestartRemovesHalfMadeContainers(t *testing.T) {
	w := newWorld(t)
	id := w.mustRun("web")
	c := w.mustStart(id, "main")
	w.m.Close()
	file := filepath.Join(w.run, "pods", id, "containers", c+".json")
	var rec containerRecord
	if err := atomicfile.ReadJSON(file, &rec); err != nil {
		t.Fatal(err)
	}
	rec.Made = false
	if err := atomicfile.WriteJSON(file, rec); err != nil {
		t.Fatal(err)
	}
	w.restart()
	if n := len(w.m.Containers()) + len(w.keeper.ctrs) + len(w.images.mounts); n != 0 {
		t.Errorf("%d things of the half-made container are left", n)
	}
	if p, err := w.m.Pod(id); err != nil || !p.Ready {
		t.Errorf("pod %+v, %v; want it ready", p, err)
	}
}

// TestRestartWithBadRecords truncates and garbles records: the start goes on,
// what cannot be read is set aside and what it held is given back.
func TestRestartWithBadRecords(t *testing.T) {
	for name, garble := range map[string]func(t *testing.T, dir string){
		"empty":   func(t *testing.T, dir string) { write(t, filepath.Join(dir, "pod.json"), "") },
		"cut":     func(t *testing.T, dir string) { write(t, filepath.Join(dir, "pod.json"), `{"version":1,"id":"`) },
		"version": func(t *testing.T, dir string) { write(t, filepath.Join(dir, "pod.json"), `{"version":99}`) },
		"gone": func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "pod.json")); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			bad, good := w.mustRun("bad"), w.mustRun("good")
			w.mustStart(bad, "main")
			w.m.Close()
			garble(t, filepath.Join(w.run, "pods", bad))
			w.restart()
			if _, err := w.m.Pod(good); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(filepath.Join(w.run, "bad", bad)); err != nil {
				t.Errorf("the bad record is not set aside: %v", err)
			}
			if err := w.m.Remove(t.Context(), good); err != nil {
				t.Fatal(err)
			}
			w.checkEmpty()
		})
	}
	t.Run("container", func(t *testing.T) {
		w := newWorld(t)
		id := w.mustRun("web")
		c := w.mustStart(id, "main")
		w.m.Close()
		write(t, filepath.Join(w.run, "pods", id, "containers", c+".json"), "{")
		w.restart()
		if p, err := w.m.Pod(id); err != nil || !p.Ready {
			t.Errorf("pod %+v, %v; want it ready", p, err)
		}
		if n := len(w.keeper.ctrs) + len(w.images.mounts); n != 0 {
			t.Errorf("%d things of the container without a record are left", n)
		}
	})
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestKeeperDies(t *testing.T) {
	w := newWorld(t)
	id := w.mustRun("web")
	c, lost := w.mustStart(id, "main"), w.mustStart(id, "lost")
	events, cancel := w.m.Subscribe()
	defer cancel()
	release := w.keeper.block("Relaunch")
	w.keeper.die()
	for {
		if err := w.m.RuntimeStatus(t.Context()); err != nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if _, err := w.m.Run(t.Context(), podConfig("other")); !errors.Is(err, ErrUnavailable) {
		t.Errorf("error %v; want ErrUnavailable while there is no keeper", err)
	}
	w.keeper.end(lost, runtime.Exit{Code: 9})
	release()
	for {
		if e := <-events; e.Type == EventStopped && e.ContainerID == lost {
			break
		}
	}
	if v, _ := w.m.Container(lost); v.Exit == nil || v.Exit.Code != 9 {
		t.Errorf("container %+v; want the exit that the new keeper found", v)
	}
	if v, _ := w.m.Container(c); v.Status != runtime.Running {
		t.Errorf("container %+v; want running", v)
	}
	w.keeper.end(c, runtime.Exit{Code: 4})
	for {
		if e := <-events; e.Type == EventStopped && e.ContainerID == c {
			break
		}
	}
}

func TestPauseDies(t *testing.T) {
	w := newWorld(t)
	id := w.mustRun("web")
	events, cancel := w.m.Subscribe()
	defer cancel()
	w.keeper.mu.Lock()
	for _, ch := range w.keeper.exits {
		ch <- runtime.Exit{ID: id, Code: 137}
	}
	w.keeper.mu.Unlock()
	for {
		if e := <-events; e.Type == EventStopped && e.PodID == id {
			break
		}
	}
	if p, _ := w.m.Pod(id); p.Ready {
		t.Error("the pod is ready without its pause")
	}
}
