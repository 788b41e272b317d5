package network

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"k8s.io/apimachinery/pkg/api/resource"
)

// ifName is the interface in the pod.
const ifName = "eth0"

// checkID refuses ids that could leave a folder or a variable.
func checkID(id string) error {
	if id == "" || len(id) > 128 || strings.ContainsFunc(id, unsafe) || strings.HasPrefix(id, ".") || strings.Contains(id, ":") {
		return fmt.Errorf("check pod id %q: want letters, digits, '_', '.' and '-', at most 128", id)
	}
	return nil
}

func unsafe(r rune) bool {
	alnum := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
	return !alnum && !strings.ContainsRune("-_.:", r)
}

// check refuses values that could end or add a variable in CNI_ARGS. Nothing is ever escaped: no
// plugin would undo that.
func (p Pod) check() error {
	if err := checkID(p.ID); err != nil {
		return err
	}
	for what, v := range map[string]string{"name": p.Name, "namespace": p.Namespace, "uid": p.UID} {
		if len(v) > 253 || strings.ContainsFunc(v, unsafe) {
			return fmt.Errorf("check pod %s: %s %q has characters that CNI_ARGS cannot carry; use at most 253 letters, digits, '-', '.', ':' and '_'", p.ID, what, v)
		}
	}
	for _, port := range p.Ports {
		if err := port.check(); err != nil {
			return fmt.Errorf("check pod %s: %w", p.ID, err)
		}
	}
	return nil
}

func (p PortMapping) check() error {
	if p.HostPort == 0 {
		return nil // not published
	}
	if p.ContainerPort == 0 {
		return fmt.Errorf("host port %d: no container port", p.HostPort)
	}
	switch strings.ToLower(p.Protocol) {
	case "", "tcp", "udp", "sctp":
	default:
		return fmt.Errorf("host port %d: protocol %q: want tcp, udp or sctp", p.HostPort, p.Protocol)
	}
	if p.HostIP == "" {
		return nil
	}
	if _, err := netip.ParseAddr(p.HostIP); err != nil {
		return fmt.Errorf("host port %d: hostIP %q is not an address", p.HostPort, p.HostIP)
	}
	return nil
}

// runtimeConf is what libcni passes to the plugins, the same for ADD, CHECK and DEL.
func (m *Manager) runtimeConf(p Pod, netns string) (*libcni.RuntimeConf, error) {
	caps, err := capabilities(p)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	caps["ipRanges"] = ipRanges(m.cidrs)
	m.mu.Unlock()
	return &libcni.RuntimeConf{
		ContainerID: p.ID, NetNS: netns, IfName: ifName, CapabilityArgs: caps,
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", p.Namespace},
			{"K8S_POD_NAME", p.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", p.ID},
			{"K8S_POD_UID", p.UID},
		},
	}, nil
}

// capabilities are runtimeConfig's entries; libcni gives a plugin those that it declares.
func capabilities(p Pod) (map[string]any, error) {
	caps := map[string]any{}
	var ports []map[string]any
	for _, port := range p.Ports {
		if port.HostPort == 0 {
			continue
		}
		proto := strings.ToLower(port.Protocol)
		if proto == "" {
			proto = "tcp"
		}
		entry := map[string]any{"hostPort": port.HostPort, "containerPort": port.ContainerPort, "protocol": proto}
		if port.HostIP != "" {
			entry["hostIP"] = port.HostIP
		}
		ports = append(ports, entry)
	}
	if len(ports) > 0 {
		caps["portMappings"] = ports
	}
	if p.CgroupPath != "" {
		caps["cgroupPath"] = p.CgroupPath
	}
	if len(p.Annotations) > 0 {
		caps["io.kubernetes.cri.pod-annotations"] = p.Annotations
	}
	if len(p.Labels) > 0 {
		caps["io.kubernetes.cri.pod-labels"] = p.Labels
	}
	if p.DNS != nil {
		caps["dns"] = p.DNS
	}
	limit, err := bandwidth(p.Annotations)
	if limit != nil {
		caps["bandwidth"] = limit
	}
	asked, askedErr := p.asked()
	maps.Copy(caps, asked)
	if err := errors.Join(err, askedErr); err != nil {
		return nil, fmt.Errorf("check pod %s: %w", p.ID, err)
	}
	return caps, nil
}

// leastBurst is 128 KiB in bits: two of the largest packets that the kernel hands on in one piece.
const leastBurst = 128 << 13

// bandwidth reads Kubernetes' annotations, in bits per second; nil if there are none.
func bandwidth(annotations map[string]string) (map[string]any, error) {
	limit := map[string]any{}
	var errs []error
	for _, direction := range []string{"ingress", "egress"} {
		text, ok := annotations["kubernetes.io/"+direction+"-bandwidth"]
		if !ok {
			continue
		}
		q, err := resource.ParseQuantity(text)
		if err == nil && (q.Value() < 1000 || q.Value() > 1e15) {
			err = errors.New("want 1k to 1P")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("annotation kubernetes.io/%s-bandwidth %q: %w", direction, text, err))
			continue
		}
		limit[direction+"Rate"] = q.Value()
		// What others pass, 2^31-1, is 268 MB that a pod may send before the limit holds.
		limit[direction+"Burst"] = max(q.Value()/20, leastBurst)
	}
	if len(limit) == 0 || len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return limit, nil
}
