package restore

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"golang.org/x/sys/unix"
)

const (
	pageSize = 4096
	maxAreas = 1 << 16
	userEnd  = 0x7ffffffff000 // end of a process's memory

	// What an area may be, in CRIU's words.
	areaRegular, areaStack, areaVsyscall, areaVDSO, areaHeap = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 5
	areaFilePrivate, areaFileShared, areaAnonShared          = 1 << 6, 1 << 7, 1 << 8
	areaAnonPrivate, areaVVar                                = 1 << 9, 1 << 12
	areaKnown                                                = areaRegular | areaStack | areaVsyscall | areaVDSO | areaHeap | areaFilePrivate | areaFileShared | areaAnonShared | areaAnonPrivate | areaVVar

	pageParent, pageLazy, pagePresent = 1 << 0, 1 << 1, 1 << 2

	mapKnown = unix.MAP_SHARED | unix.MAP_PRIVATE | unix.MAP_ANONYMOUS | unix.MAP_GROWSDOWN | unix.MAP_STACK | unix.MAP_NORESERVE | unix.MAP_LOCKED | unix.MAP_DENYWRITE | unix.MAP_EXECUTABLE
)

// eachTask checks the files and the memory of every process.
func (c *cleaner) eachTask() error {
	shared := map[uint64]uint64{} // pages of shared memory by its number
	for _, t := range c.tasks {
		if t.dead {
			continue
		}
		for _, step := range []func(*task) error{c.fds, c.folders, func(t *task) error { return c.memory(t, shared) }} {
			if err := step(t); err != nil {
				return err
			}
		}
	}
	for id, size := range shared {
		name := fmt.Sprintf("pagemap-shmem-%d.img", id)
		if err := c.pages(name, []*vma.VmaEntry{{Start: new(uint64), End: &size}}); err != nil {
			return err
		}
	}
	return nil
}

// memory checks the areas of a process.
func (c *cleaner) memory(t *task, shared map[uint64]uint64) error {
	name := fmt.Sprintf("mm-%d.img", t.pid)
	e, err := only[mm.MmEntry](c, name, magicMM)
	if err != nil {
		return err
	}
	exe := c.named(e.GetExeFileId())
	switch {
	case exe == nil:
		return refuse(name, "process %d has no program among the container's files", t.pid)
	case len(e.GetAios()) > 0 || e.GetDumpable() < 0 || e.GetDumpable() > 1 || len(e.GetMmSavedAuxv()) > 128:
		return refuse(name, "process %d has asynchronous I/O, or what no process has", t.pid)
	case len(e.GetVmas()) > maxAreas:
		return refuse(name, "process %d has %d areas of memory", t.pid, len(e.GetVmas()))
	}
	end := uint64(0)
	for _, a := range e.GetVmas() {
		if a.GetStart() < end || a.GetStart() >= a.GetEnd() || a.GetStart()%pageSize != 0 || a.GetEnd()%pageSize != 0 ||
			a.GetEnd() > userEnd && a.GetStatus()&areaVsyscall == 0 || a.GetStart() < pageSize {
			return refuse(name, "process %d has an area of memory at %#x-%#x", t.pid, a.GetStart(), a.GetEnd())
		}
		end = a.GetEnd()
		if err := c.area(name, a); err != nil {
			return err
		}
		if a.GetStatus()&areaAnonShared != 0 {
			shared[a.GetShmid()] = max(shared[a.GetShmid()], a.GetPgoff()+a.GetEnd()-a.GetStart())
		}
	}
	if err := put(c, name, magicMM, e); err != nil {
		return err
	}
	return c.pages(fmt.Sprintf("pagemap-%d.img", t.pid), e.GetVmas())
}

// area checks one area of memory.
func (c *cleaner) area(name string, a *vma.VmaEntry) error {
	status, start := a.GetStatus(), a.GetStart()
	kinds := 0
	for _, kind := range []uint32{areaFilePrivate, areaFileShared, areaAnonShared, areaAnonPrivate} {
		if status&kind != 0 {
			kinds++
		}
	}
	switch {
	case status&^areaKnown != 0 || status&areaRegular == 0 && status&areaVsyscall == 0:
		return refuse(name, "the area at %#x is of the kind %#x, which is not restored: memory shared by System V, sockets, or of asynchronous I/O", start, status)
	case kinds > 1 || status&(areaVDSO|areaVVar|areaStack|areaHeap) != 0 && status&(areaFileShared|areaAnonShared) != 0:
		return refuse(name, "the area at %#x is of several kinds (%#x)", start, status)
	case a.GetProt()&^(unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC) != 0 || a.GetFlags()&^mapKnown != 0:
		return refuse(name, "the area at %#x has the protection %#x and the flags %#x", start, a.GetProt(), a.GetFlags())
	case a.GetFd() != -1 || a.GetPgoff()%pageSize != 0 || a.GetPgoff() > 1<<62:
		return refuse(name, "the area at %#x begins at the byte %d of its file", start, a.GetPgoff())
	}
	if status&(areaFilePrivate|areaFileShared) == 0 {
		if status&areaAnonShared != 0 && a.GetEnd()-start > uint64(c.Memory) {
			return refuse(name, "the shared area at %#x is larger than the container's memory", start)
		}
		return nil
	}
	f := c.named(uint32(a.GetShmid()))
	if f == nil || a.GetShmid() > 1<<32-1 {
		return refuse(name, "the area at %#x is of the file %d, which is none of the container's", start, a.GetShmid())
	}
	writes := status&areaFileShared != 0 && (a.GetProt()&unix.PROT_WRITE != 0 || a.GetFdflags()&unix.O_ACCMODE != unix.O_RDONLY)
	if a.GetFdflags()&^openable != 0 {
		return refuse(name, "the area at %#x opens its file with the flags %#x", start, a.GetFdflags())
	}
	if m := c.mounts[uint32(f.GetMntId())]; writes && (m.flags&unix.MS_RDONLY != 0 || m.kind == "root" && c.inRoot(name, f.GetName(), true) != nil) {
		return refuse(name, "the area at %#x writes to %.200q, which the request does not allow", start, f.GetName())
	}
	return nil
}

// pages copies the pages of areas, and sees that they belong there.
func (c *cleaner) pages(name string, areas []*vma.VmaEntry) error {
	r, err := c.open(name, magicPagemap)
	if err != nil {
		return err
	}
	head, w, total := &pagemap.PagemapHead{}, newWriter(magicPagemap), int64(0)
	if err := r.next(head); err != nil {
		return refuse(name, "it has no head: %v", err)
	}
	w.entry(head)
	for end := uint64(0); ; {
		e := &pagemap.PagemapEntry{}
		err := r.next(e)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		count := e.GetNrPages()
		if e.NrPages == nil {
			count = uint64(e.GetCompatNrPages())
		}
		if e.GetInParent() || e.GetFlags()&^(pageLazy|pagePresent) != 0 || e.GetFlags()&pagePresent == 0 || count == 0 || count > uint64(c.Memory)/pageSize+1 {
			return refuse(name, "the pages at %#x are of another dump, or too many (%d)", e.GetVaddr(), count)
		}
		from, to := e.GetVaddr(), e.GetVaddr()+count*pageSize
		if from < end || to < from || from%pageSize != 0 || !covered(areas, from, to) {
			return refuse(name, "the pages at %#x-%#x are of no memory of the process", from, to)
		}
		end = to
		total += int64(count) * pageSize
		w.entry(e)
	}
	if c.space -= total; c.space < 0 {
		return refuse(name, "its pages take more than the container's memory (%d bytes)", c.Memory)
	}
	if err := c.put(name, w); err != nil {
		return err
	}
	if total == 0 {
		delete(c.left, fmt.Sprintf("pages-%d.img", head.GetPagesId()))
		return c.empty(fmt.Sprintf("pages-%d.img", head.GetPagesId()))
	}
	return c.copy(fmt.Sprintf("pages-%d.img", head.GetPagesId()), total)
}

// covered says whether areas without a gap hold all from one address to the other.
func covered(areas []*vma.VmaEntry, from, to uint64) bool {
	i, found := slices.BinarySearchFunc(areas, from, func(a *vma.VmaEntry, at uint64) int {
		switch {
		case a.GetEnd() <= at:
			return -1
		case a.GetStart() > at:
			return 1
		}
		return 0
	})
	if !found {
		return false
	}
	for ; i < len(areas) && areas[i].GetStart() <= from; i++ {
		if from = areas[i].GetEnd(); from >= to {
			return true
		}
	}
	return false
}

// empty makes an empty file unless there is one.
func (c *cleaner) empty(name string) error {
	f, err := c.create(name)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return f.Close()
}

// copy copies a file of exactly size bytes.
func (c *cleaner) copy(name string, size int64) (err error) {
	in, err := c.take(name)
	if err != nil {
		return err
	}
	defer in.Close()
	if st, err := in.Stat(); err != nil || st.Size() != size {
		return refuse(name, "it should have %d bytes of memory", size)
	}
	out, err := c.create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if n, err := io.Copy(out, io.LimitReader(in, size)); err != nil || n != size {
		return errors.Join(refuse(name, "%d of %d bytes could be read", n, size), err)
	}
	return nil
}
