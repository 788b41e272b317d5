package cri

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pausa-run/pausa/pod"
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
	if err := checkCheckpointPod(r); err != nil {
		return nil, err
	}
	return &criv1.CheckpointPodResponse{}, s.o.Pods.CheckpointPod(ctx, r.PodSandboxId, r.ContainerIds, r.OutputPath)
}

func checkCheckpointPod(r *criv1.CheckpointPodRequest) error {
	if r.PodSandboxId == "" {
		return invalid("pod_sandbox_id", "is empty")
	}
	if err := checkAbs("output_path", r.OutputPath); err != nil {
		return err
	}
	if len(r.ContainerIds) == 0 {
		return invalid("container_ids", "is empty: name the running containers that the checkpoint shall hold")
	}
	return noOptions(r.Options)
}

// noOptions refuses every option: this runtime has none.
func noOptions(options map[string]string) error {
	for key := range options {
		return invalid("options", "has the key %.80q: this runtime knows no options of checkpoints", key)
	}
	return nil
}

// RestorePod makes a pod with containers of a checkpoint. They are created, and go on when they are started.
func (s *runtimeService) RestorePod(ctx context.Context, r *criv1.RestorePodRequest) (*criv1.RestorePodResponse, error) {
	cfg, ctrs, err := s.restoreConfigs(ctx, r)
	if err != nil {
		return nil, err
	}
	id, restored, err := s.o.Pods.RestorePod(ctx, cfg, ctrs, r.CheckpointPath)
	if err != nil {
		return nil, err
	}
	out := &criv1.RestorePodResponse{PodSandboxId: id}
	for _, c := range restored {
		out.RestoredContainers = append(out.RestoredContainers, &criv1.RestoredContainer{Name: c.Name, ContainerId: c.ID})
	}
	return out, nil
}

// restoreConfigs checks and translates what a pod and its containers shall be.
func (s *runtimeService) restoreConfigs(ctx context.Context, r *criv1.RestorePodRequest) (cfg pod.Config, ctrs []pod.ContainerConfig, err error) {
	if err := checkAbs("checkpoint_path", r.CheckpointPath); err != nil {
		return cfg, nil, err
	}
	if err := noOptions(r.Options); err != nil {
		return cfg, nil, err
	}
	if cfg, err = s.sandboxConfig(r.Config, r.RuntimeHandler); err != nil {
		return cfg, nil, err
	}
	if len(r.ContainerConfigs) == 0 {
		return cfg, nil, invalid("container_configs", "is empty: name every container of the checkpoint")
	}
	ctrs = make([]pod.ContainerConfig, len(r.ContainerConfigs))
	for i, c := range r.ContainerConfigs {
		if ctrs[i], err = s.settledConfig(ctx, c, &cfg); err != nil {
			return cfg, nil, inContainer(i, err)
		}
		if slices.ContainsFunc(ctrs[:i], func(before pod.ContainerConfig) bool { return before.Name == ctrs[i].Name }) {
			return cfg, nil, invalid(fmt.Sprintf("container_configs[%d].metadata.name", i), "%q is there twice", ctrs[i].Name)
		}
		if ctrs[i].TargetContainer != "" {
			return cfg, nil, invalid(fmt.Sprintf("container_configs[%d].linux.security_context.namespace_options.target_id", i), "no container of another one's PID namespace is restored")
		}
	}
	return cfg, ctrs, nil
}

// inContainer names a field of a container's configuration as this request does.
func inContainer(i int, err error) error {
	var f *fieldError
	if errors.As(err, &f) {
		return &fieldError{fmt.Sprintf("container_configs[%d].%s", i, strings.TrimPrefix(f.field, "config.")), f.reason}
	}
	return err
}
