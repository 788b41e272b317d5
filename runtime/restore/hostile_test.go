package restore

import (
	"archive/tar"
	"errors"
	"os"
	"slices"

	corex86 "github.com/checkpoint-restore/go-criu/v8/crit/images/core-x86"
	core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fown"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fs"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/memfd"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mnt"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/ns"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pipe"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/seccomp"
	skinet "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-inet"
	skopts "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-opts"
	skunix "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-unix"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/pausa-run/pausa/runtime"
)

// hostile changes a dump so that its file must be refused for the word.
type hostile struct {
	file, word string
	change     func(d *dump)
}

func coreCase(word string, change func(e *core.CoreEntry)) hostile {
	return hostile{"core-7.img", word, func(d *dump) {
		edit(d, "core-7.img", magicCore, func(all []*core.CoreEntry) []*core.CoreEntry { change(all[0]); return nil })
	}}
}

func fileCase(word string, e *fdinfo.FileEntry) hostile {
	return hostile{"files.img", word, func(d *dump) {
		edit(d, "files.img", magicFiles, func(all []*fdinfo.FileEntry) []*fdinfo.FileEntry { return append(all, e) })
	}}
}

func owner() *fown.FownEntry {
	return &fown.FownEntry{Uid: proto.Uint32(0), Euid: proto.Uint32(0), Signum: proto.Uint32(0), PidType: proto.Uint32(0), Pid: proto.Uint32(0)}
}

// regular is a file entry of the root mount's, as change makes it.
func regular(name string, change func(*regfile.RegFileEntry)) *fdinfo.FileEntry {
	r := &regfile.RegFileEntry{Id: proto.Uint32(99), Flags: proto.Uint32(0), Pos: proto.Uint64(0), Fown: owner(), Name: proto.String(name), MntId: proto.Int32(54)}
	if change != nil {
		change(r)
	}
	return &fdinfo.FileEntry{Type: fdinfo.FdTypes_REG.Enum(), Id: proto.Uint32(99), Reg: r}
}

func mountCase(word, at string, change func(e *mnt.MntEntry)) hostile {
	const file = "mountpoints-13.img"
	return hostile{file, word, func(d *dump) {
		edit(d, file, magicMounts, func(all []*mnt.MntEntry) []*mnt.MntEntry {
			i := slices.IndexFunc(all, func(e *mnt.MntEntry) bool { return e.GetMountpoint() == at })
			change(all[i])
			return nil
		})
	}}
}

func areaCase(word string, change func(all []*vma.VmaEntry)) hostile {
	return hostile{"mm-1.img", word, func(d *dump) {
		edit(d, "mm-1.img", magicMM, func(all []*mm.MmEntry) []*mm.MmEntry { change(all[0].Vmas); return nil })
	}}
}

func tmpfsCase(device, word string, headers ...*tar.Header) hostile {
	return hostile{"tmpfs-dev-" + device + ".tar.gz.img", word, func(d *dump) { d.tmpfs(device, headers...) }}
}

func rawCase(file, word string, change func(data []byte) []byte) hostile {
	return hostile{file, word, func(d *dump) {
		data, err := os.ReadFile(d.path(file))
		d.must(err)
		d.must(os.WriteFile(d.path(file), change(data), 0o600))
	}}
}

func (d *dump) replace(name string, with func(path string) error) {
	d.must(errors.Join(os.RemoveAll(d.path(name)), with(d.path(name))))
}

func rightsCases() map[string]hostile {
	more := func(set func(e *core.CoreEntry) *[]uint32) func(*core.CoreEntry) {
		return func(e *core.CoreEntry) { *set(e) = []uint32{1 << 21, 0} } // CAP_SYS_ADMIN
	}
	return map[string]hostile{
		"root where the request is not": {"core-1.img", "user 0", func(d *dump) { d.spec.Process.User.UID = 1000 }},
		"a root that may not change its user": {"core-7.img", "user 5", func(d *dump) {
			coreCase("", func(e *core.CoreEntry) { e.ThreadCore.Creds.Euid = proto.Uint32(5) }).change(d)
			d.drop("CAP_SETUID")
		}},
		"another group": {"core-7.img", "group 42", func(d *dump) {
			coreCase("", func(e *core.CoreEntry) { e.ThreadCore.Creds.Groups = []uint32{42} }).change(d)
			d.drop("CAP_SETGID")
		}},
		"effective capabilities":        coreCase("effective", more(func(e *core.CoreEntry) *[]uint32 { return &e.ThreadCore.Creds.CapEff })),
		"permitted capabilities":        coreCase("permitted", more(func(e *core.CoreEntry) *[]uint32 { return &e.ThreadCore.Creds.CapPrm })),
		"bounding capabilities":         coreCase("bounding", more(func(e *core.CoreEntry) *[]uint32 { return &e.ThreadCore.Creds.CapBnd })),
		"inheritable capabilities":      coreCase("inheritable", more(func(e *core.CoreEntry) *[]uint32 { return &e.ThreadCore.Creds.CapInh })),
		"ambient capabilities":          coreCase("ambient", more(func(e *core.CoreEntry) *[]uint32 { return &e.ThreadCore.Creds.CapAmb })),
		"capabilities of a third word":  coreCase("longer", func(e *core.CoreEntry) { e.ThreadCore.Creds.CapEff = []uint32{0, 0, 1} }),
		"no bounding set":               coreCase("not bounded", func(e *core.CoreEntry) { e.ThreadCore.Creds.CapBnd = nil }),
		"dropped capabilities":          {"core-1.img", "capabilities", func(d *dump) { d.spec.Process.Capabilities = &specs.LinuxCapabilities{} }},
		"secure bits":                   coreCase("secure bits", func(e *core.CoreEntry) { e.ThreadCore.Creds.Secbits = proto.Uint32(0x100) }),
		"privileges to gain":            coreCase("gain", func(e *core.CoreEntry) { e.ThreadCore.Creds.NoNewPrivs = proto.Uint32(0) }),
		"no seccomp":                    coreCase("no seccomp filter", func(e *core.CoreEntry) { e.ThreadCore.SeccompMode = core.SeccompMode_disabled.Enum() }),
		"a seccomp filter that is none": coreCase("not among", func(e *core.CoreEntry) { e.ThreadCore.SeccompFilter = proto.Uint32(9) }),
		"old seccomp fields":            coreCase("too old", func(e *core.CoreEntry) { e.Tc.OldSeccompMode = core.SeccompMode_disabled.Enum() }),
		"a filter of its own": {"core-7.img", "of its own", func(d *dump) {
			edit(d, "seccomp.img", magicSeccomp, func(all []*seccomp.SeccompEntry) []*seccomp.SeccompEntry {
				all[0].SeccompFilters[1].Prev = proto.Uint32(0)
				return nil
			})
		}},
		"a filter that the request has not": {"core-1.img", "the request has none", func(d *dump) { d.spec.Linux.Seccomp = nil }},
		"another AppArmor profile":          coreCase("confined by", func(e *core.CoreEntry) { e.ThreadCore.Creds.LsmProfile = proto.String("other") }),
		"no AppArmor profile":               {"core-1.img", "confined by", func(d *dump) { d.spec.Process.ApparmorProfile = "pausa" }},
		"AppArmor policy":                   coreCase("policy", func(e *core.CoreEntry) { e.ThreadCore.Creds.ApparmorData = []byte{1} }),
		"real time":                         coreCase("priority", func(e *core.CoreEntry) { e.ThreadCore.SchedPolicy = proto.Uint32(1) }),
		"a high priority":                   coreCase("priority", func(e *core.CoreEntry) { e.ThreadCore.SchedNice = proto.Int32(-20) }),
		"a personality":                     coreCase("personality", func(e *core.CoreEntry) { e.Tc.Personality = proto.Uint32(0x400000) }),
		"no rights":                         coreCase("rights", func(e *core.CoreEntry) { e.ThreadCore = nil }),
		"another processor":                 coreCase("processor", func(e *core.CoreEntry) { e.Mtype = core.CoreEntry_S390.Enum() }),
		"many registers":                    coreCase("registers", func(e *core.CoreEntry) { e.ThreadInfo.Fpregs.XmmSpace = make([]uint32, 4096) }),
		"32-bit code":                       coreCase("32-bit", func(e *core.CoreEntry) { e.ThreadInfo.Gpregs.Mode = corex86.UserX86RegsMode_COMPAT.Enum() }),
	}
}

func fileCases() map[string]hostile {
	return map[string]hostile{
		"dots":               fileCase("clean", regular("/bin/../../etc/shadow", nil)),
		"a relative name":    fileCase("clean", regular("etc/shadow", nil)),
		"not in the image":   fileCase("not in the image", regular("/etc/shadow", nil)),
		"through a link":     fileCase("not in the image", regular("/link/busybox", nil)),
		"of another mount":   fileCase("mount 56", regular("/bin/busybox", func(r *regfile.RegFileEntry) { r.MntId = proto.Int32(56) })),
		"of no mount":        fileCase("mount 4", regular("/bin/busybox", func(r *regfile.RegFileEntry) { r.MntId = proto.Int32(4) })),
		"of proc":            fileCase("on proc", regular("/proc/sysrq-trigger", func(r *regfile.RegFileEntry) { r.MntId = proto.Int32(45); r.Flags = proto.Uint32(1) })),
		"an unusual device":  fileCase("not restored", regular("/dev/sda", func(r *regfile.RegFileEntry) { r.MntId = proto.Int32(57) })),
		"cut when opened":    fileCase("flags", regular("/bin/busybox", func(r *regfile.RegFileEntry) { r.Flags = proto.Uint32(unix.O_TRUNC) })),
		"that sends signals": fileCase("signals", regular("/bin/busybox", func(r *regfile.RegFileEntry) { r.Fown.Pid, r.Fown.Signum = proto.Uint32(1), proto.Uint32(9) })),
		"outside":            fileCase("outside", regular("/etc/shadow", func(r *regfile.RegFileEntry) { r.Ext = proto.Bool(true) })),
		"outside, by number": fileCase("outside", regular("file[1:2]", func(r *regfile.RegFileEntry) { r.Ext, r.MntId = proto.Bool(true), nil })),
		"another number":     fileCase("flags", regular("/bin/busybox", func(r *regfile.RegFileEntry) { r.Id = proto.Uint32(1) })),
		"twice": {"files.img", "twice", func(d *dump) {
			edit(d, "files.img", magicFiles, func(all []*fdinfo.FileEntry) []*fdinfo.FileEntry { return append(all, all[0]) })
		}},
		"of two kinds": fileCase("several kinds", func() *fdinfo.FileEntry {
			f := regular("/bin/busybox", nil)
			f.Pipe = &pipe.PipeEntry{Id: proto.Uint32(99), PipeId: proto.Uint32(1), Flags: proto.Uint32(0), Fown: owner()}
			return f
		}()),
		"a namespace":        fileCase("NS", &fdinfo.FileEntry{Type: fdinfo.FdTypes_NS.Enum(), Id: proto.Uint32(99), Nsf: &ns.NsFileEntry{Id: proto.Uint32(99), NsId: proto.Uint32(1), NsCflag: proto.Uint32(unix.CLONE_NEWNS), Flags: proto.Uint32(0)}}),
		"a unix socket":      fileCase("UNIXSK", &fdinfo.FileEntry{Type: fdinfo.FdTypes_UNIXSK.Enum(), Id: proto.Uint32(99), Usk: &skunix.UnixSkEntry{Id: proto.Uint32(99), Ino: proto.Uint32(1), Type: proto.Uint32(1), State: proto.Uint32(1), Flags: proto.Uint32(0), Uflags: proto.Uint32(0), Backlog: proto.Uint32(0), Peer: proto.Uint32(0), Fown: owner(), Opts: options(), Name: []byte("/run/pausa/pausa.sock")}}),
		"an internet socket": fileCase("INETSK", &fdinfo.FileEntry{Type: fdinfo.FdTypes_INETSK.Enum(), Id: proto.Uint32(99), Isk: &skinet.InetSkEntry{Id: proto.Uint32(99), Ino: proto.Uint32(1), Family: proto.Uint32(2), Type: proto.Uint32(3), Proto: proto.Uint32(255), State: proto.Uint32(7), SrcPort: proto.Uint32(0), DstPort: proto.Uint32(0), Flags: proto.Uint32(0), Backlog: proto.Uint32(0), Fown: owner(), Opts: options()}}),
		"memory":             fileCase("MEMFD", &fdinfo.FileEntry{Type: fdinfo.FdTypes_MEMFD.Enum(), Id: proto.Uint32(99), Memfd: &memfd.MemfdFileEntry{Id: proto.Uint32(99), Flags: proto.Uint32(0), Pos: proto.Uint64(0), Fown: owner(), InodeId: proto.Uint32(1)}}),
		"that root alone may open": {"files.img", "may not open", func(d *dump) {
			edit(d, "files.img", magicFiles, func(all []*fdinfo.FileEntry) []*fdinfo.FileEntry { return append(all, regular("/secret", nil)) })
			d.become(1000)
		}},
		"of another descriptor kind": {"fdinfo-3.img", "none of this kind", func(d *dump) {
			edit(d, "fdinfo-3.img", magicFDs, func(all []*fdinfo.FdinfoEntry) []*fdinfo.FdinfoEntry {
				all[0].Type = fdinfo.FdTypes_TTY.Enum()
				return nil
			})
		}},
		"a stream that is none": {"fdinfo-3.img", "outside", func(d *dump) {
			edit(d, "fdinfo-3.img", magicFDs, func(all []*fdinfo.FdinfoEntry) []*fdinfo.FdinfoEntry { all[0].Id = proto.Uint32(4); return nil })
		}},
		"a changed root": {"fs-7.img", "changed its root", func(d *dump) {
			edit(d, "fs-7.img", magicFS, func(all []*fs.FsEntry) []*fs.FsEntry { all[0].RootId = proto.Uint32(1); return nil })
		}},
	}
}

func options() *skopts.SkOptsEntry {
	return &skopts.SkOptsEntry{SoSndbuf: proto.Uint32(0), SoRcvbuf: proto.Uint32(0), SoSndTmoSec: proto.Uint64(0), SoSndTmoUsec: proto.Uint64(0), SoRcvTmoSec: proto.Uint64(0), SoRcvTmoUsec: proto.Uint64(0)}
}

// become makes request and processes those of a user.
func (d *dump) become(uid uint32) {
	d.spec.Process.User.UID = uid
	for _, name := range []string{"core-1.img", "core-7.img"} {
		edit(d, name, magicCore, func(all []*core.CoreEntry) []*core.CoreEntry {
			c := all[0].ThreadCore.Creds
			c.Uid, c.Euid, c.Suid, c.Fsuid, c.CapEff, c.CapPrm = &uid, &uid, &uid, &uid, nil, nil
			return nil
		})
	}
}

// drop takes a capability away from the request, and from all that the images say.
func (d *dump) drop(name string) {
	d.spec.Process.Capabilities = &specs.LinuxCapabilities{}
	for _, c := range []*[]string{&d.spec.Process.Capabilities.Bounding, &d.spec.Process.Capabilities.Permitted, &d.spec.Process.Capabilities.Effective} {
		*c = slices.DeleteFunc(runtime.DefaultCapabilities(), func(c string) bool { return c == name })
	}
	bits := mask(d.spec.Process.Capabilities.Bounding)
	words := []uint32{uint32(bits), uint32(bits >> 32)}
	for _, name := range []string{"core-1.img", "core-7.img"} {
		edit(d, name, magicCore, func(all []*core.CoreEntry) []*core.CoreEntry {
			c := all[0].ThreadCore.Creds
			c.CapBnd, c.CapPrm, c.CapEff = words, words, words
			return nil
		})
	}
}
