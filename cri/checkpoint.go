package cri

import (
	"context"
	"fmt"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CheckpointContainer writes an archive of a running container, which goes on.
func (s *runtimeService) CheckpointContainer(ctx context.Context, r *criv1.CheckpointContainerRequest) (*criv1.CheckpointContainerResponse, error) {
	if r.ContainerId == "" {
		return nil, invalid("container_id", "is empty")
	}
	if err := checkAbs("location", r.Location); err != nil {
		return nil, err
	}
	limit, err := seconds("timeout", r.Timeout)
	if err != nil {
		return nil, err
	}
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	return &criv1.CheckpointContainerResponse{}, s.o.Pods.Checkpoint(ctx, r.ContainerId, r.Location)
}

// CheckpointPod writes running containers of a pod, of one moment, to an empty folder; they go on.
func (s *runtimeService) CheckpointPod(ctx context.Context, r *criv1.CheckpointPodRequest) (*criv1.CheckpointPodResponse, error) {
	if r.PodSandboxId == "" {
		return nil, invalid("pod_sandbox_id", "is empty")
	}
	if err := checkAbs("output_path", r.OutputPath); err != nil {
		return nil, err
	}
	if len(r.ContainerIds) == 0 {
		return nil, invalid("container_ids", "is empty: name the running containers that the checkpoint shall hold")
	}
	if err := noOptions(r.Options); err != nil {
		return nil, err
	}
	return &criv1.CheckpointPodResponse{}, s.o.Pods.CheckpointPod(ctx, r.PodSandboxId, r.ContainerIds, r.OutputPath)
}

// noOptions refuses every option: this runtime has none.
func noOptions(options map[string]string) error {
	for key := range options {
		return invalid("options", "has the key %.80q: this runtime knows no options of checkpoints", key)
	}
	return nil
}

// noRestore is why no pod is restored; it says what to do instead.
const noRestore = "this runtime restores no checkpoints, whose images would choose users, capabilities and filters of processes: use them to look into containers"

// RestorePod is not implemented.
func (s *runtimeService) RestorePod(context.Context, *criv1.RestorePodRequest) (*criv1.RestorePodResponse, error) {
	return nil, fmt.Errorf("restore pod: %w: %s", errUnimplemented, noRestore)
}
