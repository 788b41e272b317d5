package bridge

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"
)

// hostPort is one published port in one family.
type hostPort struct {
	Proto uint8          `json:"proto"`
	Host  netip.AddrPort `json:"host"` // the unspecified address is every address of the host
	Pod   netip.AddrPort `json:"pod"`
}

func (p hostPort) String() string {
	return protoName(p.Proto) + " " + p.Host.String()
}

func (p hostPort) any() bool { return p.Host.Addr().IsUnspecified() }

// conflicts tells whether a packet could be meant for both.
func (p hostPort) conflicts(o hostPort) bool {
	return p.Proto == o.Proto && p.Host.Port() == o.Host.Port() && p.Host.Addr().Is4() == o.Host.Addr().Is4() &&
		(p.any() || o.any() || p.Host.Addr() == o.Host.Addr())
}

func (p hostPort) fileName() string {
	return fmt.Sprintf("%s-%d-%s", protoName(p.Proto), p.Host.Port(), p.Host.Addr())
}

func parsePortFile(name string) (hostPort, bool) {
	parts := strings.SplitN(name, "-", 3)
	if len(parts) != 3 {
		return hostPort{}, false
	}
	proto, ok := protoNumber(parts[0])
	port, err1 := strconv.ParseUint(parts[1], 10, 16)
	addr, err2 := netip.ParseAddr(parts[2])
	return hostPort{Proto: proto, Host: netip.AddrPortFrom(addr, uint16(port))}, ok && err1 == nil && err2 == nil
}

func protoNumber(name string) (uint8, bool) {
	switch strings.ToLower(name) {
	case "tcp", "":
		return unix.IPPROTO_TCP, true
	case "udp":
		return unix.IPPROTO_UDP, true
	case "sctp":
		return unix.IPPROTO_SCTP, true
	}
	return 0, false
}

func protoName(p uint8) string {
	switch p {
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_SCTP:
		return "sctp"
	}
	return "tcp"
}

// resolvePorts turns the mappings into one host port per family that the pod has.
func resolvePorts(mappings []PortMapping, pod []netip.Addr) ([]hostPort, error) {
	var all []hostPort
	for _, m := range mappings {
		ports, err := resolvePort(m, pod)
		if err != nil {
			return nil, types.NewError(types.ErrInvalidNetworkConfig, "check host ports", err.Error())
		}
		for _, p := range ports {
			if slices.Contains(all, p) {
				continue // named twice, the same thing
			}
			if slices.ContainsFunc(all, p.conflicts) {
				return nil, types.NewError(types.ErrInvalidNetworkConfig, "check host ports", fmt.Sprintf("%s is asked for twice by this pod", p))
			}
			all = append(all, p)
		}
	}
	return all, nil
}

func resolvePort(m PortMapping, pod []netip.Addr) ([]hostPort, error) {
	proto, ok := protoNumber(m.Protocol)
	if !ok {
		return nil, fmt.Errorf("host port %d: protocol %q: want tcp, udp or sctp", m.HostPort, m.Protocol)
	}
	if m.HostPort < 1 || m.HostPort > 65535 || m.ContainerPort < 1 || m.ContainerPort > 65535 {
		return nil, fmt.Errorf("host port %d to container port %d: want 1 to 65535", m.HostPort, m.ContainerPort)
	}
	var only netip.Addr
	if m.HostIP != "" {
		var err error
		if only, err = netip.ParseAddr(m.HostIP); err != nil || only.Zone() != "" {
			return nil, fmt.Errorf("host port %d: hostIP %q is not an address", m.HostPort, m.HostIP)
		}
		only = only.Unmap()
	}
	var ports []hostPort
	for _, a := range pod {
		host := netip.IPv6Unspecified()
		if a.Is4() {
			host = netip.IPv4Unspecified()
		}
		if only.IsValid() {
			if only.Is4() != a.Is4() {
				continue
			}
			host = only
		}
		ports = append(ports, hostPort{proto, netip.AddrPortFrom(host, uint16(m.HostPort)), netip.AddrPortFrom(a, uint16(m.ContainerPort))})
	}
	if len(ports) == 0 {
		return nil, fmt.Errorf("host port %d: the pod has no address of the family of hostIP %s", m.HostPort, m.HostIP)
	}
	return ports, nil
}

// claimPorts takes the ports for owner or, with an error, none of them. The error names the pod
// that has one already.
func (s *store) claimPorts(owner, pod string, ports []hostPort) error {
	if len(ports) == 0 {
		return nil
	}
	unlock, err := s.lock()
	if err != nil {
		return err
	}
	defer unlock()
	taken, err := s.names("ports")
	if err != nil {
		return err
	}
	for name := range taken {
		has, ok := parsePortFile(name)
		if i := slices.IndexFunc(ports, has.conflicts); ok && i >= 0 {
			_, by := s.portOwner(name)
			return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("publish host port %s", ports[i]),
				fmt.Sprintf("pod %s has %s; delete that pod or choose another port", by, has))
		}
	}
	for i, p := range ports {
		if err := os.Symlink(owner+"/"+pod, s.path("ports", p.fileName())); err != nil {
			return errors.Join(fmt.Errorf("claim host port %s: %w", p, err), s.removePorts(owner, ports[:i]))
		}
	}
	return nil
}

func (s *store) portOwner(name string) (owner, pod string) {
	target, _ := os.Readlink(s.path("ports", name))
	owner, pod, _ = strings.Cut(target, "/")
	return owner, pod
}

func (s *store) removePorts(owner string, ports []hostPort) error {
	var errs []error
	for _, p := range ports {
		if has, _ := s.portOwner(p.fileName()); has == owner {
			errs = append(errs, removeFile(s.path("ports", p.fileName())))
		}
	}
	return errors.Join(errs...)
}

// portsOf looks through all ports for those of an owner without a record.
func (s *store) portsOf(owner string) ([]hostPort, error) {
	names, err := s.names("ports")
	if err != nil {
		return nil, err
	}
	var ports []hostPort
	for name := range names {
		if has, _ := s.portOwner(name); has == owner {
			if p, ok := parsePortFile(name); ok {
				ports = append(ports, p)
			}
		}
	}
	return ports, nil
}
