package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// order is the order in which figures are printed.
func order() []string {
	return []string{
		"pod ready", "RunPodSandbox", "CreateContainer", "StartContainer", "ExecSync", "ContainerStatus",
		"pod gone", "StopContainer", "RemoveContainer", "StopPodSandbox", "RemovePodSandbox",
		"ListPodSandbox", "ListContainers", "ListContainerStats", "ListPodSandboxStats", "ListPodSandboxMetrics",
		"ListPodSandbox" + busy, "ListContainers" + busy,
	}
}

// busy marks lists that were asked for while pods came and went.
const busy = " (busy)"

type bench struct {
	o       options
	runtime criv1.RuntimeServiceClient
	run     string // makes names unique
	image   string // id
	made    int
	timings timings
}

// pod is one pod with one container, and some more in a crowd.
type pod struct {
	sandbox, container string
	config             *criv1.PodSandboxConfig
}

// all runs every measurement.
func (b *bench) all(ctx context.Context, conn *grpc.ClientConn) (*results, error) {
	v, err := b.runtime.Version(ctx, &criv1.VersionRequest{})
	if err != nil {
		return nil, fmt.Errorf("ask for the version: %w", err)
	}
	st, err := criv1.NewImageServiceClient(conn).ImageStatus(ctx, &criv1.ImageStatusRequest{Image: &criv1.ImageSpec{Image: b.o.image}})
	if err != nil || st.Image == nil {
		return nil, fmt.Errorf("image %s is not there: %w", b.o.image, errors.Join(err, os.ErrNotExist))
	}
	b.image = st.Image.Id
	for range b.o.warm {
		if err := b.life(ctx); err != nil {
			return nil, err
		}
	}
	b.timings = timings{}
	for range b.o.rounds {
		if err := b.life(ctx); err != nil {
			return nil, err
		}
	}
	r := &results{CPUMillis: map[string]float64{}, Runtime: v.RuntimeName, Version: v.RuntimeVersion, PodsAtEnd: b.o.pods}
	if err = b.crowd(ctx, r); err != nil {
		return nil, err
	}
	r.Millis = b.timings.figures()
	return r, nil
}

// life is the whole life of a pod.
func (b *bench) life(ctx context.Context) error {
	p := b.next()
	err := b.up(ctx, p)
	if err == nil {
		err = b.use(ctx, p)
	}
	return errors.Join(err, b.down(ctx, p))
}

// crowd measures lists, memory and idle work with many pods; memory and work only of a daemon that it knows.
func (b *bench) crowd(ctx context.Context, r *results) error {
	empty, _, err := b.settled()
	if err != nil {
		return err
	}
	quiet := &bench{o: b.o, runtime: b.runtime, run: b.run + "-crowd", image: b.image} // a crowd's starts are not counted
	pods, err := quiet.gather(ctx)
	var full, cpu float64
	if err == nil {
		full, cpu, err = b.settled()
	}
	if err == nil {
		err = b.lists(ctx, "", r)
	}
	if err == nil {
		err = b.busyLists(ctx, r)
	}
	for _, p := range pods {
		err = errors.Join(err, quiet.down(ctx, p))
	}
	if b.o.daemon != 0 {
		r.MemoryMB, r.IdleCPU = &memory{Empty: empty, Full: full, PerPod: (full - empty) / float64(max(1, b.o.pods))}, cpu
	}
	return err
}

// gather brings up a crowd of pods, also those before one that failed.
func (b *bench) gather(ctx context.Context) (pods []*pod, err error) {
	for range b.o.pods {
		p := b.next()
		pods = append(pods, p)
		if err := b.up(ctx, p); err != nil {
			return pods, err
		}
		for i := range b.o.containers - 1 {
			if err := b.more(ctx, p, uint32(i+1)); err != nil {
				return pods, err
			}
		}
	}
	return pods, nil
}

// more starts one more container in a pod. It ends with the pod.
func (b *bench) more(ctx context.Context, p *pod, n uint32) error {
	c := b.container()
	c.Metadata.Attempt, c.LogPath = n, ""
	c.Command = []string{"/bin/sleep", "2147483647"}
	c.Labels = map[string]string{"io.kubernetes.container.name": "main", "io.kubernetes.pod.name": p.config.Metadata.Name, "io.kubernetes.pod.namespace": "cribench", "io.kubernetes.pod.uid": p.config.Metadata.Uid}
	c.Annotations = map[string]string{"io.kubernetes.container.hash": fmt.Sprintf("%08x", n), "io.kubernetes.container.restartCount": fmt.Sprint(n), "io.kubernetes.pod.terminationGracePeriod": "30"}
	r, err := b.runtime.CreateContainer(ctx, &criv1.CreateContainerRequest{PodSandboxId: p.sandbox, Config: c, SandboxConfig: p.config})
	if err == nil {
		_, err = b.runtime.StartContainer(ctx, &criv1.StartContainerRequest{ContainerId: r.ContainerId})
	}
	return err
}

// busyLists measures lists while a pod comes and goes all the time.
func (b *bench) busyLists(ctx context.Context, r *results) error {
	other := &bench{o: b.o, runtime: b.runtime, run: b.run + "-busy", image: b.image}
	stop, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				ended <- nil
				return
			default:
			}
			if err := other.life(ctx); err != nil {
				ended <- err
				return
			}
		}
	}()
	err := b.lists(ctx, busy, r)
	close(stop)
	return errors.Join(err, <-ended)
}

// lists measures each list, and, while nothing else is asked, what the runtime works for one.
func (b *bench) lists(ctx context.Context, when string, r *results) error {
	calls := []struct {
		name string
		call func() error
	}{
		{"ListPodSandbox", func() error { return second(b.runtime.ListPodSandbox(ctx, &criv1.ListPodSandboxRequest{})) }},
		{"ListContainers", func() error { return second(b.runtime.ListContainers(ctx, &criv1.ListContainersRequest{})) }},
		{"ListContainerStats", func() error { return second(b.runtime.ListContainerStats(ctx, &criv1.ListContainerStatsRequest{})) }},
		{"ListPodSandboxStats", func() error { return second(b.runtime.ListPodSandboxStats(ctx, &criv1.ListPodSandboxStatsRequest{})) }},
		{"ListPodSandboxMetrics", func() error {
			err := second(b.runtime.ListPodSandboxMetrics(ctx, &criv1.ListPodSandboxMetricsRequest{}))
			if status.Code(err) == codes.Unimplemented {
				return nil // as older runtimes say
			}
			return err
		}},
	}
	if when != "" {
		calls = calls[:2] // stats have no locks to wait for
	}
	for _, c := range calls {
		_, before, err := b.usage()
		if err != nil {
			return err
		}
		for range b.o.rounds {
			if err := b.timed(c.name+when, c.call); err != nil {
				return err
			}
		}
		_, after, err := b.usage()
		if err != nil {
			return err
		}
		if b.o.daemon != 0 && when == "" {
			r.CPUMillis[c.name] = (after - before).Seconds() * 1000 / float64(max(1, b.o.rounds))
		}
	}
	return nil
}

func second[T any](_ T, err error) error { return err }

// timed runs one call and keeps its duration.
func (b *bench) timed(name string, call func() error) error {
	start := time.Now()
	if err := call(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	b.timings.add(name, time.Since(start))
	return nil
}

// next is a pod as a kubelet would ask for.
func (b *bench) next() *pod {
	b.made++
	name := fmt.Sprintf("bench-%s-%d", b.run, b.made)
	return &pod{config: &criv1.PodSandboxConfig{
		Metadata:     &criv1.PodSandboxMetadata{Name: name, Uid: name, Namespace: "cribench"},
		Hostname:     fmt.Sprintf("bench-%d", b.made),
		LogDirectory: filepath.Join(b.o.logs, name),
		DnsConfig:    &criv1.DNSConfig{Servers: []string{"10.96.0.10"}, Searches: []string{"svc.cluster.local"}, Options: []string{"ndots:5"}},
		Linux:        &criv1.LinuxPodSandboxConfig{CgroupParent: b.o.cgroupParent, SecurityContext: &criv1.LinuxSandboxSecurityContext{Seccomp: defaultSeccomp()}},
	}}
}

func defaultSeccomp() *criv1.SecurityProfile {
	return &criv1.SecurityProfile{ProfileType: criv1.SecurityProfile_RuntimeDefault}
}

// up brings a pod with one running container up.
func (b *bench) up(ctx context.Context, p *pod) error {
	if err := os.MkdirAll(p.config.LogDirectory, 0o755); err != nil {
		return fmt.Errorf("make the log folder: %w", err)
	}
	return b.timed("pod ready", func() error {
		err := b.timed("RunPodSandbox", func() error {
			r, err := b.runtime.RunPodSandbox(ctx, &criv1.RunPodSandboxRequest{Config: p.config})
			p.sandbox = r.GetPodSandboxId()
			return err
		})
		if err != nil {
			return err
		}
		err = b.timed("CreateContainer", func() error {
			r, err := b.runtime.CreateContainer(ctx, &criv1.CreateContainerRequest{PodSandboxId: p.sandbox, Config: b.container(), SandboxConfig: p.config})
			p.container = r.GetContainerId()
			return err
		})
		if err != nil {
			return err
		}
		return b.timed("StartContainer", func() error {
			_, err := b.runtime.StartContainer(ctx, &criv1.StartContainerRequest{ContainerId: p.container})
			return err
		})
	})
}

func (b *bench) container() *criv1.ContainerConfig {
	return &criv1.ContainerConfig{
		Metadata: &criv1.ContainerMetadata{Name: "main"},
		Image:    &criv1.ImageSpec{Image: b.image, UserSpecifiedImage: b.o.image},
		Command:  []string{"/bin/sh", "-c", `trap "exit 0" TERM; sleep 2147483647 & wait`, payload},
		LogPath:  "main.log",
		Linux: &criv1.LinuxContainerConfig{
			Resources:       &criv1.LinuxContainerResources{CpuShares: 2, OomScoreAdj: 1000},
			SecurityContext: &criv1.LinuxContainerSecurityContext{Seccomp: defaultSeccomp(), MaskedPaths: []string{"/proc/kcore", "/proc/keys", "/sys/firmware"}, ReadonlyPaths: []string{"/proc/sys", "/proc/irq"}},
		},
	}
}

// use runs a command in the container, which also gives it time to set its trap.
func (b *bench) use(ctx context.Context, p *pod) error {
	err := b.timed("ExecSync", func() error {
		r, err := b.runtime.ExecSync(ctx, &criv1.ExecSyncRequest{ContainerId: p.container, Cmd: []string{"/bin/true"}, Timeout: 30})
		if err == nil && r.ExitCode != 0 {
			err = fmt.Errorf("exit code %d: %s", r.ExitCode, r.Stderr)
		}
		return err
	})
	if err != nil {
		return err
	}
	return b.timed("ContainerStatus", func() error {
		_, err := b.runtime.ContainerStatus(ctx, &criv1.ContainerStatusRequest{ContainerId: p.container})
		return err
	})
}

// down takes away what of the pod is there.
func (b *bench) down(ctx context.Context, p *pod) error {
	if p.sandbox == "" {
		return nil
	}
	err := b.timed("pod gone", func() error {
		return errors.Join(
			b.timed("StopContainer", func() error {
				_, err := b.runtime.StopContainer(ctx, &criv1.StopContainerRequest{ContainerId: p.container, Timeout: 10})
				return err
			}),
			b.timed("RemoveContainer", func() error {
				_, err := b.runtime.RemoveContainer(ctx, &criv1.RemoveContainerRequest{ContainerId: p.container})
				return err
			}),
			b.timed("StopPodSandbox", func() error {
				_, err := b.runtime.StopPodSandbox(ctx, &criv1.StopPodSandboxRequest{PodSandboxId: p.sandbox})
				return err
			}),
			b.timed("RemovePodSandbox", func() error {
				_, err := b.runtime.RemovePodSandbox(ctx, &criv1.RemovePodSandboxRequest{PodSandboxId: p.sandbox})
				return err
			}),
		)
	})
	return errors.Join(err, os.RemoveAll(p.config.LogDirectory))
}
