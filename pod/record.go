package pod

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/pausa-run/pausa/images"
	"github.com/pausa-run/pausa/internal/atomicfile"
	"github.com/pausa-run/pausa/network"
	"github.com/pausa-run/pausa/runtime"
)

// recordVersion is written into every record; a record of another one is set aside.
const recordVersion = 1

// podRecord is RUN/pods/ID/pod.json. It is written before anything is taken.
type podRecord struct {
	Version   int            `json:"version"`
	BootID    string         `json:"bootID"`
	ID        string         `json:"id"`
	Config    Config         `json:"config"`
	CreatedAt time.Time      `json:"createdAt"`
	Runtime   string         `json:"runtime,omitempty"` // the handler that Config.Handler meant when the pod was made
	Made      bool           `json:"made,omitempty"`    // Run came to its end
	Cgroup    string         `json:"cgroup,omitempty"`  // parent of its containers' groups
	Net       network.Result `json:"net,omitzero"`
	StoppedAt time.Time      `json:"stoppedAt,omitzero"`
	Removing  bool           `json:"removing,omitempty"` // nothing but removal is left to do
	Problem   string         `json:"problem,omitempty"`
}

// containerRecord is RUN/pods/POD/containers/ID.json.
type containerRecord struct {
	Version    int             `json:"version"`
	ID         string          `json:"id"`
	PodID      string          `json:"podID"`
	Config     ContainerConfig `json:"config"`
	ImageID    string          `json:"imageID"`
	CreatedAt  time.Time       `json:"createdAt"`
	Made       bool            `json:"made,omitempty"` // CreateContainer came to its end
	StartedAt  time.Time       `json:"startedAt,omitzero"`
	Exit       *runtime.Exit   `json:"exit,omitempty"`
	LogPath    string          `json:"logPath,omitempty"`
	RestoreDir string          `json:"restoreDir,omitempty"` // checked images of its processes; "" once they run
	User       images.User     `json:"user"`
	StopSignal string          `json:"stopSignal"`
	CgroupPath string          `json:"cgroupPath"`
}

// status is worked out from facts: ended, else started, else created.
func (r *containerRecord) status() runtime.Status {
	switch {
	case r.Exit != nil:
		return runtime.Exited
	case !r.StartedAt.IsZero():
		return runtime.Running
	}
	return runtime.Created
}

func (m *Manager) podDir(id string) string { return filepath.Join(m.dir, id) }

func (m *Manager) containerFile(podID, id string) string {
	return filepath.Join(m.dir, podID, "containers", id+".json")
}

// savePod writes the record of p as it is now.
func (m *Manager) savePod(p *sandbox) error {
	m.mu.RLock()
	rec := p.rec
	m.mu.RUnlock()
	return atomicfile.WriteJSON(filepath.Join(m.podDir(rec.ID), "pod.json"), rec)
}

// saveContainer writes the record of c as it is now.
func (m *Manager) saveContainer(c *container) error {
	m.mu.RLock()
	rec := c.rec
	m.mu.RUnlock()
	return atomicfile.WriteJSON(m.containerFile(rec.PodID, rec.ID), rec)
}

// loadPod reads one pod's folder. A record that cannot be read is an error and
// the containers that can be read are returned all the same.
func loadPod(dir string) (rec podRecord, ctrs []containerRecord, err error) {
	if err := atomicfile.ReadJSON(filepath.Join(dir, "pod.json"), &rec); err != nil {
		return rec, nil, err
	}
	if rec.Version != recordVersion || rec.ID != filepath.Base(dir) {
		return rec, nil, fmt.Errorf("%s: record is of version %d and pod %q; want %d and its folder's name", dir, rec.Version, rec.ID, recordVersion)
	}
	files, err := filepath.Glob(filepath.Join(dir, "containers", "*.json"))
	var bad []error
	for _, f := range files {
		var c containerRecord
		err := atomicfile.ReadJSON(f, &c)
		if err == nil && (c.Version != recordVersion || c.ID+".json" != filepath.Base(f) || c.PodID != rec.ID) {
			err = fmt.Errorf("%s: record is of version %d, container %q, pod %q", f, c.Version, c.ID, c.PodID)
		}
		if err != nil {
			bad = append(bad, errors.Join(err, os.Rename(f, f+".bad")))
			continue
		}
		ctrs = append(ctrs, c)
	}
	return rec, ctrs, errors.Join(append(bad, err)...)
}

// ReadRecords lists the pods of a run directory from their files, for who has no
// Manager: whether a pod is ready it cannot tell. It changes nothing. The error names
// what could not be read.
func ReadRecords(runDir string) ([]Pod, error) {
	files, err := filepath.Glob(filepath.Join(runDir, "pods", "*", "pod.json"))
	errs := []error{err}
	var out []Pod
	for _, f := range files {
		var r podRecord
		if err := atomicfile.ReadJSON(f, &r); err != nil {
			errs = append(errs, err)
			continue
		}
		out = append(out, Pod{
			ID: r.ID, Config: r.Config, CreatedAt: r.CreatedAt, IPs: r.Net.IPs, NetNS: r.Net.NetNS, StoppedAt: r.StoppedAt, Problem: r.Problem,
		})
	}
	return out, errors.Join(errs...)
}

// Folder is where a pod's files are, below a run directory.
func Folder(runDir, id string) string { return filepath.Join(runDir, "pods", id) }
