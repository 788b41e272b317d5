package reconcile

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/pausa-run/pausa/pod"
)

// The kubelet's back-off: the first restart at once, then 10 s doubling to 300 s,
// forgotten after ten minutes of running.
const (
	backoffFirst = 10 * time.Second
	backoffMax   = 300 * time.Second
	backoffReset = 10 * time.Minute
	backoffShown = time.Second // after a failed pull its reason gives way to that of the back-off
)

// Reasons of waiting, as the kubelet words them.
const (
	reasonCreating     = "ContainerCreating"
	reasonInitializing = "PodInitializing"
	reasonCrashLoop    = "CrashLoopBackOff"
	reasonNeverPull    = "ErrImageNeverPull"
	reasonPull         = "ErrImagePull"
	reasonPullBackoff  = "ImagePullBackOff"
	reasonBadImage     = "InvalidImageName"
	reasonUnverified   = "SignatureValidationFailed"
	reasonCreate       = "CreateContainerError"
	reasonCreateConfig = "CreateContainerConfigError"
	reasonRun          = "RunContainerError"
	reasonSandbox      = "FailedCreatePodSandBox"
	reasonVolume       = "FailedMount"
	reasonStopping     = "FailedKillPod"
	sandboxNote        = "" // the note of the pod itself, beside those of its containers
)

// waiting is an error that becomes a container's waiting state.
type waiting struct {
	reason string
	err    error
}

func (w *waiting) Error() string { return w.reason + ": " + w.err.Error() }
func (w *waiting) Unwrap() error { return w.err }

// note is why something does not run now, and until when nothing is tried.
type note struct {
	reason, message string
	until           time.Time
	delay           time.Duration
	exit            string // id of the container whose exit set the delay
}

// notes are the reasons that no fact tells. They are lost with the daemon, and
// then found out again by the next try.
type notes struct {
	mu  sync.Mutex
	all map[types.UID]map[string]*note // by pod and container
}

func newNotes() *notes { return &notes{all: map[types.UID]map[string]*note{}} }

func (n *notes) get(uid types.UID, name string) note {
	n.mu.Lock()
	defer n.mu.Unlock()
	if v := n.all[uid][name]; v != nil {
		return *v
	}
	return note{}
}

// change gives f the note, made if there is none.
func (n *notes) change(uid types.UID, name string, f func(*note)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.all[uid] == nil {
		n.all[uid] = map[string]*note{}
	}
	if n.all[uid][name] == nil {
		n.all[uid][name] = &note{}
	}
	f(n.all[uid][name])
}

// clear says that all is well; the delay of restarts stays.
func (n *notes) clear(uid types.UID, name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	v := n.all[uid][name]
	switch {
	case v == nil:
	case v.exit == "":
		delete(n.all[uid], name)
	default:
		v.reason, v.message, v.until = "", "", time.Time{}
	}
}

func (n *notes) forget(uid types.UID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.all, uid)
}

// failed notes that a try came to nothing, and returns how long to wait for the next.
func (n *notes) failed(uid types.UID, name, reason, message string, now time.Time) time.Duration {
	var delay time.Duration
	n.change(uid, name, func(v *note) {
		v.delay = doubled(v.delay)
		v.reason, v.message, v.until = reason, message, now.Add(v.delay)
		delay = v.delay
	})
	return delay
}

func doubled(d time.Duration) time.Duration {
	return min(max(2*d, backoffFirst), backoffMax)
}

// restart says how long to wait, from now, before the container that has exited
// is started again; 0 is now. Asking again about the same exit changes nothing.
// attempts are those that are known, newest first.
func (n *notes) restart(uid types.UID, attempts []pod.Container, now time.Time) time.Duration {
	var wait time.Duration
	c := attempts[0]
	n.change(uid, c.Config.Name, func(v *note) {
		if v.exit != c.ID {
			known := v.exit != ""
			v.exit = c.ID
			switch {
			case ranFor(c) >= backoffReset:
				v.delay = 0
			case known:
				v.delay = doubled(v.delay)
			default:
				v.delay = derived(attempts)
			}
			v.until = finishedAt(c).Add(v.delay)
		}
		if v.reason != "" && v.reason != reasonCrashLoop {
			return // a try since then failed for another reason, which start heeds
		}
		if wait = v.until.Sub(now); wait > 0 && v.delay > 0 {
			v.reason = reasonCrashLoop
			v.message = "back-off " + v.delay.String() + " restarting failed container " + c.Config.Name
			return
		}
		wait = 0
	})
	return wait
}

// derived is the delay after an exit of which nothing is noted: this daemon has
// just started. It follows from the count of restarts, so that a container does
// not get one more for each start of the daemon.
func derived(attempts []pod.Container) time.Duration {
	n := attempts[0].Config.Attempt
	if n > 0 && len(attempts) > 1 && ranFor(attempts[1]) >= backoffReset {
		n = 1 // the attempt before ran long: its restart was the first again
	}
	var delay time.Duration
	for ; n > 0 && delay < backoffMax; n-- {
		delay = doubled(delay)
	}
	return delay
}

func finishedAt(c pod.Container) time.Time {
	if c.Exit == nil {
		return c.CreatedAt
	}
	return c.Exit.FinishedAt
}

func ranFor(c pod.Container) time.Duration {
	if c.StartedAt.IsZero() {
		return 0
	}
	return finishedAt(c).Sub(c.StartedAt)
}
