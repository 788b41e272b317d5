package cri

import (
	"context"
	"fmt"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/runtime"
)

// ExecSync runs a command and returns its output. Both streams together stay
// below what one message may have; the rest is dropped, stdout first counted.
func (s *runtimeService) ExecSync(ctx context.Context, r *criv1.ExecSyncRequest) (*criv1.ExecSyncResponse, error) {
	if err := checkCommand(r.ContainerId, r.Cmd); err != nil {
		return nil, err
	}
	timeout, err := seconds("timeout", r.Timeout)
	if err != nil {
		return nil, err
	}
	stdout, stderr, code, err := s.o.Pods.ExecSync(ctx, r.ContainerId, r.Cmd, timeout)
	if err != nil {
		return nil, err
	}
	const room = maxMessage - 4096
	stdout = stdout[:min(len(stdout), room)]
	stderr = stderr[:min(len(stderr), room-len(stdout))]
	return &criv1.ExecSyncResponse{Stdout: stdout, Stderr: stderr, ExitCode: int32(code)}, nil
}

func checkCommand(containerID string, cmd []string) error {
	if containerID == "" {
		return invalid("container_id", "is empty")
	}
	if len(cmd) == 0 || cmd[0] == "" {
		return invalid("cmd", "is empty")
	}
	return checkTexts("cmd", cmd)
}

// Exec gives the address where a command can be run once.
func (s *runtimeService) Exec(_ context.Context, r *criv1.ExecRequest) (*criv1.ExecResponse, error) {
	if err := checkCommand(r.ContainerId, r.Cmd); err != nil {
		return nil, err
	}
	c, err := s.running(r.ContainerId)
	if err != nil {
		return nil, err
	}
	r.ContainerId = c.ID
	return s.stream.exec(r)
}

// Attach gives the address where a container's own stdio can be joined once.
func (s *runtimeService) Attach(_ context.Context, r *criv1.AttachRequest) (*criv1.AttachResponse, error) {
	if r.ContainerId == "" {
		return nil, invalid("container_id", "is empty")
	}
	c, err := s.running(r.ContainerId)
	if err != nil {
		return nil, err
	}
	if r.Tty != c.Config.Terminal {
		return nil, invalid("tty", "is %t, but the container's is %t", r.Tty, c.Config.Terminal)
	}
	r.ContainerId = c.ID
	return s.stream.attach(r)
}

// PortForward gives the address where connections to a pod's ports can be made.
func (s *runtimeService) PortForward(_ context.Context, r *criv1.PortForwardRequest) (*criv1.PortForwardResponse, error) {
	if r.PodSandboxId == "" {
		return nil, invalid("pod_sandbox_id", "is empty")
	}
	for i, p := range r.Port {
		if p < 1 || p > 65535 {
			return nil, invalid(fmt.Sprintf("port[%d]", i), "%d is not between 1 and 65535", p)
		}
	}
	p, err := s.o.Pods.Pod(r.PodSandboxId)
	if err != nil {
		return nil, err
	}
	if !p.Ready {
		return nil, fmt.Errorf("pod %s is not ready: %w", p.ID, pod.ErrState)
	}
	r.PodSandboxId = p.ID
	return s.stream.portForward(r)
}

func (s *runtimeService) running(id string) (pod.Container, error) {
	c, err := s.o.Pods.Container(id)
	if err != nil {
		return c, err
	}
	if c.Status != runtime.Running {
		return c, fmt.Errorf("container %s is %s, not running: %w", c.ID, c.Status, pod.ErrState)
	}
	return c, nil
}
