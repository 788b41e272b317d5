//go:build integration && kubelet

package integration

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// everyWay runs a test with a kubelet as it comes, and with one that uses all it can.
func everyWay(t *testing.T, name string, test func(*nodeAgent)) {
	for way, gates := range map[string]map[string]bool{"default": nil, "gates": allGates()} {
		t.Run(way, func(t *testing.T) { test(newAgent(t, name+way, gates)) })
	}
}

func (k *nodeAgent) clear(names ...string) {
	k.t.Helper()
	for _, name := range names {
		k.withdraw(name)
	}
	k.awaitGone()
}

// A container whose liveness probe fails is restarted; one that is not ready stays as it is.
func TestKubeletProbes(t *testing.T) {
	everyWay(t, "probes", func(k *nodeAgent) {
		c := shell("main", "touch /tmp/ok; while :; do sleep 0.2; done")
		probe := func(file string) *corev1.Probe {
			return &corev1.Probe{PeriodSeconds: 1, FailureThreshold: 1, ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"test", "-e", file}}}}
		}
		c.LivenessProbe, c.ReadinessProbe = probe("/tmp/ok"), probe("/tmp/ready")
		c.LivenessProbe.InitialDelaySeconds = 2
		k.declare(namedPod("probed", c))
		p := k.await("probed", "runs unready", func(p *corev1.Pod) error {
			if mainStatus(p).State.Running == nil || isReady(*p) {
				return fmt.Errorf("it does not")
			}
			return nil
		})
		if _, err := k.run(p, "main", "touch", "/tmp/ready"); err != nil {
			k.t.Fatal(err)
		}
		k.awaitReady("probed")
		if _, err := k.run(p, "main", "rm", "/tmp/ok"); err != nil {
			k.t.Fatal(err)
		}
		k.await("probed", "was restarted by its probe", func(p *corev1.Pod) error {
			if s := mainStatus(p); s.RestartCount != 1 || s.State.Running == nil {
				return fmt.Errorf("restarts: %d", s.RestartCount)
			}
			return nil
		})
		k.clear("probed")
	})
}

// A volume that is an image.
func TestKubeletImageVolume(t *testing.T) {
	k := newAgent(t, "imagevol", nil)
	c := shell("main", "while :; do sleep 1; done")
	c.VolumeMounts = []corev1.VolumeMount{{Name: "img", MountPath: "/img"}}
	p := namedPod("volume", c)
	p.Spec.Volumes = []corev1.Volume{{Name: "img", VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: busybox, PullPolicy: corev1.PullNever}}}}
	k.declare(p)
	p = k.awaitReady("volume")
	if out, err := k.run(p, "main", "sh", "-c", "ls /img/bin/busybox && ! touch /img/x 2>/dev/null && echo read-only"); err != nil || !strings.HasSuffix(out, "read-only\n") {
		t.Errorf("the volume: %q, %v", out, err)
	}
	k.clear("volume")
}

// A pod with a user namespace of its own, probes and a volume: its root is nobody on
// the host, and root on its volume.
func TestKubeletUserNamespace(t *testing.T) {
	everyWay(t, "userns", func(k *nodeAgent) {
		own := false
		p := webPod()
		p.Spec.HostUsers = &own
		k.declare(p)
		p = k.awaitReady("web")
		out, err := k.run(p, "main", "sh", "-c", "id -u; cat /proc/self/uid_map; touch /www/mine && stat -c %u /www/mine")
		fields := strings.Fields(out)
		if err != nil || len(fields) != 5 || fields[0] != "0" || fields[1] != "0" || fields[2] == "0" || fields[3] != "65536" || fields[4] != "0" {
			k.t.Errorf("who is root: %q, %v", out, err)
		}
		k.clear("web")
	})
}

// A pod of which every container may be changed only by a restart.
func TestKubeletResizeByRestart(t *testing.T) {
	everyWay(t, "resize", func(k *nodeAgent) {
		make := func(memory string) *corev1.Pod {
			c := shell("main", "while :; do sleep 0.2; done")
			c.Resources = limits("100m", memory)
			c.ResizePolicy = []corev1.ContainerResizePolicy{{ResourceName: corev1.ResourceMemory, RestartPolicy: corev1.RestartContainer}}
			return namedPod("resized", c)
		}
		k.declare(make("32Mi"))
		k.awaitReady("resized")
		k.declare(make("64Mi"))
		k.await("resized", "was restarted with 64Mi", func(p *corev1.Pod) error {
			s := mainStatus(p)
			if s.RestartCount != 1 || s.Resources == nil || s.Resources.Limits.Memory().Value() != 64<<20 {
				return fmt.Errorf("it has %+v", s)
			}
			return nil
		})
		k.clear("resized")
	})
}

// The daemon, the keeper and the kubelet end in turn; no container notices.
func TestKubeletRestarts(t *testing.T) {
	everyWay(t, "restarts", func(k *nodeAgent) {
		for i := range 4 {
			k.declare(namedPod(fmt.Sprint("stay", i), shell("main", "while :; do sleep 0.5; done"), shell("more", "while :; do sleep 0.5; done")))
		}
		for i := range 4 {
			k.awaitReady(fmt.Sprint("stay", i))
		}
		before := k.containers()
		for _, end := range []func() error{
			func() error { return k.KillDaemon(syscall.SIGKILL) },
			func() error { return k.KillKeeper(syscall.SIGKILL) },
			func() error { k.stop(syscall.SIGKILL); return nil },
			func() error { return k.KillDaemon(syscall.SIGTERM) },
		} {
			if err := end(); err != nil {
				k.t.Fatal(err)
			}
			select {
			case <-k.done:
				k.start()
			default:
			}
			if _, _, code := k.CLI("", "info"); code != 0 {
				k.restart()
			}
			time.Sleep(3 * time.Second) // the kubelet looks every second
			k.sameContainers(before)
		}
		k.clear("stay0", "stay1", "stay2", "stay3")
	})
}
