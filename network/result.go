package network

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// convert reads a plugin's result of any version. Plugins lie: what the pod does
// not have (an address of another interface, none at all) is no result.
func convert(raw types.Result, network, netns string) (*Result, error) {
	r, err := types100.NewResultFromResult(raw)
	if err != nil {
		return nil, fmt.Errorf("read result of network %s: %w", network, err)
	}
	out := &Result{Network: network, Interface: ifName, NetNS: netns}
	for _, i := range r.Interfaces {
		if i != nil && i.Name == ifName && i.Sandbox != "" {
			out.MAC = i.Mac
		}
	}
	for _, ip := range r.IPs {
		if ip == nil || !inPod(r.Interfaces, ip.Interface) {
			continue
		}
		a, ok := netip.AddrFromSlice(ip.Address.IP)
		if a = a.Unmap(); !ok || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() {
			return nil, fmt.Errorf("read result of network %s: %q is no address for a pod", network, ip.Address.IP)
		}
		if !slices.Contains(out.IPs, a) {
			out.IPs = append(out.IPs, a)
		}
	}
	if d := r.DNS; len(d.Nameservers) > 0 {
		out.DNS = &DNS{Servers: d.Nameservers, Searches: d.Search, Options: d.Options}
		if d.Domain != "" && len(d.Search) == 0 {
			out.DNS.Searches = []string{d.Domain}
		}
		if err := out.DNS.check(); err != nil {
			return nil, fmt.Errorf("read result of network %s: %w", network, err)
		}
	}
	if len(out.IPs) == 0 {
		return nil, errors.New("the plugins gave the pod no address; check the ipam section of the network's configuration")
	}
	out.Ranges = rangesBehind(r, out.IPs)
	// By family and not by position: Cilium lists IPv6 first.
	slices.SortStableFunc(out.IPs, func(a, b netip.Addr) int { return a.BitLen() - b.BitLen() })
	return out, nil
}

// inPod tells whether an address's interface is the pod's; results before 0.3.0 name none.
func inPod(ifaces []*types100.Interface, index *int) bool {
	if index == nil {
		return true
	}
	if *index < 0 || *index >= len(ifaces) || ifaces[*index] == nil {
		return false
	}
	return ifaces[*index].Sandbox != "" && ifaces[*index].Name == ifName
}
