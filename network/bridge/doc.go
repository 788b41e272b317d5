// Package bridge is the CNI plugin "pausa", the built-in network: one bridge per
// host, a veth pair per pod, addresses, host ports, masquerade and
// anti-spoofing, all by netlink and nftables over netlink.
//
// Pods have /32 and /128 addresses and reach everything, also each other,
// through the bridge's gateway address: the host routes every packet, so that
// connection tracking and NAT see both directions. The bridge's ports are
// isolated from each other.
//
// The same code runs in the daemon (Plugin.Run) and as an executable (PluginMain).
package bridge
