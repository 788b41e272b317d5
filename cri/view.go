package cri

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"time"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/runtime"
)

// nanos is a time as CRI has it; 0 when it has not come.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func podState(p *pod.Pod) criv1.PodSandboxState {
	if p.Ready {
		return criv1.PodSandboxState_SANDBOX_READY
	}
	return criv1.PodSandboxState_SANDBOX_NOTREADY
}

func podMetadata(c *pod.Config) *criv1.PodSandboxMetadata {
	return &criv1.PodSandboxMetadata{Name: c.Name, Namespace: c.Namespace, Uid: c.UID, Attempt: c.Attempt}
}

func podItem(p *pod.Pod) *criv1.PodSandbox {
	return &criv1.PodSandbox{
		Id: p.ID, Metadata: podMetadata(&p.Config), State: podState(p), CreatedAt: nanos(p.CreatedAt),
		Labels: p.Config.Labels, Annotations: p.Config.Annotations, RuntimeHandler: p.Config.Handler,
	}
}

func podStatus(p *pod.Pod) *criv1.PodSandboxStatus {
	s := &criv1.PodSandboxStatus{
		Id: p.ID, Metadata: podMetadata(&p.Config), State: podState(p), CreatedAt: nanos(p.CreatedAt),
		Network: &criv1.PodSandboxNetworkStatus{},
		Linux:   &criv1.LinuxPodSandboxStatus{Namespaces: &criv1.Namespace{Options: namespaceOptions(&p.Config)}},
		Labels:  p.Config.Labels, Annotations: p.Config.Annotations, RuntimeHandler: p.Config.Handler,
	}
	if p.Config.HostNetwork || !p.Ready {
		return s
	}
	for i, ip := range p.IPs {
		if i == 0 {
			s.Network.Ip = ip.String()
			continue
		}
		s.Network.AdditionalIps = append(s.Network.AdditionalIps, &criv1.PodIP{Ip: ip.String()})
	}
	return s
}

func namespaceOptions(c *pod.Config) *criv1.NamespaceOption {
	o := &criv1.NamespaceOption{Pid: criv1.NamespaceMode_CONTAINER}
	switch {
	case c.HostPID:
		o.Pid = criv1.NamespaceMode_NODE
	case c.SharePID:
		o.Pid = criv1.NamespaceMode_POD
	}
	if c.HostNetwork {
		o.Network = criv1.NamespaceMode_NODE
	}
	if c.HostIPC {
		o.Ipc = criv1.NamespaceMode_NODE
	}
	if len(c.UIDMaps) > 0 {
		o.UsernsOptions = &criv1.UserNamespace{Mode: criv1.NamespaceMode_POD, Uids: criIDMaps(c.UIDMaps), Gids: criIDMaps(c.GIDMaps)}
	}
	return o
}

func criIDMaps(maps []runtime.IDMap) []*criv1.IDMapping {
	var out []*criv1.IDMapping
	for _, m := range maps {
		out = append(out, &criv1.IDMapping{HostId: m.HostID, ContainerId: m.ContainerID, Length: m.Size})
	}
	return out
}

func containerState(c *pod.Container) criv1.ContainerState {
	switch c.Status {
	case runtime.Exited:
		return criv1.ContainerState_CONTAINER_EXITED
	case runtime.Running:
		return criv1.ContainerState_CONTAINER_RUNNING
	}
	return criv1.ContainerState_CONTAINER_CREATED
}

// imageSpec shows the name that the user wrote where one is known, else the id.
func imageSpec(c *pod.Container) *criv1.ImageSpec {
	name := c.Config.ImageName
	if name == "" {
		name = c.Config.Image
	}
	return &criv1.ImageSpec{Image: name, UserSpecifiedImage: c.Config.ImageName}
}

func containerItem(c *pod.Container) *criv1.Container {
	return &criv1.Container{
		Id: c.ID, PodSandboxId: c.PodID, Metadata: &criv1.ContainerMetadata{Name: c.Config.Name, Attempt: c.Config.Attempt},
		Image: imageSpec(c), ImageRef: c.ImageID, ImageId: c.ImageID, State: containerState(c), CreatedAt: nanos(c.CreatedAt),
		Labels: c.Config.Labels, Annotations: c.Config.Annotations,
	}
}

func containerStatus(c *pod.Container) *criv1.ContainerStatus {
	s := &criv1.ContainerStatus{
		Id: c.ID, Metadata: &criv1.ContainerMetadata{Name: c.Config.Name, Attempt: c.Config.Attempt},
		State: containerState(c), CreatedAt: nanos(c.CreatedAt), StartedAt: nanos(c.StartedAt),
		Image: imageSpec(c), ImageRef: c.ImageID, ImageId: c.ImageID,
		Labels: c.Config.Labels, Annotations: c.Config.Annotations, LogPath: c.LogPath,
		Resources: criResources(c.Config.Resources), StopSignal: signalValue(c.StopSignal),
		User: &criv1.ContainerUser{Linux: &criv1.LinuxContainerUser{Uid: int64(c.UID), Gid: int64(c.GID)}},
	}
	for _, g := range c.Groups {
		s.User.Linux.SupplementalGroups = append(s.User.Linux.SupplementalGroups, int64(g))
	}
	for _, m := range c.Config.Mounts {
		s.Mounts = append(s.Mounts, criMount(m))
	}
	if c.Exit != nil {
		s.FinishedAt, s.ExitCode = nanos(c.Exit.FinishedAt), int32(c.Exit.Code)
		s.Reason, s.Message = exitReason(c.Exit)
	}
	return s
}

// exitReason words an end as kubectl shows it.
func exitReason(e *runtime.Exit) (reason, message string) {
	switch {
	case e.OOMKilled:
		return "OOMKilled", e.OOMMessage()
	case e.StartError != "":
		return "StartError", e.StartError
	case e.Unknown:
		return "Unknown", "the process ended while nobody could collect its exit code"
	case e.Code == 0:
		return "Completed", ""
	}
	return "Error", ""
}

func criMount(m runtime.Mount) *criv1.Mount {
	out := &criv1.Mount{
		HostPath: m.Source, ContainerPath: m.Destination, Readonly: m.Readonly, RecursiveReadOnly: m.RecursiveRO, MountOptions: m.Options,
	}
	switch strings.TrimPrefix(m.Propagation, "r") {
	case "slave":
		out.Propagation = criv1.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
	case "shared":
		out.Propagation = criv1.MountPropagation_PROPAGATION_BIDIRECTIONAL
	}
	return out
}

// info is what a verbose status adds: one JSON document under "info", as crictl expects.
func info(v any) map[string]string {
	raw, err := json.Marshal(v)
	if err != nil {
		return map[string]string{"error": err.Error()}
	}
	return map[string]string{"info": string(raw)}
}

func podInfo(p *pod.Pod) map[string]string {
	return info(struct {
		Pid     int        `json:"pid"`
		NetNS   string     `json:"netns,omitempty"`
		Problem string     `json:"problem,omitempty"`
		Config  pod.Config `json:"config"`
	}{p.Pid, p.NetNS, p.Problem, p.Config})
}

func containerInfo(c *pod.Container) map[string]string {
	return info(struct {
		SandboxID string              `json:"sandboxID"`
		Pid       int                 `json:"pid"`
		LogDir    string              `json:"logDirectory,omitempty"`
		Exit      *runtime.Exit       `json:"exit,omitempty"`
		Config    pod.ContainerConfig `json:"config"`
	}{c.PodID, c.Pid, filepath.Dir(c.LogPath), c.Exit, c.Config})
}
