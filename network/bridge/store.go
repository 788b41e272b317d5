package bridge

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/internal/atomicfile"
	"github.com/pausa-run/pausa/internal/boot"
)

// store is what a network's plugin remembers, in DATADIR/NETWORK:
//
//	addresses/ADDR        symbolic link to the owner: made by one system call, whole or not at all
//	cursor/RANGE          symbolic link to the address given last: the search goes on there
//	cursor/released       addresses in the order of their release: the one released first is given first
//	cursor/order          held while an address is chosen or its release noted
//	ports/PROTO-PORT-ADDR symbolic link to OWNER/POD
//	attached/OWNER        a finished or half-made attachment
//	detached/OWNER        one whose link is being deleted; its addresses are free after that
//	boot                  the boot that all this belongs to
//	lock                  held while rules or ports change
//
// An owner is "ID:INTERFACE".
type store struct {
	dir string
}

// attachment is the record of one pod's interface.
type attachment struct {
	Version int            `json:"version"`
	Owner   string         `json:"owner"`
	Pod     string         `json:"pod"` // namespace/name, for people
	Veth    string         `json:"veth"`
	MAC     string         `json:"mac"`
	NetNS   string         `json:"netns,omitempty"` // path of the pod's network namespace
	Addrs   []netip.Addr   `json:"addrs"`
	Ranges  []netip.Prefix `json:"ranges"` // of each address
	Ports   []hostPort     `json:"ports,omitempty"`

	Bandwidth *Bandwidth `json:"bandwidth,omitempty"`
}

const attachmentVersion = 1

// openStore makes the folders. What another boot left is removed: no link of it exists any more.
func openStore(dataDir, network string) (*store, error) {
	s := &store{dir: filepath.Join(dataDir, network)}
	id, err := boot.ID()
	if err != nil {
		return nil, err
	}
	now := []byte(id + "\n")
	if was, err := os.ReadFile(s.path("boot")); err == nil && bytes.Equal(was, now) {
		return s, nil
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make store of network %s: %w", network, err)
	}
	unlock, err := s.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	return s, s.reset(now)
}

func (s *store) reset(now []byte) error {
	if was, err := os.ReadFile(s.path("boot")); err == nil && bytes.Equal(was, now) {
		return nil // another process was faster
	}
	for _, sub := range []string{"addresses", "cursor", "ports", "attached", "detached"} {
		if err := os.RemoveAll(s.path(sub)); err != nil {
			return fmt.Errorf("empty store %s: %w", s.dir, err)
		}
		if err := os.Mkdir(s.path(sub), 0o700); err != nil {
			return fmt.Errorf("make store %s: %w", s.dir, err)
		}
	}
	return atomicfile.Write(s.path("boot"), now, 0o600)
}

func (s *store) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

// lock keeps other goroutines and processes from changing rules, ports and
// records until unlock is called.
func (s *store) lock() (unlock func(), err error) { return s.lockFile("lock") }

func (s *store) lockFile(elem ...string) (unlock func(), err error) {
	fd, err := unix.Open(s.path(elem...), unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock of %s: %w", s.dir, err)
	}
	for {
		err = unix.Flock(fd, unix.LOCK_EX)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("lock %s: %w", s.dir, err)
	}
	return func() { _ = unix.Close(fd) }, nil
}

// names lists a folder, without temporary files.
func (s *store) names(sub string) (map[string]bool, error) {
	dir, err := os.Open(s.path(sub))
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	defer dir.Close()
	list, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", dir.Name(), err)
	}
	names := make(map[string]bool, len(list))
	for _, n := range list {
		if !strings.HasPrefix(n, ".") {
			names[n] = true
		}
	}
	return names, nil
}

func (s *store) save(a attachment) error {
	if err := atomicfile.WriteJSON(s.path("attached", a.Owner), a); err != nil {
		return fmt.Errorf("record attachment %s: %w", a.Owner, err)
	}
	return nil
}

// load reads the record of owner from "attached" or "detached"; fs.ErrNotExist if there is none.
func (s *store) load(sub, owner string) (attachment, error) {
	var a attachment
	if err := atomicfile.ReadJSON(s.path(sub, owner), &a); err != nil {
		return a, err
	}
	if a.Version != attachmentVersion || a.Owner != owner {
		return a, fmt.Errorf("record %s: version %d of %q is not understood", s.path(sub, owner), a.Version, a.Owner)
	}
	return a, nil
}

// attachments reads every record of "attached" or "detached". An unreadable one is reported in
// err and left out.
func (s *store) attachments(sub string) (all []attachment, err error) {
	names, err := s.names(sub)
	if err != nil {
		return nil, err
	}
	var errs []error
	for owner := range names {
		a, err := s.load(sub, owner)
		switch {
		case err == nil:
			all = append(all, a)
		case !errors.Is(err, fs.ErrNotExist):
			errs = append(errs, err)
		}
	}
	return all, errors.Join(errs...)
}

// owners names everybody who holds anything.
func (s *store) owners() (map[string]bool, error) {
	owners := map[string]bool{}
	for _, sub := range []string{"attached", "detached"} {
		names, err := s.names(sub)
		if err != nil {
			return nil, err
		}
		for n := range names {
			owners[n] = true
		}
	}
	for _, sub := range []string{"addresses", "ports"} {
		names, err := s.names(sub)
		if err != nil {
			return nil, err
		}
		for n := range names {
			if target, err := os.Readlink(s.path(sub, n)); err == nil {
				owner, _, _ := strings.Cut(target, "/")
				owners[owner] = true
			}
		}
	}
	return owners, nil
}

// sweepTemp deletes what writers of records left that were killed, but for the
// owners that are kept.
func (s *store) sweepTemp(keep func(owner string) bool) error {
	var errs []error
	for _, sub := range []string{"attached", "detached"} {
		list, err := os.ReadDir(s.path(sub))
		errs = append(errs, err)
		for _, e := range list {
			name, temp := strings.CutPrefix(e.Name(), ".tmp-") // as atomicfile names them
			i := strings.LastIndexByte(name, '-')
			if temp && i >= 0 && !keep(name[:i]) {
				errs = append(errs, removeFile(s.path(sub, e.Name())))
			}
		}
	}
	return errors.Join(errs...)
}

// detach moves the record away from the living ones. It is not an error if there is none.
func (s *store) detach(owner string) error {
	err := os.Rename(s.path("attached", owner), s.path("detached", owner))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("mark attachment %s as detached: %w", owner, err)
	}
	return nil
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// writeDetached records that owner's link is to be deleted, when there is no record of it.
func (s *store) writeDetached(a attachment) error {
	b, err := json.Marshal(a)
	if err != nil {
		return err
	}
	return atomicfile.Write(s.path("detached", a.Owner), b, 0o600)
}
