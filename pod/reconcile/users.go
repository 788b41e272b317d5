package reconcile

import (
	"errors"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/runtime"
)

// Ids of the host that pods with users of their own have, 65536 each. They begin
// above those that useradd gives away for rootless containers.
const (
	firstUser    = 1 << 30
	usersPerPod  = 1 << 16
	lastUserOver = 1 << 31
)

// users are the ranges of ids that pods have, besides those that run already.
type users struct {
	mu    sync.Mutex
	first map[types.UID]uint32
}

// mapUsers gives a pod with hostUsers: false a range of the host's ids that no
// other pod has.
func (e *Engine) mapUsers(cfg *pod.Config, p *corev1.Pod) error {
	if p.Spec.HostUsers == nil || *p.Spec.HostUsers {
		return nil
	}
	e.users.mu.Lock()
	defer e.users.mu.Unlock()
	first, ok := e.users.first[p.UID]
	if !ok {
		var err error
		if first, err = e.freeUsers(); err != nil {
			return err
		}
		if e.users.first == nil {
			e.users.first = map[types.UID]uint32{}
		}
		e.users.first[p.UID] = first
	}
	cfg.UIDMaps = []runtime.IDMap{{HostID: first, Size: usersPerPod}}
	cfg.GIDMaps = []runtime.IDMap{{HostID: first, Size: usersPerPod}}
	return nil
}

// freeUsers finds a range; e.users.mu is held.
func (e *Engine) freeUsers() (uint32, error) {
	taken := map[uint32]bool{}
	for _, first := range e.users.first {
		taken[first/usersPerPod] = true
	}
	for _, p := range e.opts.Pods.Pods() {
		for _, m := range append(p.Config.UIDMaps[:len(p.Config.UIDMaps):len(p.Config.UIDMaps)], p.Config.GIDMaps...) {
			for n := m.HostID / usersPerPod; n <= (m.HostID+m.Size-1)/usersPerPod; n++ {
				taken[n] = true
			}
		}
	}
	for n := uint32(firstUser / usersPerPod); n < lastUserOver/usersPerPod; n++ {
		if !taken[n] {
			return n * usersPerPod, nil
		}
	}
	return 0, errors.New("all ranges of user ids are taken by pods with hostUsers: false; delete some of these")
}

// forget gives a pod's range to others.
func (u *users) forget(uid types.UID) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.first, uid)
}
