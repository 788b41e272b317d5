package cri

import (
	"context"
	"errors"
	"fmt"
	goruntime "runtime"
	"slices"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pausa-run/pausa/pod"
)

// apiVersion is what a kubelet wants to hear as the version of the runtime API.
const apiVersion = "0.1.0"

// Version names the runtime.
func (s *runtimeService) Version(context.Context, *criv1.VersionRequest) (*criv1.VersionResponse, error) {
	version := s.o.Version
	if version == "" {
		version = "unknown" // a kubelet refuses an empty one
	}
	return &criv1.VersionResponse{Version: apiVersion, RuntimeName: "pausa", RuntimeVersion: version, RuntimeApiVersion: "v1"}, nil
}

// Status says whether pods and their network can be made now.
func (s *runtimeService) Status(ctx context.Context, r *criv1.StatusRequest) (*criv1.StatusResponse, error) {
	out := &criv1.StatusResponse{
		Status: &criv1.RuntimeStatus{Conditions: []*criv1.RuntimeCondition{
			condition(criv1.RuntimeReady, "KeeperNotReady", s.o.Pods.RuntimeStatus(ctx)),
			condition(criv1.NetworkReady, "NetworkPluginNotReady", s.o.Pods.NetworkStatus(ctx)),
		}},
		Features: &criv1.RuntimeFeatures{SupplementalGroupsPolicy: true, MountOptions: true},
	}
	var missing error
	if out.RuntimeHandlers, missing = s.runtimeHandlers(); missing != nil {
		out.Status.Conditions = append(out.Status.Conditions, condition("RuntimeHandlersReady", "ProgramMissing", missing))
	}
	if r.Verbose {
		own := Info{}
		if s.o.Info != nil {
			var err error
			if own, err = s.o.Info(ctx); err != nil {
				return nil, fmt.Errorf("tell of the daemon: %w", err)
			}
		}
		now := s.o.Pods.Snapshot()
		out.Info = info(struct {
			Info
			Version    string `json:"version"`
			Pods       int    `json:"pods"`
			Containers int    `json:"containers"`
			Goroutines int    `json:"goroutines"`
		}{own, s.o.Version, len(now.Pods), len(now.Containers), goruntime.NumGoroutine()})
	}
	return out, nil
}

// runtimeHandlers are all names that a pod may ask for; "" is the default one.
// A handler whose program is missing is not among them, but in the error.
func (s *runtimeService) runtimeHandlers() (out []*criv1.RuntimeHandler, missing error) {
	all, standard := s.o.Handlers.List()
	for _, h := range all {
		if h.Problem != nil {
			missing = errors.Join(missing, fmt.Errorf("runtime handler %s: %w", h.Name, h.Problem))
			continue
		}
		names := append([]string{h.Name}, h.Aliases...)
		if slices.Contains(names, standard) {
			names = append([]string{""}, names...)
		}
		for _, name := range names {
			out = append(out, &criv1.RuntimeHandler{Name: name, Features: &criv1.RuntimeHandlerFeatures{
				RecursiveReadOnlyMounts: h.Features.RecursiveReadOnly,
				UserNamespaces:          s.o.UserNamespaces && h.Features.UserNamespaces && h.Features.IDMap,
			}})
		}
	}
	return out, missing
}

func condition(name, reason string, err error) *criv1.RuntimeCondition {
	if err == nil {
		return &criv1.RuntimeCondition{Type: name, Status: true}
	}
	return &criv1.RuntimeCondition{Type: name, Reason: reason, Message: err.Error()}
}

// RuntimeConfig tells which cgroup driver a kubelet must use.
func (s *runtimeService) RuntimeConfig(context.Context, *criv1.RuntimeConfigRequest) (*criv1.RuntimeConfigResponse, error) {
	driver := criv1.CgroupDriver_CGROUPFS
	if s.o.CgroupDriver == "systemd" {
		driver = criv1.CgroupDriver_SYSTEMD
	}
	return &criv1.RuntimeConfigResponse{Linux: &criv1.LinuxRuntimeConfiguration{CgroupDriver: driver}}, nil
}

// UpdateRuntimeConfig takes the node's range of pod addresses.
func (s *runtimeService) UpdateRuntimeConfig(_ context.Context, r *criv1.UpdateRuntimeConfigRequest) (*criv1.UpdateRuntimeConfigResponse, error) {
	cidr := r.GetRuntimeConfig().GetNetworkConfig().GetPodCidr()
	if cidr == "" {
		return &criv1.UpdateRuntimeConfigResponse{}, nil
	}
	err := s.o.Pods.SetPodCIDR(cidr)
	if errors.Is(err, pod.ErrInvalid) {
		return nil, invalid("runtime_config.network_config.pod_cidr", "%.80q: %v", cidr, err)
	}
	if err != nil {
		return nil, fmt.Errorf("set pod CIDR %q: %w", cidr, err)
	}
	return &criv1.UpdateRuntimeConfigResponse{}, nil
}
