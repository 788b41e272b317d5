package cri

import (
	"context"
	"errors"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/runtime"
)

// RunPodSandbox makes a pod. A duplicate of a request that is being served joins it.
func (s *runtimeService) RunPodSandbox(ctx context.Context, r *criv1.RunPodSandboxRequest) (*criv1.RunPodSandboxResponse, error) {
	cfg, err := s.sandboxConfig(r.Config, r.RuntimeHandler)
	if err != nil {
		return nil, err
	}
	id, err := s.o.Pods.Run(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return &criv1.RunPodSandboxResponse{PodSandboxId: id}, nil
}

// sandboxConfig checks what a pod shall be, and by which handler.
func (s *runtimeService) sandboxConfig(c *criv1.PodSandboxConfig, handler string) (pod.Config, error) {
	if len(handler) > maxName {
		return pod.Config{}, invalid("runtime_handler", "has %d bytes: at most %d are allowed", len(handler), maxName)
	}
	if _, err := s.o.Handlers.Find(handler); errors.Is(err, runtime.ErrNotFound) {
		return pod.Config{}, invalid("runtime_handler", "%v", err)
	}
	return podConfig(c, handler)
}

// StopPodSandbox ends a pod's containers and network; nothing to do is no error.
func (s *runtimeService) StopPodSandbox(ctx context.Context, r *criv1.StopPodSandboxRequest) (*criv1.StopPodSandboxResponse, error) {
	if r.PodSandboxId == "" {
		return nil, invalid("pod_sandbox_id", "is empty")
	}
	return &criv1.StopPodSandboxResponse{}, s.o.Pods.Stop(ctx, r.PodSandboxId)
}

// RemovePodSandbox removes a pod and all that belongs to it; nothing to do is no error.
func (s *runtimeService) RemovePodSandbox(ctx context.Context, r *criv1.RemovePodSandboxRequest) (*criv1.RemovePodSandboxResponse, error) {
	if r.PodSandboxId == "" {
		return nil, invalid("pod_sandbox_id", "is empty")
	}
	return &criv1.RemovePodSandboxResponse{}, s.o.Pods.Remove(ctx, r.PodSandboxId)
}

// PodSandboxStatus tells of one pod and its containers.
func (s *runtimeService) PodSandboxStatus(_ context.Context, r *criv1.PodSandboxStatusRequest) (*criv1.PodSandboxStatusResponse, error) {
	if r.PodSandboxId == "" {
		return nil, invalid("pod_sandbox_id", "is empty")
	}
	p, err := s.o.Pods.Pod(r.PodSandboxId)
	if err != nil {
		return nil, err
	}
	// No timestamp: a kubelet of 1.37 with EventedPLEG would take the containers from
	// here, but not which of them are active, and run init containers again and again.
	// Without one it asks for each.
	out := &criv1.PodSandboxStatusResponse{Status: podStatus(&p), ContainersStatuses: s.containersOf(p.ID)}
	if r.Verbose {
		out.Info = podInfo(&p)
	}
	return out, nil
}

// containersOf are the statuses of a pod's containers.
func (s *runtimeService) containersOf(podID string) []*criv1.ContainerStatus {
	all := s.o.Pods.ContainersOf(podID)
	out := make([]*criv1.ContainerStatus, 0, len(all))
	for _, c := range all {
		out = append(out, containerStatus(c))
	}
	return out
}

// UpdatePodSandboxResources changes a pod's own limits; zero leaves one as it is.
func (s *runtimeService) UpdatePodSandboxResources(ctx context.Context, r *criv1.UpdatePodSandboxResourcesRequest) (*criv1.UpdatePodSandboxResourcesResponse, error) {
	if r.PodSandboxId == "" {
		return nil, invalid("pod_sandbox_id", "is empty")
	}
	overhead, limits, err := podResources(r.Overhead, r.Resources)
	if err != nil {
		return nil, err
	}
	return &criv1.UpdatePodSandboxResourcesResponse{}, s.o.Pods.UpdatePod(ctx, r.PodSandboxId, overhead, limits)
}

// podResources checks and translates what is said of a pod as a whole.
func podResources(overhead, limits *criv1.LinuxContainerResources) (o, l runtime.Resources, err error) {
	if o, err = resources(overhead); err != nil {
		return o, l, within("overhead", err)
	}
	if l, err = resources(limits); err != nil {
		return o, l, within("resources", err)
	}
	o.OOMScoreAdj, l.OOMScoreAdj = nil, nil // a group has none
	return o, l, nil
}
