package main

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// parsePorts reads "[[HOSTIP:]HOSTPORT:]PORT[/PROTOCOL]", where the ports may be
// ranges of one length, "8000-8010:80-90".
func parsePorts(text string) ([]corev1.ContainerPort, error) {
	wrong := fmt.Errorf("--port %s: must be PORT, HOSTPORT:PORT or HOSTIP:HOSTPORT:PORT, with /udp for UDP, or A-B:C-D for ranges of one length", text)
	rest, name, _ := strings.Cut(text, "/")
	protocol := corev1.Protocol(strings.ToUpper(name))
	switch protocol {
	case "":
		protocol = corev1.ProtocolTCP
	case corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP:
	default:
		return nil, wrong
	}
	host, hostIP, published := "", "", false
	if i := strings.LastIndexByte(rest, ':'); i >= 0 {
		host, rest, published = rest[:i], rest[i+1:], true
		if j := strings.LastIndexByte(host, ':'); j >= 0 {
			ip, err := netip.ParseAddr(strings.Trim(host[:j], "[]"))
			if err != nil {
				return nil, wrong
			}
			hostIP, host = ip.String(), host[j+1:]
		}
	}
	first, n, ok := portRange(rest)
	hostFirst, hostN, hostOK := portRange(host)
	if !ok || published && (!hostOK || hostN != n) {
		return nil, wrong
	}
	var out []corev1.ContainerPort
	for i := range n {
		p := corev1.ContainerPort{ContainerPort: first + i, Protocol: protocol, HostIP: hostIP}
		if published {
			p.HostPort = hostFirst + i
		}
		out = append(out, p)
	}
	return out, nil
}

// portRange reads "80" or "80-90": the first port and how many there are.
func portRange(text string) (first, n int32, ok bool) {
	low, high, isRange := strings.Cut(text, "-")
	if !isRange {
		high = low
	}
	a, err := strconv.ParseUint(low, 10, 16)
	b, err2 := strconv.ParseUint(high, 10, 16)
	if err != nil || err2 != nil || a == 0 || b < a {
		return 0, 0, false
	}
	return int32(a), int32(b - a + 1), true //nolint:gosec // 16 bits
}
