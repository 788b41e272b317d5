package reconcile

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/pausa-run/pausa/internal/atomicfile"
	"github.com/pausa-run/pausa/pod/manifest"
)

// store is the declared objects: one file each, which is the truth, and all of
// them in memory. What is in memory is never changed: writers put a new copy.
type store struct {
	dir string // STATE/objects
	log *slog.Logger

	writing sync.Mutex // held by the one who changes files, and then what follows
	version uint64     // highest resourceVersion given out

	mu      sync.RWMutex // guards what follows; never held while the disk is waited for
	objects map[place]map[manifest.Ref]manifest.Object
	claims  map[claimedPort]refSet // objects that may want a port of the host
	changed chan struct{}          // closed and replaced at each change
}

// place is where a kind of objects is kept; of those of the whole host the
// namespace is "".
type place struct{ kind, namespace string }

func placeOf(ref manifest.Ref) place { return place{ref.Kind, ref.Namespace} }

// openStore reads STATE/objects. Files that cannot be understood are moved to STATE/objects/bad.
func openStore(stateDir string, log *slog.Logger) (*store, error) {
	s := &store{dir: filepath.Join(stateDir, "objects"), log: log, objects: map[place]map[manifest.Ref]manifest.Object{}, claims: map[claimedPort]refSet{}, changed: make(chan struct{})}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, fmt.Errorf("open object store: %w", err)
	}
	for _, kind := range manifest.Kinds() {
		err := filepath.WalkDir(filepath.Join(s.dir, kind), func(path string, d fs.DirEntry, err error) error {
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return nil
			case err != nil:
				return err
			case d.IsDir():
				return nil
			case atomicfile.IsTemp(d.Name()):
				return os.Remove(path)
			}
			if err := s.load(path); err != nil {
				s.setAside(path, err)
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("open object store: %w", err)
		}
		s.removeEmpty(kind)
	}
	return s, nil
}

// removeEmpty takes the folders of a kind away that a killed daemon made for
// objects that it did not come to write.
func (s *store) removeEmpty(kind string) {
	folders, _ := filepath.Glob(filepath.Join(s.dir, kind, "*"))
	for _, f := range append(folders, filepath.Join(s.dir, kind)) {
		_ = syscall.Rmdir(f) // it fails where something is
	}
}

func (s *store) load(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	o, err := manifest.Load(data)
	if err != nil {
		return err
	}
	if want := s.path(o.Ref()); want != path {
		return fmt.Errorf("holds %s, which belongs in %s", o.Ref(), want)
	}
	if o.Meta().UID == "" {
		return errors.New("object has no uid")
	}
	manifest.Default(o)
	o.Source = manifest.Source{File: path}
	if err := manifest.Validate(o); err != nil {
		return err
	}
	s.keep(o)
	if v, err := strconv.ParseUint(o.Meta().ResourceVersion, 10, 64); err == nil {
		s.version = max(s.version, v)
	}
	return nil
}

// setAside keeps a bad file for people and out of the way, or, on a full disk, where it is.
func (s *store) setAside(path string, cause error) {
	dir := filepath.Join(s.dir, "bad")
	base := strings.ReplaceAll(strings.TrimPrefix(path, s.dir+string(filepath.Separator)), string(filepath.Separator), "_")
	to := filepath.Join(dir, base)
	for i := 1; ; i++ {
		if _, err := os.Lstat(to); err != nil {
			break
		}
		to = filepath.Join(dir, base+"."+strconv.Itoa(i))
	}
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.Rename(path, to)); err != nil {
		cause, to = errors.Join(cause, err), path
	}
	s.log.Error("a stored object cannot be read and is set aside; apply it anew", "file", path, "now", to, "error", cause)
}

// path of an object's file. Names are DNS names, so they have no separators.
func (s *store) path(ref manifest.Ref) string {
	return filepath.Join(s.dir, ref.Kind, ref.Namespace, ref.Name+".json")
}

func (s *store) get(ref manifest.Ref) (manifest.Object, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	o, ok := s.objects[placeOf(ref)][ref]
	return o, ok
}

// keep has an object in memory.
func (s *store) keep(o manifest.Object) {
	ref := o.Ref()
	s.drop(ref)
	at := placeOf(ref)
	if s.objects[at] == nil {
		s.objects[at] = map[manifest.Ref]manifest.Object{}
	}
	s.objects[at][ref] = o
	for _, port := range claimedPorts(o) {
		if s.claims[port] == nil {
			s.claims[port] = refSet{}
		}
		s.claims[port][ref] = struct{}{}
	}
}

// drop is the reverse of keep.
func (s *store) drop(ref manifest.Ref) {
	at := placeOf(ref)
	o, ok := s.objects[at][ref]
	if !ok {
		return
	}
	if delete(s.objects[at], ref); len(s.objects[at]) == 0 {
		delete(s.objects, at)
	}
	for _, port := range claimedPorts(o) {
		if delete(s.claims[port], ref); len(s.claims[port]) == 0 {
			delete(s.claims, port)
		}
	}
}

// claiming are the objects that may want a port of the host.
func (s *store) claiming(port claimedPort) []manifest.Object {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []manifest.Object
	for ref := range s.claims[port] {
		out = append(out, s.objects[placeOf(ref)][ref])
	}
	manifest.Sort(out)
	return out
}

// list returns the objects of a kind ("": all) in a namespace ("": all), sorted.
func (s *store) list(kind, namespace string) []manifest.Object {
	out := s.unsorted(kind, namespace)
	manifest.Sort(out)
	return out
}

// named is list, or less of it if there is a name: then that object, if it is one place to look at.
func (s *store) named(kind, namespace, name string) []manifest.Object {
	if name == "" || kind == "" || (namespace == "" && manifest.Namespaced(kind)) {
		return s.list(kind, namespace)
	}
	if o, ok := s.get(manifest.Ref{Kind: kind, Namespace: namespace, Name: name}); ok {
		return []manifest.Object{o}
	}
	return nil
}

// unsorted is list in no order.
func (s *store) unsorted(kind, namespace string) []manifest.Object {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if kind != "" && namespace != "" {
		return slices.Collect(maps.Values(s.objects[place{kind, namespace}]))
	}
	var out []manifest.Object
	for at, objects := range s.objects {
		if (kind == "" || at.kind == kind) && (namespace == "" || at.namespace == namespace) {
			out = slices.AppendSeq(out, maps.Values(objects))
		}
	}
	return out
}

// put stores objects, which the store owns from now on, and gives them their
// resourceVersions. It returns how many were stored, the first ones; these survive
// a power cut. Readers do not wait for the disk.
func (s *store) put(list ...manifest.Object) (int, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	return s.write(list)
}

// write is put; s.writing is held.
func (s *store) write(list []manifest.Object) (int, error) {
	files := make([]atomicfile.File, 0, len(list))
	for i, o := range list {
		o.Meta().ResourceVersion = strconv.FormatUint(s.version+1+uint64(i), 10)
		data, err := json.Marshal(o)
		if err != nil {
			return 0, fmt.Errorf("store %s: %w", o.Ref(), err)
		}
		path := s.path(o.Ref())
		if err := s.makeDir(filepath.Dir(path)); err != nil {
			return 0, fmt.Errorf("store %s: %w", o.Ref(), err)
		}
		files = append(files, atomicfile.File{Path: path, Data: append(data, '\n'), Mode: 0o600})
	}
	done, err := atomicfile.WriteAllSync(files)
	if err != nil {
		err = fmt.Errorf("store declared objects: %w", err)
	}
	s.version += uint64(len(list)) // also the numbers of those that failed
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range list[:done] {
		s.keep(o)
	}
	s.tell()
	return done, err
}

// update changes a copy of the stored object and stores it, unless change says
// no. Nothing happens if the object is gone or has another uid by now.
func (s *store) update(o manifest.Object, change func(manifest.Object) bool) error {
	return s.change(o, change, func(c manifest.Object) error {
		_, err := s.write([]manifest.Object{c})
		return err
	})
}

// updateAnyway is update, but on a full disk the change is in memory alone: it
// is forgotten if the daemon ends before the object does. That is for the
// deletions that give room back.
func (s *store) updateAnyway(o manifest.Object, change func(manifest.Object) bool) error {
	return s.change(o, change, func(c manifest.Object) error {
		_, err := s.write([]manifest.Object{c})
		if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
			return err
		}
		s.log.Warn("there is no room to store a change; it is only remembered", "object", c.Ref().String(), "error", err)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.keep(c)
		s.tell()
		return nil
	})
}

func (s *store) change(o manifest.Object, change func(manifest.Object) bool, store func(manifest.Object) error) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	cur, ok := s.get(o.Ref())
	if !ok || cur.Meta().UID != o.Meta().UID {
		return nil
	}
	c := cur.DeepCopy()
	if !change(c) {
		return nil
	}
	return store(c)
}

// makeDir is MkdirAll below the store that survives a power cut.
func (s *store) makeDir(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if parent := filepath.Dir(dir); dir != s.dir {
		if err := s.makeDir(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return atomicfile.SyncDir(filepath.Dir(dir))
}

// remove forgets an object, if it is still that one, and folders that are empty then.
func (s *store) remove(o manifest.Object) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	ref := o.Ref()
	if cur, ok := s.get(ref); !ok || cur.Meta().UID != o.Meta().UID {
		return nil
	}
	path := s.path(ref)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", ref, err)
	}
	if err := atomicfile.SyncDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("remove %s: %w", ref, err)
	}
	for dir := filepath.Dir(path); dir != s.dir && os.Remove(dir) == nil; {
		dir = filepath.Dir(dir)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(ref)
	s.tell()
	return nil
}

// tell wakes those who wait for a change; s.mu is held.
func (s *store) tell() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// next is closed at the next change.
func (s *store) next() <-chan struct{} {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.changed
}
