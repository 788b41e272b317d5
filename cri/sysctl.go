package cri

import (
	"maps"
	"slices"
	"strings"
)

// checkSysctls allows only kernel settings that belong to a namespace which the
// pod has for itself: all others would change the host.
func checkSysctls(field string, all map[string]string, hostNetwork, hostIPC bool) error {
	for _, name := range slices.Sorted(maps.Keys(all)) {
		f := field + "[" + name + "]"
		if !matches(`^[a-z][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)+$`, name) || len(name) > 253 {
			return invalid(field, "%.253q is not the name of a kernel setting (as in net.ipv4.ip_forward)", name)
		}
		if !matches(`^[A-Za-z0-9_.,:-]+([ \t]+[A-Za-z0-9_.,:-]+)*$`, all[name]) || len(all[name]) > 256 {
			return invalid(f, "value %.80q: words of letters, digits and _.,:- are allowed, 256 bytes at most", all[name])
		}
		switch sysctlNamespace(name) {
		case "net":
			if hostNetwork {
				return invalid(f, "the pod uses the host's network namespace, it would change the host")
			}
		case "ipc":
			if hostIPC {
				return invalid(f, "the pod uses the host's IPC namespace, it would change the host")
			}
		default:
			return invalid(f, "is not a namespaced setting: net.*, kernel.shm*, kernel.msg*, kernel.sem and fs.mqueue.* are")
		}
	}
	return nil
}

// sysctlNamespace is "net", "ipc", or "" for a setting of the whole host.
func sysctlNamespace(name string) string {
	if strings.HasPrefix(name, "net.") {
		return "net"
	}
	for _, p := range []string{"kernel.shm", "kernel.msg", "fs.mqueue."} {
		if strings.HasPrefix(name, p) {
			return "ipc"
		}
	}
	if name == "kernel.sem" {
		return "ipc"
	}
	return ""
}
