//go:build cgo

package keeper

import (
	"errors"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// groupFileSize is more than any of the files that are read.
	groupFileSize = 8 << 10
	// keepGroups is for how long files that nobody has read stay open. A kubelet reads them every ten seconds.
	keepGroups = time.Minute
	// maxGroupFiles bounds those that are open: each takes 5 kB of the kernel, and every
	// fork of the keeper copies all of its descriptors.
	maxGroupFiles = 2048
)

// groupFiles reads files of cgroups. They stay open between readings: a node has
// hundreds of them to read every ten seconds, and opening one costs ten times as much
// as reading it.
type groupFiles struct {
	mu      sync.Mutex // guards what follows, and is held while files are read
	buf     [groupFileSize]byte
	folders map[string]*groupFolder
	open    int         // files of all folders
	sweeper *time.Timer // closes what is not read any more; nil while nothing is open
}

// groupFolder is one cgroup in one hierarchy.
type groupFolder struct {
	files map[string]int // descriptors by name; -1 for one that is not there
	used  time.Time
}

// groupReader reads until it is given back; what a read returned is good until the next one.
type groupReader struct{ *groupFiles }

// reader locks the files; unlock gives them free.
func (g *groupFiles) reader() groupReader {
	g.mu.Lock()
	return groupReader{g}
}

func (r groupReader) unlock() { r.mu.Unlock() }

// read gives the content of a file, until the next call; nothing when there is none.
func (r groupReader) read(folder, name string) []byte {
	if folder == "" {
		return nil
	}
	fd, kept := r.descriptor(folder, name)
	if fd < 0 {
		return nil
	}
	n, err := unix.Pread(fd, r.buf[:], 0)
	if !kept {
		_ = unix.Close(fd)
	} else if errors.Is(err, unix.ENODEV) { // the group has gone
		r.forget(folder)
	}
	if err != nil {
		return nil
	}
	return r.buf[:n]
}

// readOnce is read of a file that is not worth keeping open.
func (r groupReader) readOnce(folder, name string) []byte {
	if folder == "" {
		return nil
	}
	fd, err := unix.Open(folder+"/"+name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	n, err := unix.Read(fd, r.buf[:])
	if err != nil {
		return nil
	}
	return r.buf[:n]
}

// descriptor opens a file, or finds it open; -1 when there is none. One that is not kept is the caller's to close.
func (r groupReader) descriptor(folder, name string) (fd int, kept bool) {
	g := r.folders[folder]
	if g != nil {
		g.used = time.Now()
		if fd, ok := g.files[name]; ok {
			return fd, true
		}
	}
	fd, err := unix.Open(folder+"/"+name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil && !errors.Is(err, unix.ENOENT) || err != nil && g == nil {
		return -1, false // perhaps the group has gone, or is not there yet
	}
	if r.open >= maxGroupFiles && err == nil {
		return fd, false
	}
	if g == nil {
		g = &groupFolder{files: map[string]int{}, used: time.Now()}
		if r.folders == nil {
			r.folders = map[string]*groupFolder{}
		}
		r.folders[folder] = g
	}
	if err != nil {
		fd = -1
	} else {
		r.open++
	}
	g.files[name] = fd
	if r.sweeper == nil {
		r.sweeper = time.AfterFunc(keepGroups/2, func() { r.sweep(time.Now().Add(-keepGroups)) })
	}
	return fd, true
}

// forget closes what is open of some folders; the lock is held.
func (g *groupFiles) forget(folders ...string) {
	for _, folder := range folders {
		if f := g.folders[folder]; f != nil {
			delete(g.folders, folder)
			for _, fd := range f.files {
				if fd >= 0 {
					_ = unix.Close(fd)
					g.open--
				}
			}
		}
	}
}

// sweep closes what nobody has read since a time, and comes again while anything is open.
func (g *groupFiles) sweep(since time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for path, f := range g.folders {
		if f.used.Before(since) {
			g.forget(path)
		}
	}
	if len(g.folders) > 0 {
		g.sweeper.Reset(keepGroups / 2)
		return
	}
	g.sweeper = nil
}
