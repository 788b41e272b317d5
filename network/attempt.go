package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/pausa-run/pausa/internal/atomicfile"
)

const attemptVersion = 1

// attempt is RunDir/attempts/ID.json: written before ADD, removed after DEL. It
// pins the network configuration, since DEL must be called with the one of ADD.
type attempt struct {
	Version int             `json:"version"`
	Boot    string          `json:"boot"`
	Created time.Time       `json:"created"`
	Pod     Pod             `json:"pod"`
	Network string          `json:"network"`
	Conf    json.RawMessage `json:"conf"`             // the whole list
	Result  *Result         `json:"result,omitempty"` // nil until ADD has succeeded
	// Problem says why DEL failed last: the attempt is a remainder that GC retries.
	Problem string `json:"problem,omitempty"`
}

func (m *Manager) attemptPath(id string) string { return m.path("attempts", id+".json") }

func (m *Manager) saveAttempt(a *attempt) error {
	if err := atomicfile.WriteJSON(m.attemptPath(a.Pod.ID), a); err != nil {
		return fmt.Errorf("record attempt of %s: %w", a.Pod.ID, err)
	}
	return nil
}

// loadAttempt reads an attempt; nil if there is none. One of another boot is
// there, but nothing of what it got: it has no Result.
func (m *Manager) loadAttempt(id string) (*attempt, error) {
	a := &attempt{}
	err := atomicfile.ReadJSON(m.attemptPath(id), a)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read attempt of %s: %w", id, err)
	}
	if a.Version != attemptVersion || a.Pod.ID != id {
		return nil, fmt.Errorf("read attempt of %s: version %d of %q is not understood", id, a.Version, a.Pod.ID)
	}
	if a.Boot != m.boot {
		a.Result = nil
	}
	return a, nil
}

func (m *Manager) forgetAttempt(id string) error {
	if err := os.Remove(m.attemptPath(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget attempt of %s: %w", id, err)
	}
	return nil
}

// attempts reads all attempts. An unreadable file is set aside as NAME.bad, told
// of in err and passed over: the others must not wait for it.
func (m *Manager) attempts() ([]*attempt, error) {
	entries, err := os.ReadDir(m.path("attempts"))
	if err != nil {
		return nil, fmt.Errorf("list attempts: %w", err)
	}
	var all []*attempt
	var errs []error
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || atomicfile.IsTemp(e.Name()) {
			continue
		}
		a, err := m.loadAttempt(id)
		if err != nil {
			path := m.attemptPath(id)
			errs = append(errs, fmt.Errorf("%w (set aside as %s.bad)", err, path), os.Rename(path, path+".bad"))
			continue
		}
		if a != nil {
			all = append(all, a)
		}
	}
	return all, errors.Join(errs...)
}
