package network

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/pausa-run/pausa/internal/atomicfile"
	"github.com/pausa-run/pausa/network/bridge"
)

// Leaks names what the network of a run directory holds for pods that are not
// alive (by id): pinned namespaces, attempts, addresses, and links on this host.
// What cannot be detached now, and is tried again, is named with its reason. It needs
// no Manager, and changes nothing.
func Leaks(runDir, bridgeName string, alive map[string]bool) ([]string, error) {
	var out []string
	for _, dir := range []string{"netns", "attempts"} {
		entries, err := os.ReadDir(filepath.Join(runDir, dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return out, fmt.Errorf("list %s: %w", dir, err)
		}
		for _, e := range entries {
			id, isRecord := strings.CutSuffix(e.Name(), ".json")
			path := filepath.Join(runDir, dir, e.Name())
			switch {
			case dir == "attempts" && !isRecord, atomicfile.IsTemp(e.Name()):
				continue
			case !alive[id]:
				out = append(out, map[string]string{"netns": "network namespace ", "attempts": "network of a pod, "}[dir]+path)
			case isRecord:
				var a attempt
				if err := atomicfile.ReadJSON(path, &a); err == nil && a.Problem != "" {
					out = append(out, fmt.Sprintf("network of pod %s/%s, which cannot be detached: %s", a.Pod.Namespace, a.Pod.Name, a.Problem))
				}
			}
		}
	}
	known, addrs, err := bridge.Records(filepath.Join(runDir, "ipam"))
	if err != nil {
		return out, err
	}
	for addr, owner := range addrs {
		if id, _, _ := strings.Cut(owner, ":"); !alive[id] && !known.Owners[owner] {
			out = append(out, "address "+addr+" of "+owner)
		}
	}
	links, err := netlink.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return out, fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		if name := l.Attrs().Name; l.Type() == "veth" && strings.HasPrefix(name, bridge.VethPrefix(bridgeName)) && !known.Veths[name] {
			out = append(out, "link "+name)
		}
	}
	return out, nil
}

// CheckConf names what is wrong with the CNI configurations of a folder: files
// that are not valid, and plugins that are in none of the folders. used is the
// network that new pods get.
func CheckConf(confDir string, binDirs []string) (used string, problems []error) {
	files, err := confFiles(confDir)
	if err != nil {
		return "", []error{err}
	}
	if len(files) == 0 {
		return builtinName + ", the built-in one", nil
	}
	for _, f := range files {
		list, err := readConf(f)
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", f, err))
			continue
		}
		if used == "" {
			used = fmt.Sprintf("%s of %s", list.Name, f)
		}
		for _, p := range list.Plugins {
			if p.Network.Type != bridge.Type && !inAny(binDirs, p.Network.Type) {
				problems = append(problems, fmt.Errorf("%s: plugin %s is in none of %s", f, p.Network.Type, strings.Join(binDirs, ", ")))
			}
		}
	}
	return used, problems
}

func inAny(dirs []string, name string) bool {
	for _, d := range dirs {
		if st, err := os.Stat(filepath.Join(d, name)); err == nil && st.Mode()&0o111 != 0 && !st.IsDir() {
			return true
		}
	}
	return false
}
