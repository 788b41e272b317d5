package trace

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/internal/nft"
	"github.com/pausa-run/pausa/network/bridge"
	"github.com/pausa-run/pausa/network/service"
)

// service looks the destination up in the kernel's maps of host ports and of
// Services, and returns where it leads; nothing when it is in none.
func (w *walk) service() []netip.AddrPort {
	conn, err := nft.Open()
	if err != nil {
		w.add("service rules", Warn, err.Error(), "")
		return nil
	}
	defer func() { _ = conn.Close() }()
	local := w.isLocal(w.To.Addr())
	switch pod, err := bridge.LookPort(conn, w.To, w.Protocol, local); {
	case err != nil:
		w.add("host ports", Warn, fmt.Sprintf("the rules of host ports cannot be read: %v", err), "restart the daemon: it writes its rules again")
	case pod.IsValid():
		w.add("host ports", OK, fmt.Sprintf("host port %d/%s leads to %s%s", w.To.Port(), w.Protocol, pod, w.nameOf(pod.Addr())), "")
		return []netip.AddrPort{pod}
	}
	found, err := service.Look(conn, w.To, w.Protocol, local)
	switch {
	case err != nil:
		w.add("service rules", Warn, fmt.Sprintf("the rules of Services cannot be read: %v", err), "restart the daemon: it writes its rules again")
		return nil
	case found.Kind == "" && found.ClusterIP:
		w.add("service rules", Stop, fmt.Sprintf("%s is a cluster IP, and has no port %d/%s: it is refused", w.To.Addr(), w.To.Port(), w.Protocol), "use a port of the Service, or add this one to it")
		return nil
	case found.Kind == "":
		return nil
	case len(found.Endpoints) == 0:
		w.add("service rules", Stop, fmt.Sprintf("%s %s/%s leads to %s in the kernel: it has no endpoint and is refused", found.Kind, w.To, w.Protocol, found.Chain), "make a pod of the Service ready: its selector must match, and the readiness probe pass")
		return nil
	}
	w.add("service rules", OK, fmt.Sprintf("%s %s/%s goes by %s to %s", found.Kind, w.To, w.Protocol, found.Chain, join(found.Endpoints)), "")
	return found.Endpoints
}

// isLocal tells whether an address is one of this host's.
func (w *walk) isLocal(a netip.Addr) bool {
	routes, err := w.host.RouteGet(a.AsSlice())
	return err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL
}
