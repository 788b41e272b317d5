package probe

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

func TestReadiness(t *testing.T) {
	w := newWorld(t, "")
	w.access.set("ready", 1)
	w.Watch(Target{ContainerID: "c", StartedAt: w.clock.Now(), Readiness: command("ready", func(p *corev1.Probe) {
		p.InitialDelaySeconds, p.PeriodSeconds, p.SuccessThreshold, p.FailureThreshold = 5, 2, 2, 3
	})})
	w.clock.advance(4 * time.Second)
	if n := w.access.count("ready"); n != 0 {
		t.Errorf("asked %d times before the initial delay", n)
	}
	w.clock.advance(time.Second)
	w.want("after a failure", true, false, "")
	w.access.set("ready", 0)
	w.clock.advance(2 * time.Second)
	w.want("one success of two", true, false, "")
	w.clock.advance(2 * time.Second)
	w.want("two successes", true, true, "")
	w.access.set("ready", 7)
	w.clock.advance(4 * time.Second)
	w.want("two failures of three", true, true, "")
	w.access.set("ready", 0)
	w.clock.advance(2 * time.Second)
	w.access.set("ready", 7)
	w.clock.advance(4 * time.Second)
	w.want("two failures after a success", true, true, "")
	w.clock.advance(2 * time.Second)
	w.want("three failures", true, false, "")
	if st, _ := w.State("c"); st.Message != "the command ends with 7: " || !st.Since.Equal(w.clock.Now()) {
		t.Errorf("state %+v", st)
	}
	if w.changes != 2 {
		t.Errorf("%d changes were told, want ready and not ready", w.changes)
	}
	if n := w.access.count("ready"); n != 9 {
		t.Errorf("asked %d times in %s", n, 16*time.Second)
	}
}

func TestStartupGatesTheOthers(t *testing.T) {
	w := newWorld(t, "")
	w.access.set("up", 1)
	w.access.set("live", 0)
	w.access.set("ready", 0)
	w.Watch(Target{ContainerID: "c", StartedAt: w.clock.Now(), Startup: command("up"), Readiness: command("ready"), Liveness: command("live")})
	w.clock.advance(19 * time.Second)
	w.want("while starting", false, false, "")
	if n := w.access.count("live") + w.access.count("ready"); n != 0 {
		t.Errorf("others were asked %d times before the container has started", n)
	}
	w.access.set("up", 0)
	w.clock.advance(time.Second)
	w.want("started", true, true, "") // the readiness probe follows at once
	asked := w.access.count("up")
	w.clock.advance(time.Minute)
	if n := w.access.count("up"); n != asked {
		t.Error("the startup probe goes on after its success")
	}
	if n := w.access.count("live"); n != 7 {
		t.Errorf("liveness was asked %d times in a minute", n)
	}
}

func TestFailureAsksForTheEnd(t *testing.T) {
	for _, kind := range []string{startup, liveness} {
		t.Run(kind, func(t *testing.T) {
			w := newWorld(t, "")
			w.access.set("p", 1)
			grace := int64(3)
			p := command("p", func(p *corev1.Probe) { p.FailureThreshold, p.TerminationGracePeriodSeconds = 2, &grace })
			target := Target{ContainerID: "c", StartedAt: w.clock.Now(), Liveness: p}
			if kind == startup {
				target.Startup, target.Liveness = p, command("other")
			}
			w.Watch(target)
			w.clock.advance(9 * time.Second)
			w.want("one failure", kind == liveness, kind == liveness, "")
			w.clock.advance(time.Second)
			w.want("two failures", kind == liveness, false, kind)
			if st, _ := w.State("c"); st.Grace == nil || *st.Grace != 3 {
				t.Errorf("grace period %v", st.Grace)
			}
			w.Watch(target) // as every pass does until the container has ended
			if n := w.clock.pending(); n != 0 {
				t.Errorf("%d timers are left", n)
			}
		})
	}
}

// What could not be asked is no answer.
func TestUnknownDoesNotCount(t *testing.T) {
	w := newWorld(t, "")
	w.access.err = errors.New("the keeper is away")
	w.Watch(Target{ContainerID: "c", StartedAt: w.clock.Now(), Liveness: command("p", func(p *corev1.Probe) { p.FailureThreshold = 1 })})
	w.clock.advance(time.Minute)
	w.want("nobody could ask", true, true, "")
}

// A server that is not there yet is asked again soon, and later once it is ready.
func TestSoonReady(t *testing.T) {
	w := newWorld(t, "")
	p := command("")
	p.Exec, p.TCPSocket = nil, &corev1.TCPSocketAction{}
	w.Watch(Target{ContainerID: "c", Host: "127.0.0.1", StartedAt: w.clock.Now(), Readiness: p}) // port 0: refused
	if n := w.clock.advance(time.Second); n < 5 {
		t.Errorf("asked %d times in the first second", n)
	}
	p.TCPSocket.Port.IntVal = int32(listen(t))
	w.clock.advance(2 * time.Second)
	w.want("it listens", true, true, "")
	if n := w.clock.advance(time.Minute); n != 6 {
		t.Errorf("asked %d times in a minute", n)
	}
}

// A daemon that starts again finds the states, and what is ready stays so until its probe says no.
func TestStatesOutliveTheSet(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "probes")
	w := newWorld(t, dir)
	w.access.set("ready", 0)
	target := Target{ContainerID: "c", StartedAt: w.clock.Now(), Readiness: command("ready")}
	w.Watch(target)
	w.clock.advance(time.Second)
	w.want("ready", true, true, "")
	w.Close()
	if n := w.clock.pending(); n != 0 {
		t.Errorf("%d timers outlive Close", n)
	}
	if err := os.WriteFile(filepath.Join(dir, "bad"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.reopen(dir)
	w.want("after a restart", true, true, "")
	w.access.set("ready", 1)
	w.Watch(target)
	w.clock.advance(11 * time.Second)
	w.want("two failures of three", true, true, "")
	w.clock.advance(10 * time.Second)
	w.want("three failures", true, false, "")

	w.Stop("c")
	w.want("stopped", true, false, "")
	w.Retain(func(string) bool { return false })
	if _, ok := w.State("c"); ok || w.clock.pending() != 0 {
		t.Error("the container is not forgotten")
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}

// Each failure is told, but those of checks that come sooner than their period.
func TestFailuresAreTold(t *testing.T) {
	w := newWorld(t, "")
	var told []string
	w.opts.Failed = func(t Target, kind, message string) { told = append(told, t.ContainerID+" "+kind+" "+message) }
	w.access.set("live", 1)
	w.Watch(Target{ContainerID: "c", StartedAt: w.clock.Now(), Liveness: command("live", func(p *corev1.Probe) { p.PeriodSeconds, p.FailureThreshold = 1, 2 })})
	w.clock.advance(2 * time.Second)
	if want := []string{"c liveness the command ends with 1: ", "c liveness the command ends with 1: "}; !slices.Equal(told, want) {
		t.Errorf("told %q, want %q", told, want)
	}
	quick := &worker{kind: readiness, probe: &corev1.Probe{PeriodSeconds: 10}, soon: time.Second}
	slow := &worker{kind: readiness, probe: &corev1.Probe{PeriodSeconds: 10}, soon: 16 * time.Second}
	if exec := (&worker{kind: readiness, probe: &corev1.Probe{PeriodSeconds: 10}}); !quick.hasty() || slow.hasty() || exec.hasty() {
		t.Error("which checks are hasty")
	}
}
