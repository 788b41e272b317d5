package restore

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"

	core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mnt"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
	pipedata "github.com/checkpoint-restore/go-criu/v8/crit/images/pipe-data"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

func mountCases() map[string]hostile {
	const file = "mountpoints-13.img"
	add := func(d *dump, e *mnt.MntEntry) {
		edit(d, file, magicMounts, func(all []*mnt.MntEntry) []*mnt.MntEntry { return append(all, e) })
	}
	host := func() *mnt.MntEntry {
		return &mnt.MntEntry{
			Fstype: proto.Uint32(16), MntId: proto.Uint32(200), RootDev: proto.Uint32(0x800001), ParentMntId: proto.Uint32(54), Flags: proto.Uint32(0),
			Root: proto.String("/"), Mountpoint: proto.String("/mnt"), Source: proto.String("/dev/sda1"), Options: proto.String(""), Fsname: proto.String("ext4"),
		}
	}
	return map[string]hostile{
		"the host's disk":    {file, "/dev/sda1", func(d *dump) { add(d, host()) }},
		"a mount twice":      {file, "/proc/sys", func(d *dump) { e := host(); e.Mountpoint = proto.String("/proc/sys"); add(d, e) }},
		"a number twice":     mountCase("twice", "/sys", func(e *mnt.MntEntry) { e.MntId = proto.Uint32(56) }),
		"writable /proc/sys": mountCase("flags", "/proc/sys", func(e *mnt.MntEntry) { e.Flags = proto.Uint32(unix.MS_NOSUID) }),
		"devices on /proc":   mountCase("flags", "/proc", func(e *mnt.MntEntry) { e.Flags = proto.Uint32(unix.MS_NOSUID | unix.MS_NOEXEC) }),
		"writable mask":      mountCase("flags", "/sys/firmware", func(e *mnt.MntEntry) { e.Flags = proto.Uint32(0) }),
		"no mask": {file, "missing", func(d *dump) {
			edit(d, file, magicMounts, func(all []*mnt.MntEntry) []*mnt.MntEntry {
				return slices.DeleteFunc(all, func(e *mnt.MntEntry) bool { return e.GetMountpoint() == "/proc/kcore" })
			})
		}},
		"a mask of something else": mountCase("should be", "/proc/kcore", func(e *mnt.MntEntry) { e.ExtKey = nil }),
		"another file as mask":     mountCase("shows", "/proc/kcore", func(e *mnt.MntEntry) { e.Root = proto.String("/zero") }),
		"an external /proc":        mountCase("should be", "/proc", func(e *mnt.MntEntry) { e.ExtKey = proto.String("/dev/null") }),
		"another file system":      mountCase("of the kind", "/dev", func(e *mnt.MntEntry) { e.Fstype = proto.Uint32(uint32(mnt.Fstype_OVERLAYFS)) }),
		"options of another":       mountCase("options", "/dev", func(e *mnt.MntEntry) { e.Options = proto.String("lowerdir=/,upperdir=/tmp") }),
		"part of a file system":    mountCase("shows", "/proc/sys", func(e *mnt.MntEntry) { e.Root = proto.String("/bus") }),
		"shared with the host":     mountCase("shared", "/dev", func(e *mnt.MntEntry) { e.SharedId = proto.Uint32(1) }),
		"of a plugin":              mountCase("plugin", "/dev", func(e *mnt.MntEntry) { e.WithPlugin = proto.Bool(true) }),
		"below its place":          mountCase("another one than its place", "/proc/sys", func(e *mnt.MntEntry) { e.ParentMntId = proto.Uint32(54) }),
		"the device of another":    mountCase("file system of", "/sys", func(e *mnt.MntEntry) { e.RootDev = proto.Uint32(36) }),
		"dots in the root":         mountCase("shows", "/", func(e *mnt.MntEntry) { e.Root = proto.String("/a/../..") }),
		"a volume that is none": {file, "missing", func(d *dump) {
			d.spec.Mounts = append(d.spec.Mounts, specs.Mount{Destination: "/data", Type: "bind", Source: "/tmp", Options: []string{"rbind", "ro"}})
		}},

		"a disk in /dev":       tmpfsCase("36", "none of the request's", &tar.Header{Name: "./sda", Typeflag: tar.TypeBlock, Mode: 0o666, Devmajor: 8}),
		"memory as /dev/null":  tmpfsCase("36", "none of the request's", &tar.Header{Name: "./null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 1}),
		"a device in /dev/shm": tmpfsCase("38", "none of the request's", &tar.Header{Name: "./null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3}),
		"dots in a tmpfs":      tmpfsCase("38", "outside", &tar.Header{Name: "../etc/passwd", Typeflag: tar.TypeReg, Mode: 0o644}),
		"an absolute name":     tmpfsCase("38", "outside", &tar.Header{Name: "/etc/passwd", Typeflag: tar.TypeReg, Mode: 0o644}),
		"below a link": tmpfsCase("38", "below a link",
			&tar.Header{Name: "./a", Typeflag: tar.TypeSymlink, Linkname: "/etc"}, &tar.Header{Name: "./a/passwd", Typeflag: tar.TypeReg, Mode: 0o644}),
		"over a link": tmpfsCase("38", "twice",
			&tar.Header{Name: "./a", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}, &tar.Header{Name: "./a", Typeflag: tar.TypeReg, Mode: 0o644}),
		"a hard link":       tmpfsCase("38", "kind", &tar.Header{Name: "./a", Typeflag: tar.TypeLink, Linkname: "/etc/shadow"}),
		"a set-user-id":     tmpfsCase("38", "mode", &tar.Header{Name: "./a", Typeflag: tar.TypeReg, Mode: 0o4755}),
		"a FIFO in a tmpfs": tmpfsCase("38", "kind", &tar.Header{Name: "./a", Typeflag: tar.TypeFifo, Mode: 0o644}),
		"a long file with nothing in it": {"tmpfs-dev-38.tar.gz.img", "more than", func(d *dump) {
			d.sparse("tmpfs-dev-38.tar.gz.img")
		}},
		"no gzip": rawCase("tmpfs-dev-38.tar.gz.img", "gzip", func([]byte) []byte { return []byte("tar") }),
	}
}

// sparse replaces a tar by one whose only file is 1 EB long, and takes 512 bytes.
func (d *dump) sparse(name string) {
	block := make([]byte, 512)
	octal := func(at, size int, n int64) { copy(block[at:], fmt.Sprintf("%0*o", size-1, n)) }
	copy(block, "./a")
	octal(100, 8, 0o644)
	octal(124, 12, 0)
	block[156] = 'S' // GNU's sparse file
	copy(block[257:], "ustar  \x00")
	block[483] = 0x80 // its real size, in base 256
	binary.BigEndian.PutUint64(block[487:], 1<<60)
	copy(block[148:], "        ")
	sum := 0
	for _, b := range block {
		sum += int(b)
	}
	copy(block[148:], fmt.Sprintf("%06o\x00 ", sum))
	var out bytes.Buffer
	packed := gzip.NewWriter(&out)
	_, err := packed.Write(append(block, make([]byte, 1024)...))
	d.must(errors.Join(err, packed.Close(), os.WriteFile(d.path(name), out.Bytes(), 0o600)))
}

func memoryCases() map[string]hostile {
	pages := func(word string, change func(all []*pagemap.PagemapEntry)) hostile {
		return hostile{"pagemap-1.img", word, func(d *dump) {
			data, err := os.ReadFile(d.path("pagemap-1.img"))
			d.must(err)
			r := &reader{name: "pagemap-1.img", data: data[8:]}
			head := &pagemap.PagemapHead{}
			d.must(r.next(head))
			var all []*pagemap.PagemapEntry
			for len(r.data) > 0 {
				e := &pagemap.PagemapEntry{}
				d.must(r.next(e))
				all = append(all, e)
			}
			change(all)
			w := newWriter(magicPagemap)
			w.entry(head)
			for _, e := range all {
				w.entry(e)
			}
			d.must(os.WriteFile(d.path("pagemap-1.img"), w.data, 0o600))
		}}
	}
	return map[string]hostile{
		"the kernel's memory":   areaCase("area of memory", func(all []*vma.VmaEntry) { all[9].End = proto.Uint64(1 << 63) }),
		"the first page":        areaCase("area of memory", func(all []*vma.VmaEntry) { all[0].Start = proto.Uint64(0) }),
		"areas over each other": areaCase("area of memory", func(all []*vma.VmaEntry) { all[1].Start = all[0].Start }),
		"part of a page":        areaCase("area of memory", func(all []*vma.VmaEntry) { all[0].Start = proto.Uint64(4194305) }),
		"System V":              areaCase("System V", func(all []*vma.VmaEntry) { all[5].Status = proto.Uint32(1<<0 | 1<<10) }),
		"a socket's memory":     areaCase("sockets", func(all []*vma.VmaEntry) { all[5].Status = proto.Uint32(1<<0 | 1<<11) }),
		"a vdso of others":      areaCase("several kinds", func(all []*vma.VmaEntry) { all[9].Status = proto.Uint32(1<<0 | 1<<3 | 1<<8) }),
		"a file that is none":   areaCase("none of the container's", func(all []*vma.VmaEntry) { all[0].Shmid = proto.Uint64(4) }),
		"fixed over others":     areaCase("flags", func(all []*vma.VmaEntry) { all[5].Flags = proto.Uint32(unix.MAP_FIXED | unix.MAP_PRIVATE) }),
		"a descriptor":          areaCase("begins", func(all []*vma.VmaEntry) { all[5].Fd = proto.Int64(3) }),
		"no program":            {"mm-1.img", "no program", func(d *dump) { d.memory(func(e *mm.MmEntry) { e.ExeFileId = proto.Uint32(4) }) }},
		"asynchronous I/O": {"mm-1.img", "asynchronous", func(d *dump) {
			d.memory(func(e *mm.MmEntry) {
				e.Aios = []*mm.AioRingEntry{{Id: proto.Uint64(1), NrReq: proto.Uint32(1), RingLen: proto.Uint32(1)}}
			})
		}},
		"a long auxiliary vector": {"mm-1.img", "what no process has", func(d *dump) { d.memory(func(e *mm.MmEntry) { e.MmSavedAuxv = make([]uint64, 9999) }) }},
		"pages of no area":        pages("of no memory", func(all []*pagemap.PagemapEntry) { all[0].Vaddr = proto.Uint64(1 << 30) }),
		"pages past an area":      pages("of no memory", func(all []*pagemap.PagemapEntry) { all[5].CompatNrPages = proto.Uint32(60000) }),
		"more pages than memory":  pages("too many", func(all []*pagemap.PagemapEntry) { all[0].NrPages = proto.Uint64(1 << 60) }),
		"pages of a parent":       pages("another dump", func(all []*pagemap.PagemapEntry) { all[0].InParent = proto.Bool(true) }),
		"fewer pages":             {"pages-1.img", "bytes of memory", func(d *dump) { d.must(os.Truncate(d.path("pages-1.img"), 4096)) }},
		"a pipe's gigabytes": {"fifo-data.img", "bytes for the pipe", func(d *dump) {
			edit(d, "fifo-data.img", magicFIFOData, func(all []*pipedata.PipeDataEntry) []*pipedata.PipeDataEntry {
				all[0].Size = proto.Uint32(1 << 31)
				return nil
			})
		}},
	}
}

func (d *dump) memory(change func(e *mm.MmEntry)) {
	edit(d, "mm-1.img", magicMM, func(all []*mm.MmEntry) []*mm.MmEntry { change(all[0]); return nil })
}

func formCases() map[string]hostile {
	tree := func(word string, change func(all []*pstree.PstreeEntry)) hostile {
		return hostile{"pstree.img", word, func(d *dump) {
			edit(d, "pstree.img", magicTree, func(all []*pstree.PstreeEntry) []*pstree.PstreeEntry { change(all); return nil })
		}}
	}
	ids := func(word string, change func(e *core.TaskKobjIdsEntry)) hostile {
		return hostile{"ids-7.img", word, func(d *dump) {
			edit(d, "ids-7.img", magicIDs, func(all []*core.TaskKobjIdsEntry) []*core.TaskKobjIdsEntry { change(all[0]); return nil })
		}}
	}
	return map[string]hostile{
		"bad magic":      rawCase("core-1.img", "begin", func(data []byte) []byte { data[5]++; return data }),
		"cut off":        rawCase("core-1.img", "cut off", func(data []byte) []byte { return data[:100] }),
		"cut off early":  rawCase("core-1.img", "begin", func(data []byte) []byte { return data[:6] }),
		"an empty image": rawCase("core-1.img", "begin", func([]byte) []byte { return nil }),
		"two of one":     rawCase("ids-1.img", "2 entries", func(data []byte) []byte { return append(data, data[8:]...) }),
		"no protobuf":    rawCase("core-1.img", "decode", func(data []byte) []byte { copy(data[12:], "\xff\xff\xff\xff"); return data }),
		"a long entry":   rawCase("core-1.img", "cut off", func(data []byte) []byte { binary.LittleEndian.PutUint32(data[8:], 1<<31); return data }),
		"an unknown field": rawCase("ids-1.img", "not known", func(data []byte) []byte {
			binary.LittleEndian.PutUint32(data[8:], binary.LittleEndian.Uint32(data[8:])+3)
			return append(data, 0xf8, 0x07, 1)
		}),
		"a giant file":      {"core-1.img", "more than", func(d *dump) { d.must(os.Truncate(d.path("core-1.img"), maxImage+1)) }},
		"a folder":          {"core-1.img", "plain file", func(d *dump) { d.replace("core-1.img", func(p string) error { return os.Mkdir(p, 0o700) }) }},
		"a link":            {"core-1.img", "plain file", func(d *dump) { d.replace("core-1.img", func(p string) error { return os.Symlink("/etc/passwd", p) }) }},
		"a FIFO":            {"core-1.img", "plain file", func(d *dump) { d.replace("core-1.img", func(p string) error { return unix.Mkfifo(p, 0o600) }) }},
		"a missing image":   {"mm-7.img", "missing", func(d *dump) { d.must(os.Remove(d.path("mm-7.img"))) }},
		"an unknown image":  {"apparmor.img", "nothing that is known", func(d *dump) { d.must(os.WriteFile(d.path("apparmor.img"), nil, 0o600)) }},
		"a packet filter":   {"iptables-10.img", "nothing that is known", func(d *dump) { d.must(os.WriteFile(d.path("iptables-10.img"), nil, 0o600)) }},
		"a deleted file":    {"ghost-file-1.img", "nothing that is known", func(d *dump) { d.must(os.WriteFile(d.path("ghost-file-1.img"), nil, 0o600)) }},
		"System V segments": {"ipcns-shm-11.img", "nothing that is known", func(d *dump) { d.must(os.WriteFile(d.path("ipcns-shm-11.img"), nil, 0o600)) }},
		"too many files": {"more than", "files", func(d *dump) {
			for i := range 101 {
				d.must(os.WriteFile(d.path(fmt.Sprint("x", i)), nil, 0o600))
			}
		}},
		"a plugin": {"inventory.img", "plugins", func(d *dump) {
			edit(d, "inventory.img", magicInventory, func(all []*inventory.InventoryEntry) []*inventory.InventoryEntry {
				all[0].PluginsEntry = &inventory.PluginsEntry{Plugins: []string{"/tmp/evil.so"}}
				return nil
			})
		}},
		"another version": {"inventory.img", "version 7", func(d *dump) {
			edit(d, "inventory.img", magicInventory, func(all []*inventory.InventoryEntry) []*inventory.InventoryEntry {
				all[0].ImgVersion = proto.Uint32(7)
				return nil
			})
		}},
		"no first process":      tree("first process", func(all []*pstree.PstreeEntry) { all[0].Pid = proto.Uint32(5) }),
		"a process twice":       tree("twice", func(all []*pstree.PstreeEntry) { all[1].Pid, all[1].Threads = proto.Uint32(1), []uint32{1} }),
		"no such parent":        tree("parent", func(all []*pstree.PstreeEntry) { all[1].Ppid = proto.Uint32(9) }),
		"very many threads":     tree("one too many", func(all []*pstree.PstreeEntry) { all[1].Threads = numbers(maxThreads) }),
		"a high number":         tree("one too many", func(all []*pstree.PstreeEntry) { all[1].Pid, all[1].Threads = proto.Uint32(1<<31), []uint32{1 << 31} }),
		"another mount space":   ids("other namespaces", func(e *core.TaskKobjIdsEntry) { e.MntNsId = proto.Uint32(99) }),
		"another user space":    ids("other namespaces", func(e *core.TaskKobjIdsEntry) { e.UserNsId = proto.Uint32(99) }),
		"CRIU's own":            ids("not allowed", func(e *core.TaskKobjIdsEntry) { e.MntNsId = proto.Uint32(foreign + 7) }),
		"no network":            ids("no number", func(e *core.TaskKobjIdsEntry) { e.NetNsId = nil }),
		"the memory of another": ids("share their memory", func(e *core.TaskKobjIdsEntry) { e.VmId = proto.Uint32(2) }),
	}
}

func numbers(n int) []uint32 {
	out := make([]uint32, n)
	for i := range out {
		out[i] = uint32(i + 7)
	}
	return out
}
