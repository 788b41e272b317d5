// Package network gives a pod its addresses: it pins the pod's network
// namespace in a folder of ours and calls CNI through libcni. The built-in
// plugin type "pausa" (package network/bridge) runs in process, every other
// plugin is exec'ed.
package network

import (
	"errors"
	"net/netip"
)

// ErrNotReady is wrapped by Status when no pod can be attached now.
var ErrNotReady = errors.New("network is not ready")

// PortMapping publishes a container's port on the host.
type PortMapping struct {
	HostIP        string `json:"hostIP,omitempty"` // "" is every address of the host
	HostPort      uint16 `json:"hostPort"`
	ContainerPort uint16 `json:"containerPort"`
	Protocol      string `json:"protocol"` // "tcp", "udp", "sctp"
}

// Annotations by which a pod asks for something of its network.
const (
	AnnotationNetwork = "pausa.run/network"         // name of a further built-in network or of one in the CNI directory
	AnnotationIPs     = "pausa.run/ips"             // addresses, at most one per family, joined by commas
	AnnotationMAC     = "pausa.run/mac"             // hardware address
	AnnotationAliases = "pausa.run/aliases"         // further names on the network, joined by commas, for plugins that do names
	AnnotationGUID    = "pausa.run/infiniband-guid" // for plugins that do InfiniBand
)

// DNS is a resolver's configuration.
type DNS struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// Pod is what a network needs to know of a pod. ID, Name, Namespace and UID
// have been validated (they travel in CNI_ARGS).
type Pod struct {
	ID          string            `json:"id"`
	Name        string            `json:"name"`
	Namespace   string            `json:"namespace"`
	UID         string            `json:"uid"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Ports       []PortMapping     `json:"ports,omitempty"`
	DNS         *DNS              `json:"dns,omitempty"` // the pod's own; nil: it takes what the network says
	CgroupPath  string            `json:"cgroupPath,omitempty"`
}

// Result is what a pod got.
type Result struct {
	Network   string       `json:"network"` // name of the CNI network
	Interface string       `json:"interface"`
	MAC       string       `json:"mac,omitempty"`
	IPs       []netip.Addr `json:"ips"` // the pod's own addresses, IPv4 first
	NetNS     string       `json:"netns"`
	// Ranges of the addresses, as another CNI plugin says, if they lie behind this host.
	Ranges []netip.Prefix `json:"ranges,omitempty"`
	DNS    *DNS           `json:"dns,omitempty"` // what the network's plugins say; nil: nothing
}
