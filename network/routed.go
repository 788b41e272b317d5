package network

import "slices"

// Routed tells whether pods of the network in use send through this host's own
// network, and so meet its rules and its cluster IPs. Those on a link of the host's
// neighbourhood do not.
func (m *Manager) Routed() bool {
	list, err := m.confList()
	if err != nil || len(list.Plugins) == 0 {
		return true // there are no pods either
	}
	past := []string{"macvlan", "ipvlan", "host-device", "vlan", "sriov", "ib-sriov"}
	return !slices.Contains(past, list.Plugins[0].Network.Type)
}
