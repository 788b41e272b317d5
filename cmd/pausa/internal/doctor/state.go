package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"

	"github.com/pausa-run/pausa/network"
	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/runtime"
)

func (h Host) daemon(context.Context) []Check {
	switch {
	case h.Daemon.Err != nil:
		return fail("pausa serve, or systemctl start pausa", "%v", h.Daemon.Err)
	case h.Daemon.Version != h.Version:
		return warn("restart the daemon: containers go on", "the daemon is of version %s, this program of %s", h.Daemon.Version, h.Version)
	}
	return ok("version %s", h.Daemon.Version)
}

func (h Host) keeper(ctx context.Context) []Check {
	client, err := runtime.Connect(ctx, runtime.SocketPath(h.Config.Run))
	if err != nil {
		if h.Daemon.Err != nil {
			return ok("none runs, as no daemon does")
		}
		return fail("restart the daemon: it starts one", "the keeper does not answer: pods can neither be started nor stopped")
	}
	defer func() { _ = client.Close() }()
	info, err := client.Hello(ctx)
	switch {
	case err != nil:
		return fail("restart the daemon: it starts one", "the keeper does not answer: %v", err)
	case info.Version != h.Version:
		return warn(fmt.Sprintf("kill -9 %d: the daemon starts the new one, and containers go on", info.Pid), "the keeper is of version %s, this program of %s", info.Version, h.Version)
	}
	return ok("version %s, pid %d", info.Version, info.Pid)
}

// files finds records that could not be read and were set aside.
func (h Host) files(context.Context) []Check {
	var found []string
	for _, pattern := range []string{
		filepath.Join(h.Config.Run, "bad", "*"), filepath.Join(h.Config.Run, "*", "*", "*.bad"), filepath.Join(h.Config.Run, "*", "*", "*", "*.bad"),
		filepath.Join(h.Config.State, "objects", "bad", "*"), filepath.Join(h.Config.State, "images", "broken-*"),
	} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			return warn("", "%v", err)
		}
		found = append(found, names...)
	}
	_, err := pod.ReadRecords(h.Config.Run)
	var out []Check
	if err != nil {
		out = append(out, fail("restart the daemon: it sets them aside, and makes declared pods again", "records of pods that cannot be read: %v", err)...)
	}
	if len(found) > 0 {
		out = append(out, warn("look at them; what they declared has to be applied anew; then remove them", "files that could not be read, and were set aside: %s", some(found))...)
	}
	if len(out) == 0 {
		return ok("all records can be read")
	}
	return out
}

// settle is for how long something must be there without a record to be a leak:
// what is being made or removed has none for a moment.
const settle = 300 * time.Millisecond

// leaks compares the kernel with the records, twice.
func (h Host) leaks(ctx context.Context) []Check {
	first, err := h.unowned()
	if err == nil && len(first) > 0 {
		select {
		case <-ctx.Done():
		case <-time.After(settle):
		}
		var again []string
		again, err = h.unowned()
		first = slices.DeleteFunc(first, func(s string) bool { return !slices.Contains(again, s) })
	}
	if err != nil {
		return warn("run as root", "leaks cannot be looked for: %v", err)
	}
	if len(first) > 0 {
		return warn("restart the daemon: it gives back what no pod has", "%d things belong to no pod: %s", len(first), some(first))
	}
	return ok("no namespace, mount, cgroup, link or address without a pod")
}

// unowned is what is there without a record of its pod or container.
func (h Host) unowned() ([]string, error) {
	pods, _ := pod.ReadRecords(h.Config.Run) // what cannot be read is told elsewhere, and has an id all the same
	alive := map[string]bool{}
	for i := range pods {
		alive[pods[i].ID] = true
	}
	folders, err := filepath.Glob(filepath.Join(h.Config.Run, "pods", "*"))
	if err != nil {
		return nil, err
	}
	for _, f := range folders {
		alive[filepath.Base(f)] = true
	}
	containers, err := filepath.Glob(filepath.Join(h.Config.Run, "pods", "*", "containers", "*.json"))
	if err != nil {
		return nil, err
	}
	for _, f := range containers {
		alive[strings.TrimSuffix(filepath.Base(f), ".json")] = true
	}
	out, err := network.Leaks(filepath.Join(h.Config.Run, "network"), h.Config.Bridge, alive)
	if err != nil {
		return nil, err
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(h.Config.Run))
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	for _, m := range mounts {
		if id := h.ownerOf(m.Mountpoint); id != "" && !alive[id] {
			out = append(out, "mount "+m.Mountpoint)
		}
	}
	for _, dir := range h.Cgroups {
		groups, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, g := range groups {
			if id, isPod := strings.CutPrefix(g.Name(), "pod"); g.IsDir() && isPod && !alive[id] {
				out = append(out, "cgroup "+filepath.Join(dir, g.Name()))
			}
		}
	}
	return out, nil
}

// ownerOf is the pod or container that a mount is for, "" for none.
func (h Host) ownerOf(path string) string {
	for _, folder := range []string{"pods", "images/rootfs"} {
		if rest, found := strings.CutPrefix(path, filepath.Join(h.Config.Run, folder)+"/"); found {
			id, _, _ := strings.Cut(rest, "/")
			return id
		}
	}
	return ""
}

func (h Host) images(ctx context.Context) []Check {
	if h.Daemon.Err != nil {
		if broken, _ := filepath.Glob(filepath.Join(h.Config.State, "images", "broken-*")); len(broken) > 0 {
			return warn("start the daemon: it brings the images back", "databases of images were damaged and set aside")
		}
		return ok("not looked at: the daemon does not run, and checks them when it starts")
	}
	count, bytes, err := h.Daemon.Orphans(ctx)
	switch {
	case err != nil:
		return fail("see the daemon's log", "the image store cannot account for what it has: %v", err)
	case count > 0:
		return warn("pausa images gc", "%d files and layers of %d MB belong to no image and no container", count, bytes>>20)
	}
	return ok("each file of the store belongs to an image or a container")
}
