package restore

import (
	"fmt"
	goruntime "runtime"
	"slices"

	core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/netdev"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/timens"
	"google.golang.org/protobuf/proto"

	"github.com/pausa-run/pausa/runtime"
)

const (
	imageVersion = 2
	maxThreads   = 1 << 15
	maxPID       = 1 << 22

	stateAlive, stateDead, stateStopped = 1, 2, 3

	// foreign is the number of what belongs to CRIU itself: no image may have it, so
	// that nothing is shared with CRIU but what ours says.
	foreign = 0xfffff000
)

// task is one process.
type task struct {
	pid     uint32
	threads []uint32
	dead    bool // a zombie: it has no memory and no files
	ids     *core.TaskKobjIdsEntry
}

// inventory checks how the images are to be read. It is written once the ids are known.
func (c *cleaner) inventory() error {
	const name = "inventory.img"
	i, err := only[inventory.InventoryEntry](c, name, magicInventory)
	switch {
	case err != nil:
		return err
	case i.GetImgVersion() != imageVersion || !i.GetFdinfoPerId() || !i.GetNsPerId():
		return refuse(name, "version %d of the images is not known here", i.GetImgVersion())
	case len(i.GetPluginsEntry().GetPlugins()) > 0 || i.GetPreDumpMode() != 0 || i.GetAllowUprobes():
		return refuse(name, "it needs plugins, earlier dumps or probes of CRIU's")
	case i.GetLsmtype() > inventory.Lsmtype_APPARMOR:
		return refuse(name, "security module %d is not known here", i.GetLsmtype())
	}
	return nil
}

// writeInventory says that init shares with CRIU what the keeper makes it join
// (CRIU would fill it from images otherwise), the user namespace, and nothing else.
func (c *cleaner) writeInventory(init *core.TaskKobjIdsEntry) error {
	own := func(n uint32) *uint32 { return proto.Uint32(foreign + n) }
	out := &inventory.InventoryEntry{
		ImgVersion: proto.Uint32(imageVersion), FdinfoPerId: proto.Bool(true), NsPerId: proto.Bool(true), RootCgSet: proto.Uint32(1),
		RootIds: &core.TaskKobjIdsEntry{
			VmId: own(1), FilesId: own(2), FsId: own(3), SighandId: own(4), PidNsId: own(5), NetNsId: own(6), MntNsId: own(7), CgroupNsId: own(8),
			IpcNsId: init.IpcNsId, UtsNsId: init.UtsNsId, UserNsId: init.UserNsId, TimeNsId: init.TimeNsId,
		},
	}
	if init.CgroupNsId == nil {
		out.RootIds.CgroupNsId = nil
	}
	if c.Spec.Process.ApparmorProfile != "" {
		out.Lsmtype = inventory.Lsmtype_APPARMOR.Enum()
	} else if c.Spec.Process.SelinuxLabel != "" {
		out.Lsmtype = inventory.Lsmtype_SELINUX.Enum()
	}
	net := fmt.Sprintf("netns-%d.img", init.GetNetNsId())
	if err := put(c, net, magicNetwork, &netdev.NetnsEntry{ExtKey: proto.String("extRootNetNS")}); err != nil {
		return err
	}
	return put(c, "inventory.img", magicInventory, out)
}

// processes reads the tree of processes, and what each of them is.
func (c *cleaner) processes() error {
	const name = "pstree.img"
	tree, err := entries[pstree.PstreeEntry](c, name, magicTree)
	if err != nil {
		return err
	}
	seen := map[uint32]bool{} // threads, too
	for i, e := range tree {
		pid := e.GetPid()
		switch {
		case i == 0 && (pid != 1 || e.GetPpid() != 0):
			return refuse(name, "its first process is %d below %d: only whole PID namespaces are restored", pid, e.GetPpid())
		case i > 0 && !slices.ContainsFunc(c.tasks, func(t *task) bool { return t.pid == e.GetPpid() }):
			return refuse(name, "process %d has the parent %d, which comes not before it", pid, e.GetPpid())
		case e.GetPgid() >= maxPID || e.GetSid() >= maxPID:
			return refuse(name, "process %d is of group %d and session %d", pid, e.GetPgid(), e.GetSid())
		case !slices.Contains(e.GetThreads(), pid):
			return refuse(name, "process %d has no main thread", pid)
		}
		for _, t := range e.GetThreads() {
			if t == 0 || t >= maxPID || seen[t] || len(seen) >= maxThreads {
				return refuse(name, "thread %d of process %d is there twice, or one too many", t, pid)
			}
			seen[t] = true
		}
		c.tasks = append(c.tasks, &task{pid: pid, threads: e.GetThreads()})
	}
	if len(c.tasks) == 0 {
		return refuse(name, "it has no processes")
	}
	if err := put(c, name, magicTree, tree...); err != nil {
		return err
	}
	for _, t := range c.tasks {
		if err := c.process(t); err != nil {
			return err
		}
	}
	return c.writeInventory(c.tasks[0].ids)
}

func (c *cleaner) process(t *task) error {
	for _, tid := range t.threads {
		name := fmt.Sprintf("core-%d.img", tid)
		e, err := only[core.CoreEntry](c, name, magicCore)
		if err == nil {
			err = c.core(name, t, e, tid == t.pid)
		}
		if err == nil {
			err = put(c, name, magicCore, e)
		}
		if err != nil {
			return err
		}
	}
	if t.dead {
		if t.pid == 1 {
			return refuse("core-1.img", "its first process has ended")
		}
		return nil
	}
	name := fmt.Sprintf("ids-%d.img", t.pid)
	ids, err := only[core.TaskKobjIdsEntry](c, name, magicIDs)
	if err != nil {
		return err
	}
	t.ids = ids
	if err := c.namespaces(name, t); err != nil {
		return err
	}
	return put(c, name, magicIDs, ids)
}

// namespaces keeps every process in those of the first.
func (c *cleaner) namespaces(name string, t *task) error {
	i := t.ids
	all := []uint32{
		i.GetVmId(), i.GetFilesId(), i.GetFsId(), i.GetSighandId(), i.GetPidNsId(), i.GetNetNsId(), i.GetIpcNsId(), i.GetUtsNsId(), i.GetMntNsId(), i.GetUserNsId(),
	}
	if slices.Contains(all, 0) || slices.ContainsFunc(append(all, i.GetCgroupNsId(), i.GetTimeNsId()), func(n uint32) bool { return n >= foreign }) {
		return refuse(name, "a namespace, or what is shared with others, has no number, or one that is not allowed")
	}
	first := c.tasks[0].ids
	same := func(a, b *core.TaskKobjIdsEntry) bool {
		return slices.Equal(
			[]uint32{a.GetPidNsId(), a.GetNetNsId(), a.GetIpcNsId(), a.GetUtsNsId(), a.GetMntNsId(), a.GetUserNsId(), a.GetCgroupNsId(), a.GetTimeNsId()},
			[]uint32{b.GetPidNsId(), b.GetNetNsId(), b.GetIpcNsId(), b.GetUtsNsId(), b.GetMntNsId(), b.GetUserNsId(), b.GetCgroupNsId(), b.GetTimeNsId()})
	}
	if !same(i, first) {
		return refuse(name, "process %d is in other namespaces than the first one", t.pid)
	}
	for _, other := range c.tasks {
		if other != t && other.ids != nil && other.ids.GetVmId() == i.GetVmId() {
			return refuse(name, "processes %d and %d share their memory", other.pid, t.pid)
		}
	}
	if own := hasCgroupNamespace(c.Spec); own != (i.CgroupNsId != nil) && own {
		return refuse(name, "the request has a cgroup namespace, and process %d none", t.pid)
	} else if !own {
		i.CgroupNsId = nil
	}
	return nil
}

// core checks one thread; main is the first of its process.
func (c *cleaner) core(name string, t *task, e *core.CoreEntry, main bool) error {
	march := map[string]core.CoreEntryMarch{"amd64": core.CoreEntry_X86_64, "arm64": core.CoreEntry_AARCH64}[goruntime.GOARCH]
	if e.GetMtype() != march || march == 0 {
		return refuse(name, "it is of another kind of processor (%s), and this host is %s", e.GetMtype(), goruntime.GOARCH)
	}
	if e.Ids != nil || (e.Tc != nil) != main {
		return refuse(name, "it is no image of this thread")
	}
	if main {
		if err := c.taskCore(name, t, e.Tc); err != nil {
			return err
		}
	}
	if t.dead {
		e.ThreadCore, e.ThreadInfo, e.TiAarch64 = nil, nil, nil
		return nil
	}
	if err := checkRegisters(name, e); err != nil {
		return err
	}
	if e.ThreadCore == nil {
		return refuse(name, "it says nothing of the thread's rights")
	}
	return c.threadCore(name, e.ThreadCore)
}

// checkRegisters looks at the size of what CRIU copies, and refuses other modes of the processor.
func checkRegisters(name string, e *core.CoreEntry) error {
	if e.TiArm != nil || e.TiPpc64 != nil || e.TiS390 != nil || e.TiMips != nil || e.TiLoongarch64 != nil || e.TiRiscv64 != nil || (e.ThreadInfo != nil) == (e.TiAarch64 != nil) {
		return refuse(name, "it has the registers of another kind of processor")
	}
	if goruntime.GOARCH == "arm64" {
		if e.TiAarch64 == nil {
			return refuse(name, "it has no registers")
		}
		return nil
	}
	if e.ThreadInfo == nil {
		return refuse(name, "it has no registers")
	}
	g, f := e.ThreadInfo.GetGpregs(), e.ThreadInfo.GetFpregs()
	x := f.GetXsave()
	switch {
	case g.GetMode().Number() > 1:
		return refuse(name, "it runs 32-bit code")
	case len(f.GetStSpace()) != 32 || len(f.GetXmmSpace()) != 64 || len(f.GetPadding()) > 24 || len(e.ThreadInfo.GetTls()) > 3,
		len(x.GetYmmhSpace()) > 64 || len(x.GetBndregState()) > 8 || len(x.GetBndcsrState()) > 8 || len(x.GetOpmaskReg()) > 8,
		len(x.GetZmmUpper()) > 64 || len(x.GetHi16Zmm()) > 128 || len(x.GetPkru()) > 2:
		return refuse(name, "it has more registers than the processor")
	}
	return nil
}

// taskCore checks what a process is as a whole.
func (c *cleaner) taskCore(name string, t *task, e *core.TaskCoreEntry) error {
	t.dead = e.GetTaskState() == stateDead
	timers := e.GetTimers()
	switch {
	case e.GetTaskState() < stateAlive || e.GetTaskState() > stateStopped:
		return refuse(name, "its state %d is not known here", e.GetTaskState())
	case e.GetPersonality() != 0:
		return refuse(name, "it has the personality %#x", e.GetPersonality())
	case e.OldSeccompMode != nil || e.OldSeccompFilter != nil:
		return refuse(name, "it was written by a CRIU that is too old")
	case len(e.GetComm()) > 16 || len(e.GetSigactions()) > 64 || len(timers.GetPosix()) > 1024 || len(e.GetSignalsS().GetSignals()) > 4096:
		return refuse(name, "it has more timers, signals or handlers than a process may have")
	}
	for _, p := range timers.GetPosix() {
		if p.GetClockId() > 7 || p.GetItSigevNotify() > 4 || p.GetSiSigno() > 64 {
			return refuse(name, "a timer has the clock %d and the signal %d", p.GetClockId(), p.GetSiSigno())
		}
	}
	if err := c.limits(name, e); err != nil {
		return err
	}
	e.CgSet, e.Loginuid = proto.Uint32(runtime.RestoredGroups), nil
	if !t.dead {
		e.OomScoreAdj = proto.Int32(0)
		if want := c.Spec.Process.OOMScoreAdj; want != nil {
			e.OomScoreAdj = proto.Int32(int32(*want))
		}
	}
	return nil
}

// times re-reads what the clocks were; the kernel checks the rest.
func (c *cleaner) times() error {
	const name = "timens-0.img"
	if !c.left[name] {
		return nil
	}
	t, err := only[timens.TimensEntry](c, name, magicTimes)
	if err != nil {
		return err
	}
	const second = 1_000_000_000
	for _, at := range []*timens.Timespec{t.GetMonotonic(), t.GetBoottime()} {
		if at.GetTvSec() > 1<<32 || at.GetTvNsec() >= second {
			return refuse(name, "a clock is at %d seconds", at.GetTvSec())
		}
	}
	return put(c, name, magicTimes, t)
}
