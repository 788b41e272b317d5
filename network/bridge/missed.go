package bridge

import (
	"errors"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// forgetMissed removes the tracked connections to host ports that do not lead to
// the pod: of clients that sent datagrams before there was a rule. Whoever goes on
// sending from one port would never get to the rule.
func (p *Plugin) forgetMissed(list ...attachment) {
	missed := missedFlows{ports: map[missedPort][]hostPort{}, local: map[netip.Addr]bool{}}
	families := map[netlink.InetFamily]bool{}
	for _, a := range list {
		for _, hp := range a.Ports {
			if hp.Proto == unix.IPPROTO_TCP {
				continue // a new connection is a new one
			}
			k := missedPort{hp.Proto, hp.Host.Port()}
			missed.ports[k] = append(missed.ports[k], hp)
			if hp.Pod.Addr().Is4() {
				families[unix.AF_INET] = true
			} else {
				families[unix.AF_INET6] = true
			}
		}
	}
	if len(families) == 0 {
		return
	}
	addrs, err := p.slow.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		p.log.Warn("forget connections from before a host port", "error", err)
		return
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok && !ip.IsLoopback() {
			missed.local[ip.Unmap()] = true
		}
	}
	for f := range families {
		if _, err := p.slow.ConntrackDeleteFilters(netlink.ConntrackTable, f, missed); err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			p.log.Warn("forget connections from before a host port", "error", err)
		}
	}
}

// missedFlows matches connections to host ports that somebody else answers.
type missedFlows struct {
	ports map[missedPort][]hostPort
	local map[netip.Addr]bool // the host's own addresses
}

type missedPort struct {
	proto uint8
	port  uint16
}

// MatchConntrackFlow is netlink's filter.
func (m missedFlows) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	to, ok1 := netip.AddrFromSlice(flow.Forward.DstIP)
	by, ok2 := netip.AddrFromSlice(flow.Reverse.SrcIP)
	if !ok1 || !ok2 {
		return false
	}
	to, by = to.Unmap(), by.Unmap()
	for _, hp := range m.ports[missedPort{flow.Forward.Protocol, flow.Forward.DstPort}] {
		meant := hp.Host.Addr() == to || (hp.any() && hp.Host.Addr().Is4() == to.Is4() && m.local[to])
		if meant && by != hp.Pod.Addr() {
			return true
		}
	}
	return false
}
