package reconcile

import (
	"fmt"
	"path/filepath"
	"strconv"

	corev1 "k8s.io/api/core/v1"

	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/runtime"
)

// security merges the pod's and the container's securityContext; the container's
// wins. Profiles of seccomp are files below the given folder.
func security(cfg *pod.ContainerConfig, p *corev1.Pod, c *corev1.Container, seccompDir string) error {
	ps, cs := corev1.PodSecurityContext{}, corev1.SecurityContext{}
	if p.Spec.SecurityContext != nil {
		ps = *p.Spec.SecurityContext
	}
	if c.SecurityContext != nil {
		cs = *c.SecurityContext
	}
	if user := first(cs.RunAsUser, ps.RunAsUser); user != nil {
		cfg.User = strconv.FormatInt(*user, 10)
	}
	cfg.Group = first(cs.RunAsGroup, ps.RunAsGroup)
	cfg.RunAsNonRoot = isTrue(first(cs.RunAsNonRoot, ps.RunAsNonRoot))
	cfg.AdditionalGIDs = ps.SupplementalGroups
	if ps.FSGroup != nil {
		cfg.AdditionalGIDs = append(append([]int64{}, ps.SupplementalGroups...), *ps.FSGroup)
	}
	cfg.StrictGroups = ps.SupplementalGroupsPolicy != nil && *ps.SupplementalGroupsPolicy == corev1.SupplementalGroupsPolicyStrict
	cfg.ReadonlyRootfs = isTrue(cs.ReadOnlyRootFilesystem)

	sec := &cfg.Security
	sec.Privileged = isTrue(cs.Privileged)
	sec.NoNewPrivs = cs.AllowPrivilegeEscalation != nil && !*cs.AllowPrivilegeEscalation
	if caps := cs.Capabilities; caps != nil {
		for _, name := range caps.Add {
			sec.AddCaps = append(sec.AddCaps, string(name))
		}
		for _, name := range caps.Drop {
			sec.DropCaps = append(sec.DropCaps, string(name))
		}
	}
	if cs.ProcMount != nil && *cs.ProcMount == corev1.UnmaskedProcMount {
		sec.MaskedPaths, sec.ReadonlyPaths = []string{}, []string{}
	}
	if a := first(cs.AppArmorProfile, ps.AppArmorProfile); a != nil {
		sec.AppArmor = profileName(string(a.Type), a.LocalhostProfile)
	}
	return seccomp(sec, first(cs.SeccompProfile, ps.SeccompProfile), seccompDir)
}

// seccomp reads the profile anew for each container, as it is on the host now.
func seccomp(sec *runtime.Security, profile *corev1.SeccompProfile, dir string) error {
	sec.Seccomp = "runtime/default"
	switch {
	case sec.Privileged:
		sec.Seccomp = "unconfined"
	case profile != nil && profile.Type == corev1.SeccompProfileTypeLocalhost:
		path := filepath.Join(dir, *profile.LocalhostProfile)
		raw, err := pod.ReadSeccompProfile(path)
		if err != nil {
			return fmt.Errorf("seccomp profile %s: %w", *profile.LocalhostProfile, err)
		}
		sec.Seccomp, sec.SeccompProfile = "localhost/"+path, raw
	case profile != nil:
		sec.Seccomp = profileName(string(profile.Type), nil)
	}
	return nil
}

// profileName is how the runtime calls a profile of a manifest.
func profileName(kind string, name *string) string {
	switch kind {
	case "Unconfined":
		return "unconfined"
	case "Localhost":
		return "localhost/" + *name
	}
	return "runtime/default"
}

func first[T any](a, b *T) *T {
	if a != nil {
		return a
	}
	return b
}
