//go:build cgo

package keeper

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runc/libcontainer/system"
	"golang.org/x/sys/unix"
)

// orphanPatience is how long a zombie may be somebody's who is about to collect it.
const orphanPatience = time.Second

// reapOrphans collects children that nobody waits for: what a container in the
// host's PID namespace leaves behind. It never waits for just any child, which
// would take the exits away from libcontainer and the watchers.
func (k *Keeper) reapOrphans(ctx context.Context) {
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	defer signal.Stop(children)
	for {
		select {
		case <-ctx.Done():
			return
		case <-children:
		}
		for again := true; again; {
			select {
			case <-ctx.Done():
				return
			case <-time.After(orphanPatience):
			}
			again = k.reapOnce()
		}
	}
}

// reapOnce collects the zombies that were there last time already, and says whether others are there.
func (k *Keeper) reapOnce() (more bool) {
	now := map[int]bool{}
	for _, pid := range zombies() {
		if k.orphans[pid] {
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
			continue
		}
		now[pid], more = true, true
	}
	k.orphans = now
	return more
}

// zombies are the keeper's children that have ended.
func zombies() []int {
	var list []int
	tasks, _ := os.ReadDir("/proc/self/task")
	for _, t := range tasks {
		data, _ := os.ReadFile(fmt.Sprintf("/proc/self/task/%s/children", t.Name()))
		for _, field := range strings.Fields(string(data)) {
			pid, _ := strconv.Atoi(field)
			if stat, err := system.Stat(pid); err == nil && stat.State == system.Zombie {
				list = append(list, pid)
			}
		}
	}
	return list
}
