package manifest

import (
	"path"
	"regexp"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

func (c *checker) podSecurity(at string, s *corev1.PodSpec) {
	sc := s.SecurityContext
	if sc == nil {
		return
	}
	c.ids(at, sc.RunAsUser, sc.RunAsGroup)
	if sc.FSGroup != nil {
		c.id(at+".fsGroup", *sc.FSGroup)
	}
	c.seccomp(at+".seccompProfile", sc.SeccompProfile)
	c.appArmor(at+".appArmorProfile", sc.AppArmorProfile)
	for i, g := range sc.SupplementalGroups {
		c.id(at+".supplementalGroups["+strconv.Itoa(i)+"]", g)
	}
	for i, y := range sc.Sysctls {
		p := at + ".sysctls[" + strconv.Itoa(i) + "]"
		switch name := strings.ReplaceAll(y.Name, "/", "."); {
		case !regexp.MustCompile(`^[a-z0-9]([-_a-z0-9.]*[a-z0-9])?$`).MatchString(name) || strings.Contains(name, ".."):
			c.fail(p+".name", "%q is not the name of a sysctl", y.Name)
		case strings.HasPrefix(name, "net."):
			if s.HostNetwork {
				c.fail(p+".name", "%q is not possible with hostNetwork", y.Name)
			}
		case isIPCSysctl(name):
			if s.HostIPC {
				c.fail(p+".name", "%q is not possible with hostIPC", y.Name)
			}
		default:
			c.fail(p+".name", "%q would change the whole host; only net.*, kernel.shm*, kernel.msg*, kernel.sem and fs.mqueue.* are a pod's own", y.Name)
		}
	}
}

func isIPCSysctl(name string) bool {
	return strings.HasPrefix(name, "kernel.shm") || strings.HasPrefix(name, "kernel.msg") ||
		name == "kernel.sem" || strings.HasPrefix(name, "fs.mqueue.")
}

func (c *checker) ids(at string, user, group *int64) {
	if user != nil {
		c.id(at+".runAsUser", *user)
	}
	if group != nil {
		c.id(at+".runAsGroup", *group)
	}
}

func (c *checker) id(at string, id int64) {
	if id < 0 || id > 1<<31-1 {
		c.fail(at, "%d is not an id; use 0 to %d", id, int64(1<<31-1))
	}
}

func (c *checker) security(at string, s *corev1.SecurityContext, p *corev1.PodSpec) {
	c.ids(at, s.RunAsUser, s.RunAsGroup)
	if s.RunAsNonRoot != nil && *s.RunAsNonRoot && s.RunAsUser != nil && *s.RunAsUser == 0 {
		c.fail(at+".runAsUser", "0 is root, and runAsNonRoot is true")
	}
	if s.AllowPrivilegeEscalation != nil && !*s.AllowPrivilegeEscalation && s.Privileged != nil && *s.Privileged {
		c.fail(at+".allowPrivilegeEscalation", "false is not possible with privileged")
	}
	if s.ProcMount != nil && *s.ProcMount == corev1.UnmaskedProcMount && (p.HostUsers == nil || *p.HostUsers) {
		c.fail(at+".procMount", "Unmasked is only possible with hostUsers: false, else the container could change the host")
	}
	c.seccomp(at+".seccompProfile", s.SeccompProfile)
	c.appArmor(at+".appArmorProfile", s.AppArmorProfile)
}

func isPrivileged(k *corev1.Container) bool {
	return k.SecurityContext != nil && k.SecurityContext.Privileged != nil && *k.SecurityContext.Privileged
}

// maxProfileName is the longest path that the kernel takes.
const maxProfileName = 4095

// seccomp wants a file below the folder of profiles with type Localhost alone.
func (c *checker) seccomp(at string, p *corev1.SeccompProfile) {
	if p == nil {
		return
	}
	name, ok := c.profile(at, string(p.Type), p.LocalhostProfile)
	if ok && (path.IsAbs(name) || hasDotDot(name) || strings.ContainsAny(name, "\x00\n\r") || path.Clean(name) == ".") {
		c.fail(at+".localhostProfile", "%.80q is not a relative path without \"..\"", name)
	}
}

// appArmor wants the name of a profile with type Localhost alone.
func (c *checker) appArmor(at string, p *corev1.AppArmorProfile) {
	if p == nil {
		return
	}
	name, ok := c.profile(at, string(p.Type), p.LocalhostProfile)
	if ok && strings.IndexFunc(name, func(r rune) bool { return r < '!' || r > '~' }) >= 0 {
		c.fail(at+".localhostProfile", "%.80q is not the name of a profile: no spaces, no control characters", name)
	}
}

// profile gives the name that goes with the type Localhost, if there is one to check.
func (c *checker) profile(at, kind string, name *string) (string, bool) {
	at += ".localhostProfile"
	switch {
	case kind == "":
		c.fail(strings.TrimSuffix(at, ".localhostProfile")+".type", "is required: RuntimeDefault, Localhost or Unconfined")
	case kind != "Localhost" && name != nil:
		c.fail(at, "is only possible with type Localhost")
	case kind == "Localhost" && (name == nil || *name == ""):
		c.fail(at, "is required with type Localhost")
	case kind == "Localhost" && len(*name) > maxProfileName:
		c.fail(at, "has %d bytes; at most %d are allowed", len(*name), maxProfileName)
	case kind == "Localhost":
		return *name, true
	}
	return "", false
}
