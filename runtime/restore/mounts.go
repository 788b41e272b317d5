package restore

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/mnt"
	securejoin "github.com/cyphar/filepath-securejoin"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

const (
	maxMounts = 4096
	// strict are the flags that take something away; those of the request must be there.
	strict = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	// harmless may be there besides.
	harmless = unix.MS_NOATIME | unix.MS_NODIRATIME | unix.MS_RELATIME | unix.MS_STRICTATIME
)

// mount is one that the request has, and what the images say of it.
type mount struct {
	*mnt.MntEntry
	kind  string // file system, "bind", "root" or "mask" for what hides a folder
	group string // mounts of one group show the same file system
	flags uint32 // that it must have
	root  string // what of its file system it shows
	ext   string // the name by which the keeper puts it into place
}

// kind is what CRIU calls a file system that it may make anew, and the options that it may have.
type kind struct {
	number  mnt.Fstype
	options *regexp.Regexp
}

func kinds() map[string]kind {
	none := regexp.MustCompile(`^$`)
	return map[string]kind{
		"proc": {mnt.Fstype_PROC, none}, "sysfs": {mnt.Fstype_SYSFS, none}, "mqueue": {mnt.Fstype_MQUEUE, none},
		"tmpfs":  {mnt.Fstype_TMPFS, regexp.MustCompile(`^((size=\d{1,15}[kmg]?|mode=[0-7]{3,4}|nr_inodes=\d{1,12}k?|uid=\d{1,10}|gid=\d{1,10}|inode64|inode32)(,|$))*$`)},
		"devpts": {mnt.Fstype_DEVPTS, regexp.MustCompile(`^((gid=5|mode=0?620|ptmxmode=0?666|newinstance)(,|$))*$`)},
		"cgroup": {mnt.Fstype_CGROUP2, regexp.MustCompile(`^((nsdelegate|memory_recursiveprot|memory_localevents|favordynmods)(,|$))*$`)},
	}
}

// wanted are the mounts that libcontainer makes for the request, by their places.
func (c *cleaner) wanted() (map[string]*mount, error) {
	spec := c.Spec
	out := map[string]*mount{"/": {kind: "root", group: "/", root: "/"}}
	for _, m := range spec.Mounts {
		// As libcontainer does: links in the root file system lead to elsewhere in it.
		real, err := securejoin.SecureJoin(spec.Root.Path, m.Destination)
		if err != nil {
			return nil, fmt.Errorf("find the place of the mount %s: %w", m.Destination, err)
		}
		at := strings.TrimPrefix(real, strings.TrimSuffix(spec.Root.Path, "/"))
		w := &mount{kind: m.Type, group: at, root: "/", flags: flagsOf(m.Options)}
		if m.Type == "bind" {
			if slices.ContainsFunc(m.Options, func(o string) bool {
				return slices.Contains([]string{"rshared", "rslave", "shared", "slave", "ridmap", "idmap", "rro"}, o)
			}) {
				return nil, fmt.Errorf("%w: the request's mount %s is shared, idmapped or recursively read-only, which CRIU does not restore", ErrRefused, m.Destination)
			}
			w.ext, w.root = at, ""
		}
		if m.Type == "cgroup" && !hasCgroupNamespace(spec) {
			return nil, fmt.Errorf("%w: containers with groups of cgroup v1, or without a cgroup namespace, are not restored", ErrRefused)
		}
		out[at] = w
	}
	c.hidden(out)
	return out, nil
}

// hidden adds what is masked or read-only below proc and sysfs.
func (c *cleaner) hidden(out map[string]*mount) {
	for _, at := range c.Spec.Linux.ReadonlyPaths {
		if rest, ok := strings.CutPrefix(at, "/proc/"); ok && c.exists(at) {
			out[at] = &mount{kind: "proc", group: "/proc", root: "/" + rest, flags: unix.MS_RDONLY}
		}
	}
	masked := slices.Clone(c.Spec.Linux.MaskedPaths)
	if slices.Contains(masked, "/proc/interrupts") { // as the keeper does
		more, _ := filepath.Glob(c.host + "/sys/devices/system/cpu/cpu*/thermal_throttle")
		for _, at := range more {
			masked = append(masked, strings.TrimPrefix(at, c.host))
		}
	}
	for _, at := range masked {
		switch st, err := os.Stat(filepath.Join(c.host, at)); {
		case err != nil || !strings.HasPrefix(at, "/proc/") && !strings.HasPrefix(at, "/sys/"):
		case st.IsDir():
			out[at] = &mount{kind: "tmpfs", group: "masks", root: "/", flags: unix.MS_RDONLY}
		default:
			out[at] = &mount{kind: "bind", group: "/dev", root: "/null", ext: "/dev/null"}
		}
	}
}

func (c *cleaner) exists(at string) bool {
	_, err := os.Lstat(filepath.Join(c.host, at))
	return err == nil
}

func flagsOf(options []string) (flags uint32) {
	for _, o := range options {
		flags |= map[string]uint32{"ro": unix.MS_RDONLY, "nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC}[o]
	}
	return flags
}

// mountpoints sees that there are exactly the request's mounts, as strict as it wants them.
func (c *cleaner) mountpoints() error {
	name := fmt.Sprintf("mountpoints-%d.img", c.tasks[0].ids.GetMntNsId())
	all, err := entries[mnt.MntEntry](c, name, magicMounts)
	if err != nil {
		return err
	}
	if len(all) > maxMounts {
		return refuse(name, "it has %d mounts", len(all))
	}
	wanted, err := c.wanted()
	if err != nil {
		return err
	}
	c.mounts = map[uint32]*mount{}
	kinds := kinds()
	for _, e := range all {
		w := wanted[e.GetMountpoint()]
		if w == nil || w.MntEntry != nil {
			return refuse(name, "it mounts %q at %.200q, which the request does not", e.GetSource(), e.GetMountpoint())
		}
		if c.mounts[e.GetMntId()] != nil {
			return refuse(name, "the mount %d is there twice", e.GetMntId())
		}
		w.MntEntry, c.mounts[e.GetMntId()] = e, w
		if err := w.check(name, kinds); err != nil {
			return err
		}
	}
	for at, w := range wanted {
		if w.MntEntry == nil {
			return refuse(name, "the request's mount at %s is missing", at)
		}
	}
	if err := c.mountTree(name); err != nil {
		return err
	}
	clean := make([]*mnt.MntEntry, len(all))
	for i, e := range all {
		clean[i] = c.mounts[e.GetMntId()].clean(kinds)
	}
	return put(c, name, magicMounts, clean...)
}

// check compares one mount with the request.
func (m *mount) check(name string, kinds map[string]kind) error {
	at := m.GetMountpoint()
	switch {
	case m.GetFlags()&strict&m.flags != m.flags:
		return refuse(name, "the mount at %s has the flags %#x, and the request at least %#x", at, m.GetFlags(), m.flags)
	case m.GetSharedId() != 0 || m.GetMasterId() != 0 || m.GetInternalSharing() || m.GetDeleted() || m.GetWithPlugin() || m.GetExtMount():
		return refuse(name, "the mount at %s is shared, deleted or a plugin's", at)
	case m.GetExtKey() != m.ext:
		return refuse(name, "the mount at %s is called %q, and should be %q", at, m.GetExtKey(), m.ext)
	case m.kind == "bind" || m.kind == "root":
		if !path.IsAbs(m.GetRoot()) || path.Clean(m.GetRoot()) != m.GetRoot() || m.root == "/null" && m.GetRoot() != m.root {
			return refuse(name, "the mount at %s shows %.200q of its file system", at, m.GetRoot())
		}
		return nil
	}
	kind, ok := kinds[m.kind]
	switch {
	case !ok:
		return refuse(name, "the request's mount at %s is of the kind %q, which is not restored", at, m.kind)
	case m.GetFstype() != uint32(kind.number) || m.GetFsname() != "":
		return refuse(name, "the mount at %s is of the kind %d (%q), and the request's is %s", at, m.GetFstype(), m.GetFsname(), m.kind)
	case m.GetRoot() != m.root:
		return refuse(name, "the mount at %s shows %.200q of its file system, and should %q", at, m.GetRoot(), m.root)
	case !kind.options.MatchString(m.GetOptions()):
		return refuse(name, "the mount at %s has the options %.200q", at, m.GetOptions())
	}
	return nil
}

// mountTree sees that each mount is on the one that its place belongs to, and which
// of them show the same file system: CRIU mounts it once, and binds the others to it.
func (c *cleaner) mountTree(name string) error {
	devices, groups := map[uint32]string{}, map[string]uint32{}
	for id, m := range c.mounts {
		parent := c.mounts[m.GetParentMntId()]
		if m.kind == "root" {
			if parent != nil {
				return refuse(name, "its root is mounted on another mount")
			}
		} else if parent == nil || parent != c.mountOf(path.Dir(m.GetMountpoint())) {
			return refuse(name, "the mount %d at %s is on another one than its place", id, m.GetMountpoint())
		}
		if m.kind == "bind" && m.root != "/null" {
			continue
		}
		group, taken := devices[m.GetRootDev()]
		device, known := groups[m.group]
		if taken && group != m.group || known && device != m.GetRootDev() {
			return refuse(name, "the mount at %s shows the file system of %s", m.GetMountpoint(), group)
		}
		devices[m.GetRootDev()], groups[m.group] = m.group, m.GetRootDev()
	}
	for _, m := range c.mounts { // what the keeper puts into place is bound to nothing of the images
		if group, taken := devices[m.GetRootDev()]; taken && m.kind == "bind" && m.root != "/null" && group != "/" {
			return refuse(name, "the mount at %s shows the file system of %s", m.GetMountpoint(), group)
		}
	}
	return nil
}

// mountOf is the mount that a path is on.
func (c *cleaner) mountOf(at string) (best *mount) {
	for _, m := range c.mounts {
		place := m.GetMountpoint()
		if place != "/" && at != place && !strings.HasPrefix(at, place+"/") {
			continue
		}
		if best == nil || len(place) > len(best.GetMountpoint()) {
			best = m
		}
	}
	return best
}

// clean is the mount as CRIU shall see it.
func (m *mount) clean(kinds map[string]kind) *mnt.MntEntry {
	e := m.MntEntry
	out := &mnt.MntEntry{
		Fstype: e.Fstype, MntId: e.MntId, RootDev: e.RootDev, ParentMntId: e.ParentMntId, Root: e.Root, Mountpoint: e.Mountpoint,
		Flags: proto.Uint32(e.GetFlags() & (strict | harmless)), SbFlags: proto.Uint32(e.GetSbFlags() & unix.MS_RDONLY),
		Source: proto.String("none"), Options: proto.String(""), SharedId: proto.Uint32(0), MasterId: proto.Uint32(0),
	}
	if m.ext != "" {
		out.ExtKey = proto.String(m.ext)
	}
	if m.kind == "bind" && m.root == "/null" {
		out.Options = e.Options // of the file system that it shows a file of
	}
	if kind, ok := kinds[m.kind]; ok && kind.options.MatchString(e.GetOptions()) {
		out.Options, out.Source = e.Options, proto.String(m.kind)
	} else if m.kind != "bind" || m.root != "/null" {
		out.Fstype = proto.Uint32(uint32(mnt.Fstype_UNSUPPORTED))
	}
	return out
}

// standardDevices are the nodes of every container, by path.
func standardDevices() map[string][2]int64 {
	return map[string][2]int64{"/dev/null": {1, 3}, "/dev/zero": {1, 5}, "/dev/full": {1, 7}, "/dev/random": {1, 8}, "/dev/urandom": {1, 9}, "/dev/tty": {5, 0}}
}

// device says whether a node may be in /dev: those of every container, and the request's.
func (c *cleaner) device(at string, kind string, major, minor int64) bool {
	if n, ok := standardDevices()[at]; ok {
		return kind == "c" && n == [2]int64{major, minor}
	}
	return slices.ContainsFunc(c.Spec.Linux.Devices, func(d specs.LinuxDevice) bool {
		return path.Clean(d.Path) == at && d.Type == kind && d.Major == major && d.Minor == minor
	})
}
