package logs

import (
	"path/filepath"

	"github.com/fsnotify/fsnotify"
)

// watch wakes a follower at once. Where the host has no watches left it never does, and the follower's polling remains.
type watch struct{ w *fsnotify.Watcher }

func newWatch(path string) watch {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return watch{}
	}
	if w.Add(filepath.Dir(path)) != nil {
		_ = w.Close()
		return watch{}
	}
	return watch{w}
}

func (w watch) changed() <-chan fsnotify.Event {
	if w.w == nil {
		return nil
	}
	return w.w.Events
}

func (w watch) close() {
	if w.w != nil {
		_ = w.w.Close()
	}
}
