package cri

import (
	"context"
	"slices"
	"time"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pausa-run/pausa/pod"
)

// maxSeconds is the longest time that a time.Duration can say.
const maxSeconds = int64(1<<63-1) / int64(time.Second)

// CreateContainer makes a container in a pod, not running yet.
func (s *runtimeService) CreateContainer(ctx context.Context, r *criv1.CreateContainerRequest) (*criv1.CreateContainerResponse, error) {
	if r.PodSandboxId == "" {
		return nil, invalid("pod_sandbox_id", "is empty")
	}
	p, err := s.o.Pods.Pod(r.PodSandboxId)
	if err != nil {
		return nil, err
	}
	if err := checkSandboxConfig(r.SandboxConfig, &p.Config); err != nil {
		return nil, err
	}
	cfg, err := s.settledConfig(ctx, r.Config, &p.Config)
	if err != nil {
		return nil, err
	}
	if cfg.TargetContainer != "" {
		if err := s.checkTarget(cfg.TargetContainer, p.ID); err != nil {
			return nil, err
		}
	}
	id, err := s.o.Pods.CreateContainer(ctx, p.ID, cfg)
	if err != nil {
		return nil, err
	}
	return &criv1.CreateContainerResponse{ContainerId: id}, nil
}

// settledConfig is what a container's configuration means on this host.
func (s *runtimeService) settledConfig(ctx context.Context, c *criv1.ContainerConfig, p *pod.Config) (pod.ContainerConfig, error) {
	cfg, err := containerConfig(c, *p)
	if err != nil {
		return cfg, err
	}
	relabel := slices.IndexFunc(c.Mounts, (*criv1.Mount).GetSelinuxRelabel)
	return cfg, s.host.settle(ctx, &cfg, p.LogDirectory, relabel)
}

// checkSandboxConfig sees that the repeated configuration, if there, is of this pod. What counts is the one that made it.
func checkSandboxConfig(c *criv1.PodSandboxConfig, p *pod.Config) error {
	m := c.GetMetadata()
	if m != nil && (m.Name != p.Name || m.Namespace != p.Namespace || m.Uid != p.UID) {
		return invalid("sandbox_config.metadata", "is of pod %.80q in %.80q, but the sandbox is %s in %s", m.Name, m.Namespace, p.Name, p.Namespace)
	}
	return nil
}

func (s *runtimeService) checkTarget(id, podID string) error {
	const field = "config.linux.security_context.namespace_options.target_id"
	t, err := s.o.Pods.Container(id)
	if err != nil {
		return invalid(field, "%v", err)
	}
	if t.PodID != podID {
		return invalid(field, "container %s is in another pod", t.ID)
	}
	return nil
}

// StartContainer starts a created container.
func (s *runtimeService) StartContainer(ctx context.Context, r *criv1.StartContainerRequest) (*criv1.StartContainerResponse, error) {
	if r.ContainerId == "" {
		return nil, invalid("container_id", "is empty")
	}
	return &criv1.StartContainerResponse{}, s.o.Pods.StartContainer(ctx, r.ContainerId)
}

// StopContainer stops a container, by force after timeout seconds; nothing to do is no error.
func (s *runtimeService) StopContainer(ctx context.Context, r *criv1.StopContainerRequest) (*criv1.StopContainerResponse, error) {
	if r.ContainerId == "" {
		return nil, invalid("container_id", "is empty")
	}
	grace, err := seconds("timeout", r.Timeout)
	if err != nil {
		return nil, err
	}
	return &criv1.StopContainerResponse{}, s.o.Pods.StopContainer(ctx, r.ContainerId, grace)
}

func seconds(field string, n int64) (time.Duration, error) {
	if n < 0 {
		return 0, invalid(field, "%d s is negative", n)
	}
	return time.Duration(min(n, maxSeconds)) * time.Second, nil
}

// RemoveContainer removes a container, by force if it runs; nothing to do is no error.
func (s *runtimeService) RemoveContainer(ctx context.Context, r *criv1.RemoveContainerRequest) (*criv1.RemoveContainerResponse, error) {
	if r.ContainerId == "" {
		return nil, invalid("container_id", "is empty")
	}
	return &criv1.RemoveContainerResponse{}, s.o.Pods.RemoveContainer(ctx, r.ContainerId)
}

// ContainerStatus tells of one container.
func (s *runtimeService) ContainerStatus(_ context.Context, r *criv1.ContainerStatusRequest) (*criv1.ContainerStatusResponse, error) {
	if r.ContainerId == "" {
		return nil, invalid("container_id", "is empty")
	}
	c, err := s.o.Pods.Container(r.ContainerId)
	if err != nil {
		return nil, err
	}
	out := &criv1.ContainerStatusResponse{Status: containerStatus(&c)}
	if r.Verbose {
		out.Info = containerInfo(&c)
	}
	return out, nil
}

// UpdateContainerResources changes a container's limits; zero leaves one as it is.
func (s *runtimeService) UpdateContainerResources(ctx context.Context, r *criv1.UpdateContainerResourcesRequest) (*criv1.UpdateContainerResourcesResponse, error) {
	switch {
	case r.ContainerId == "":
		return nil, invalid("container_id", "is empty")
	case r.Windows != nil:
		return nil, invalid("windows", "this host runs Linux containers only")
	case r.Linux == nil:
		return nil, invalid("linux", "is missing")
	}
	if err := checkMap("annotations", r.Annotations); err != nil {
		return nil, err
	}
	res, err := resources(r.Linux)
	if err != nil {
		return nil, within("linux", err)
	}
	if r.Linux.OomScoreAdj == 0 {
		res.OOMScoreAdj = nil // not asked for
	}
	return &criv1.UpdateContainerResourcesResponse{}, s.o.Pods.Update(ctx, r.ContainerId, res)
}

// ReopenContainerLog makes the log a new file, after the old one was moved away.
func (s *runtimeService) ReopenContainerLog(ctx context.Context, r *criv1.ReopenContainerLogRequest) (*criv1.ReopenContainerLogResponse, error) {
	if r.ContainerId == "" {
		return nil, invalid("container_id", "is empty")
	}
	return &criv1.ReopenContainerLogResponse{}, s.o.Pods.ReopenLog(ctx, r.ContainerId)
}
