package restore

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fown"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fs"
	pipedata "github.com/checkpoint-restore/go-criu/v8/crit/images/pipe-data"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/pausa-run/pausa/runtime"
)

const (
	maxFD     = 1 << 20
	maxBuffer = 1 << 20 // bytes in a pipe
	// openable are the flags with which a file may be opened again: none of them makes or cuts it.
	openable = unix.O_ACCMODE | unix.O_APPEND | unix.O_NONBLOCK | unix.O_DSYNC | unix.O_DIRECT | 0x8000 | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_NOATIME | unix.O_SYNC | unix.O_PATH
)

// file is one open file, of any kind.
type file struct {
	*fdinfo.FileEntry
	stream string // which of the container's streams an external file is
}

// allFiles reads the files that the processes have open.
func (c *cleaner) allFiles() error {
	const name = "files.img"
	all, err := entries[fdinfo.FileEntry](c, name, magicFiles)
	if err != nil {
		return err
	}
	c.files = map[uint32]*file{}
	for _, e := range all {
		if e.GetId() == 0 || c.files[e.GetId()] != nil {
			return refuse(name, "the file %d is there twice, or has no number", e.GetId())
		}
		c.files[e.GetId()] = &file{FileEntry: e}
	}
	if err := c.streams(); err != nil {
		return err
	}
	for _, e := range all {
		if err := c.file(name, c.files[e.GetId()]); err != nil {
			return err
		}
	}
	if err := put(c, name, magicFiles, all...); err != nil {
		return err
	}
	for _, kind := range []struct {
		name  string
		magic uint32
	}{{"fifo-data.img", magicFIFOData}, {"pipes-data.img", magicPipeData}} {
		if err := c.buffers(kind.name, kind.magic); err != nil {
			return err
		}
	}
	return nil
}

// streams finds which external files stand for the container's streams: those that
// its first process has for them.
func (c *cleaner) streams() error {
	name := fmt.Sprintf("fdinfo-%d.img", c.tasks[0].ids.GetFilesId())
	fds, err := entries[fdinfo.FdinfoEntry](c, name, magicFDs)
	if err != nil {
		return err
	}
	c.left[name] = true // it is looked at again with its process
	taken := map[string]bool{}
	for fd, stream := range []string{"stdin", "stdout", "stderr"} {
		for _, e := range fds {
			f := c.files[e.GetId()]
			if int(e.GetFd()) != fd || f == nil || f.Fifo == nil {
				continue
			}
			if r := c.files[f.Fifo.GetRegfId()]; r != nil && r.Reg.GetExt() && r.stream == "" && !taken[stream] {
				r.stream, taken[stream] = stream, true
			}
		}
	}
	return nil
}

// file checks one open file.
func (c *cleaner) file(name string, f *file) error {
	parts := 0
	f.ProtoReflect().Range(func(protoreflect.FieldDescriptor, protoreflect.Value) bool { parts++; return true })
	if parts != 3 { // type, id, and what is of the type
		return refuse(name, "the file %d is of several kinds, or of none", f.GetId())
	}
	kind := f.GetType()
	switch {
	case kind == fdinfo.FdTypes_REG && f.Reg != nil:
		return c.regular(name, f)
	case kind == fdinfo.FdTypes_FIFO && f.Fifo != nil:
		if r := c.files[f.Fifo.GetRegfId()]; f.Fifo.GetId() != f.GetId() || r == nil || !r.Reg.GetExt() {
			return refuse(name, "the FIFO %d is none of the container's streams", f.GetId())
		}
		return nil
	case kind == fdinfo.FdTypes_PIPE && f.Pipe != nil:
		return plain(name, f, f.Pipe.GetId(), f.Pipe.GetFlags(), f.Pipe.GetFown())
	case kind == fdinfo.FdTypes_EVENTFD && f.Efd != nil:
		return plain(name, f, f.Efd.GetId(), f.Efd.GetFlags(), f.Efd.GetFown())
	case kind == fdinfo.FdTypes_SIGNALFD && f.Sgfd != nil:
		return plain(name, f, f.Sgfd.GetId(), f.Sgfd.GetFlags(), f.Sgfd.GetFown())
	case kind == fdinfo.FdTypes_TIMERFD && f.Tfd != nil:
		if clock := f.Tfd.GetClockid(); clock != unix.CLOCK_REALTIME && clock != unix.CLOCK_MONOTONIC && clock != unix.CLOCK_BOOTTIME {
			return refuse(name, "the timer %d has the clock %d", f.GetId(), clock)
		}
		return plain(name, f, f.Tfd.GetId(), f.Tfd.GetFlags(), f.Tfd.GetFown())
	case kind == fdinfo.FdTypes_EVENTPOLL && f.Epfd != nil:
		for _, t := range f.Epfd.GetTfd() {
			if t.GetTfd() >= maxFD {
				return refuse(name, "the poll %d waits for the descriptor %d", f.GetId(), t.GetTfd())
			}
		}
		return plain(name, f, f.Epfd.GetId(), f.Epfd.GetFlags(), f.Epfd.GetFown())
	}
	return refuse(name, "the file %d is of the kind %s, which is not restored: sockets, terminals, devices and what watches files would reach out of the container", f.GetId(), kind)
}

// plain checks what files without a name have in common.
func plain(name string, f *file, id, flags uint32, owner *fown.FownEntry) error {
	if id != f.GetId() || flags&^(openable|unix.O_CLOEXEC) != 0 {
		return refuse(name, "the file %d has the flags %#x", id, flags)
	}
	return unowned(name, f, owner)
}

// unowned refuses files that send signals.
func unowned(name string, f *file, owner *fown.FownEntry) error {
	if owner.GetPid() != 0 || owner.GetSignum() != 0 {
		return refuse(name, "the file %d sends signals to process %d", f.GetId(), owner.GetPid())
	}
	return nil
}

// regular checks a file that has a name.
func (c *cleaner) regular(name string, f *file) error {
	r := f.Reg
	if r.GetId() != f.GetId() || r.GetFlags()&^openable != 0 {
		return refuse(name, "the file %d (%.200q) has the flags %#x", f.GetId(), r.GetName(), r.GetFlags())
	}
	if err := unowned(name, f, r.GetFown()); err != nil {
		return err
	}
	if r.GetExt() {
		return external(name, f)
	}
	at := r.GetName()
	if !path.IsAbs(at) || path.Clean(at) != at || len(at) > unix.PathMax || strings.ContainsRune(at, 0) {
		return refuse(name, "the file %d has the name %.200q: want a clean absolute path", f.GetId(), at)
	}
	m := c.mounts[uint32(r.GetMntId())]
	if m == nil || m != c.mountOf(at) {
		return refuse(name, "the file %.200q is not of the mount %d", at, r.GetMntId())
	}
	return c.place(name, m, r)
}

var externalName = regexp.MustCompile(`^file\[[0-9a-f]{1,16}:[0-9a-f]{1,16}\]$`)

// external is one of the container's streams, which the keeper puts into place.
func external(name string, f *file) error {
	r := f.Reg
	if f.stream == "" || !externalName.MatchString(r.GetName()) || r.MntId != nil && r.GetMntId() != -1 {
		return refuse(name, "the file %.200q is outside of the container, and none of its streams", r.GetName())
	}
	// It is opened again, by a link of proc's.
	flags := r.GetFlags() & (unix.O_APPEND | unix.O_NONBLOCK)
	if f.stream != "stdin" || r.GetFlags()&unix.O_ACCMODE == unix.O_RDWR {
		flags |= unix.O_RDWR
	}
	f.Reg = &regfile.RegFileEntry{
		Id: r.Id, Flags: proto.Uint32(flags), Pos: proto.Uint64(0), Fown: r.Fown, Name: proto.String(runtime.RestoredStream(f.stream)), Ext: proto.Bool(true),
	}
	return nil
}

// place sees that a name leads to what a process may have open.
func (c *cleaner) place(name string, m *mount, r *regfile.RegFileEntry) error {
	at, writes := r.GetName(), r.GetFlags()&unix.O_ACCMODE != unix.O_RDONLY
	switch {
	case m.kind == "root":
		return c.inRoot(name, at, writes)
	case m.kind == "bind" && m.root != "/null" && !strings.HasPrefix(at, "/dev"):
		if writes && m.flags&unix.MS_RDONLY != 0 {
			return refuse(name, "the file %.200q is open for writing on a read-only mount", at)
		}
		return nil // a volume of the request's
	case m.GetMountpoint() == "/dev" && standardDevices()[at] != [2]int64{}:
		return nil
	case m.GetMountpoint() == at && r.GetFlags()&unix.O_ACCMODE == unix.O_RDONLY:
		return nil // a working directory
	}
	return refuse(name, "the file %.200q on %s is not restored: only files of the image, of volumes and the usual devices are", at, m.kind)
}

// inRoot looks for a file in the container's root file system, without following links.
func (c *cleaner) inRoot(name, at string, writes bool) error {
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV}
	dir, err := c.paths.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	fd, err := unix.Openat2(int(dir.Fd()), strings.TrimPrefix(path.Clean("."+at), "/"), how)
	if err != nil {
		return refuse(name, "the file %.200q is not in the image, nor among what the container changed: %v", at, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFDIR {
		return refuse(name, "the file %.200q is neither a plain file nor a folder", at)
	}
	if !c.allowed(&st, writes) {
		return refuse(name, "user %d of the request may not open %.200q", c.Spec.Process.User.UID, at)
	}
	return nil
}

// allowed says whether the request's user could open a file itself.
func (c *cleaner) allowed(st *unix.Stat_t, writes bool) bool {
	user, want := c.Spec.Process.User, uint32(4)
	if writes {
		want = 2
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		want = 1 // to be in it
	}
	if user.UID == 0 {
		return true
	}
	execute := st.Mode&0o111 != 0 && !writes // a program, which need not be readable
	bits := st.Mode & 7
	if st.Uid == user.UID {
		bits = st.Mode >> 6 & 7
	} else if st.Gid == user.GID || slices.Contains(user.AdditionalGids, st.Gid) {
		bits = st.Mode >> 3 & 7
	}
	return bits&want != 0 || execute && bits&1 != 0
}

// fds checks the descriptors of a process.
func (c *cleaner) fds(t *task) error {
	name := fmt.Sprintf("fdinfo-%d.img", t.ids.GetFilesId())
	if !c.left[name] {
		for _, other := range c.tasks {
			if other == t {
				break
			}
			if !other.dead && other.ids.GetFilesId() == t.ids.GetFilesId() {
				return nil // shared, and seen
			}
		}
	}
	all, err := entries[fdinfo.FdinfoEntry](c, name, magicFDs)
	if err != nil {
		return err
	}
	seen := map[uint32]bool{}
	for _, e := range all {
		f := c.files[e.GetId()]
		switch {
		case f == nil || f.GetType() != e.GetType():
			return refuse(name, "descriptor %d is of the file %d, which is none of this kind", e.GetFd(), e.GetId())
		case e.GetFd() >= maxFD || seen[e.GetFd()] || e.GetFlags()&^1 != 0:
			return refuse(name, "descriptor %d is there twice, or has the flags %#x", e.GetFd(), e.GetFlags())
		case f.Reg.GetExt():
			return refuse(name, "descriptor %d is of a file outside of the container", e.GetFd())
		}
		seen[e.GetFd()] = true
		e.XattrSecuritySelinux = nil
	}
	return put(c, name, magicFDs, all...)
}

// folders checks a process's root and working directory.
func (c *cleaner) folders(t *task) error {
	name := fmt.Sprintf("fs-%d.img", t.pid)
	e, err := only[fs.FsEntry](c, name, magicFS)
	if err != nil {
		return err
	}
	root, cwd := c.named(e.GetRootId()), c.named(e.GetCwdId())
	if root == nil || root.GetName() != "/" || cwd == nil || e.GetUmask() > 0o777 {
		return refuse(name, "process %d has changed its root, or is nowhere", t.pid)
	}
	return put(c, name, magicFS, e)
}

// named is a file of the container that has a name; nil for none.
func (c *cleaner) named(id uint32) *regfile.RegFileEntry {
	if f := c.files[id]; f != nil && f.Reg != nil && !f.Reg.GetExt() {
		return f.Reg
	}
	return nil
}

// buffers copies what was in pipes.
func (c *cleaner) buffers(name string, magic uint32) error {
	if !c.left[name] {
		return nil
	}
	r, err := c.open(name, magic)
	if err != nil {
		return err
	}
	pipes := map[uint32]bool{}
	for _, f := range c.files {
		if magic == magicPipeData && f.Pipe != nil {
			pipes[f.Pipe.GetPipeId()] = true
		} else if magic == magicFIFOData && f.Fifo != nil {
			pipes[f.Fifo.GetPipeId()] = true
		}
	}
	w := newWriter(magic)
	for len(r.data) > 0 {
		e := &pipedata.PipeDataEntry{}
		if err := r.next(e); err != nil {
			return err
		}
		if !pipes[e.GetPipeId()] || e.GetBytes() > maxBuffer || e.GetSize() > maxBuffer {
			return refuse(name, "it has %d bytes for the pipe %d, which is none, or so large (%d)", e.GetBytes(), e.GetPipeId(), e.GetSize())
		}
		pipes[e.GetPipeId()] = false
		content, err := r.bytes(e.GetBytes())
		if err != nil {
			return err
		}
		w.entry(e)
		w.data = append(w.data, content...)
	}
	return c.put(name, w)
}
