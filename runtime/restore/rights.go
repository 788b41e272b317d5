package restore

import (
	"slices"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/creds"
	core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/pausa-run/pausa/runtime"
)

func hasCgroupNamespace(spec *specs.Spec) bool {
	return slices.ContainsFunc(spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.CgroupNamespace })
}

// mask is a set of capabilities as bits.
func mask(names []string) (bits uint64) {
	for _, name := range names {
		if n := runtime.CapabilityNumber(name); n >= 0 {
			bits |= 1 << n
		}
	}
	return bits
}

// rights are the most that a process of the request may have.
type rights struct {
	bounding, permitted, ambient uint64
	anyUser, anyGroup            bool
}

// most works the rights out of the request: a root that may change its user may have
// processes of any user; nobody else may be more than the request says.
func most(p *specs.Process) rights {
	var r rights
	if p.Capabilities == nil {
		return r
	}
	r.bounding, r.ambient = mask(p.Capabilities.Bounding), mask(p.Capabilities.Ambient)
	r.permitted = r.ambient
	if p.User.UID == 0 {
		r.permitted |= r.bounding
	}
	r.anyUser = r.permitted&mask([]string{"CAP_SETUID"}) != 0
	r.anyGroup = r.permitted&mask([]string{"CAP_SETGID"}) != 0
	return r
}

func (r rights) may(capability string) bool { return r.permitted&mask([]string{capability}) != 0 }

// threadCore checks the rights of a thread, and sets what is the request's to say.
func (c *cleaner) threadCore(name string, e *core.ThreadCoreEntry) error {
	r := most(c.Spec.Process)
	switch {
	case e.GetSchedPolicy() != 0 && e.GetSchedPolicy() != 3 && e.GetSchedPolicy() != 5, e.GetSchedNice() < 0 && !r.may("CAP_SYS_NICE"), e.GetSchedNice() > 19:
		return refuse(name, "it has a priority that the request does not allow (policy %d, nice %d)", e.GetSchedPolicy(), e.GetSchedNice())
	case len(e.GetComm()) > 16 || len(e.GetSignalsP().GetSignals()) > 4096 || e.GetPdeathSig() > 64:
		return refuse(name, "it has more signals than a thread may have")
	case e.Creds == nil:
		return refuse(name, "it says nothing of the thread's user")
	}
	if err := c.creds(name, r, e.Creds); err != nil {
		return err
	}
	e.CgSet = proto.Uint32(runtime.RestoredGroups)
	return c.filter(name, e)
}

// filter sees that every thread has the one filter that the keeper puts into place.
func (c *cleaner) filter(name string, e *core.ThreadCoreEntry) error {
	switch filtered := e.GetSeccompMode(); {
	case c.Spec.Linux.Seccomp == nil && filtered != core.SeccompMode_disabled:
		return refuse(name, "it has a seccomp filter, and the request has none")
	case c.Spec.Linux.Seccomp == nil:
		e.SeccompFilter = nil
	case filtered != core.SeccompMode_filter:
		return refuse(name, "it has no seccomp filter (mode %s), and the request has one", filtered)
	case int(e.GetSeccompFilter()) >= len(c.filters):
		return refuse(name, "its seccomp filter %d is not among the images", e.GetSeccompFilter())
	case c.filters[e.GetSeccompFilter()].Prev != nil:
		return refuse(name, "it has set a seccomp filter of its own, which is not restored")
	default:
		e.SeccompFilter = proto.Uint32(0)
	}
	return nil
}

// seccomp reads how the filters are stacked. They are dropped: all that is let
// through has one, in whose place the keeper puts the request's.
func (c *cleaner) seccomp() error {
	const name = "seccomp.img"
	if c.Spec.Linux.Seccomp == nil && !c.left[name] {
		return nil
	}
	e, err := only[seccomp.SeccompEntry](c, name, magicSeccomp)
	if err != nil {
		return err
	}
	c.filters = e.GetSeccompFilters()
	return nil
}

func (c *cleaner) creds(name string, r rights, e *creds.CredsEntry) error {
	user := c.Spec.Process.User
	for _, id := range []uint32{e.GetUid(), e.GetEuid(), e.GetSuid(), e.GetFsuid()} {
		if id != user.UID && !r.anyUser || int32(id) < 0 {
			return refuse(name, "it is of user %d, and the request of user %d", id, user.UID)
		}
	}
	for _, id := range slices.Concat([]uint32{e.GetGid(), e.GetEgid(), e.GetSgid(), e.GetFsgid()}, e.GetGroups()) {
		if id != user.GID && !slices.Contains(user.AdditionalGids, id) && !r.anyGroup || int32(id) < 0 {
			return refuse(name, "it is of group %d, which is none of the request's", id)
		}
	}
	if len(e.GetGroups()) > 1<<16 {
		return refuse(name, "it is of %d groups", len(e.GetGroups()))
	}
	for _, set := range []struct {
		what  string
		words []uint32
		most  uint64
	}{
		{"bounding", e.CapBnd, r.bounding},
		{"permitted", e.CapPrm, r.permitted},
		{"effective", e.CapEff, r.permitted},
		{"inheritable", e.CapInh, r.permitted},
		{"ambient", e.CapAmb, r.permitted},
	} {
		if len(set.words) > 2 {
			return refuse(name, "its %s capabilities are longer than the kernel's", set.what)
		}
		var have uint64
		for i, word := range set.words {
			have |= uint64(word) << (32 * i)
		}
		if more := have &^ set.most; more != 0 {
			return refuse(name, "it has %s capabilities (%#x) that the request does not give", set.what, more)
		}
	}
	if len(e.CapBnd) == 0 { // CRIU would leave it as its own
		return refuse(name, "its capabilities are not bounded")
	}
	if e.GetSecbits() != 0 && !r.may("CAP_SETPCAP") || e.GetSecbits() > 0xff {
		return refuse(name, "it has the secure bits %#x", e.GetSecbits())
	}
	return c.confined(name, e)
}

// confined checks what a security module and no_new_privs say.
func (c *cleaner) confined(name string, e *creds.CredsEntry) error {
	p := c.Spec.Process
	want := p.ApparmorProfile
	if want == "" {
		want = p.SelinuxLabel
	}
	have := strings.TrimSuffix(e.GetLsmProfile(), " (enforce)")
	if have == "unconfined" {
		have = ""
	}
	switch {
	case have != want && (want != "" && want != "unconfined" || have != ""):
		return refuse(name, "it is confined by %q, and the request says %q", have, want)
	case len(e.GetApparmorData()) > 0:
		return refuse(name, "it brings AppArmor policy of its own")
	case p.NoNewPrivileges && e.NoNewPrivs != nil && e.GetNoNewPrivs() == 0:
		return refuse(name, "it may gain privileges, and the request forbids it")
	}
	e.LsmProfile, e.LsmSockcreate = nil, nil
	if want != "" && want != "unconfined" {
		e.LsmProfile = proto.String(want)
	}
	return nil
}

// limits keeps a process below the request's, and below what this process could set itself.
func (c *cleaner) limits(name string, e *core.TaskCoreEntry) error {
	numbers := []string{ // in the kernel's order
		"RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_DATA", "RLIMIT_STACK", "RLIMIT_CORE", "RLIMIT_RSS", "RLIMIT_NPROC", "RLIMIT_NOFILE",
		"RLIMIT_MEMLOCK", "RLIMIT_AS", "RLIMIT_LOCKS", "RLIMIT_SIGPENDING", "RLIMIT_MSGQUEUE", "RLIMIT_NICE", "RLIMIT_RTPRIO", "RLIMIT_RTTIME",
	}
	list := e.GetRlimits().GetRlimits()
	if len(list) > len(numbers) {
		return refuse(name, "it has %d limits, and the kernel %d", len(list), len(numbers))
	}
	for i, have := range list {
		var own unix.Rlimit
		if err := unix.Getrlimit(i, &own); err != nil {
			return err
		}
		highest := own.Max
		for _, r := range c.Spec.Process.Rlimits {
			if r.Type == numbers[i] {
				highest = r.Hard
			}
		}
		// What the host gives depends on its memory: less than the process had does not harm it.
		have.Max = proto.Uint64(min(have.GetMax(), highest))
		have.Cur = proto.Uint64(min(have.GetCur(), have.GetMax()))
	}
	return nil
}
