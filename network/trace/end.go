package trace

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// end looks at what is to answer: the pod's link, and who listens there.
func (w *walk) end(to netip.AddrPort) {
	place, isPod := w.PodOf(to.Addr())
	if !isPod {
		if !w.isLocal(to.Addr()) {
			w.endOutside(to)
			return
		}
		place = Place{}
	}
	err := in(place, func(h *netlink.Handle) error {
		if isPod && !w.endLink(h, place) {
			return nil
		}
		return w.listens(h, place, to)
	})
	if err != nil {
		w.add("end", Stop, fmt.Sprintf("the network of %s cannot be entered: %v", place, err), "delete the pod and let it be made again")
	}
}

// endOutside is for what is on another host: whether it answers is all that is seen.
func (w *walk) endOutside(to netip.AddrPort) {
	err, asked := w.outside[to]
	switch {
	case !asked:
		w.add("end", OK, to.String()+" is outside of this host: what is there is not seen here", "")
	case err != nil:
		w.add("end", Stop, fmt.Sprintf("%s, on another host, does not answer: %v", to, err), "look at that host, and the way to it")
	default:
		w.add("end", OK, to.String()+", on another host, answers", "")
	}
}

// askOutside connects to each endpoint of a Service that is on another host, as the
// Service would: who tries one connection sees one of them.
func (w *walk) askOutside(ctx context.Context, ends []netip.AddrPort) {
	if w.Protocol != "TCP" { // silence says nothing
		return
	}
	w.outside = map[netip.AddrPort]error{}
	var mu sync.Mutex // guards outside
	var work errgroup.Group
	work.SetLimit(16)
	for _, e := range ends {
		if _, isPod := w.PodOf(e.Addr()); isPod || e == w.To || w.isLocal(e.Addr()) {
			continue
		}
		one := *w
		one.To = e
		work.Go(func() error {
			_, _, err := one.dial(ctx)
			if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
				err = fmt.Errorf("nothing came within %s", w.Timeout)
			}
			var no syscall.Errno
			if errors.As(err, &no) {
				err = no
			}
			mu.Lock()
			defer mu.Unlock()
			w.outside[e] = err
			return nil
		})
	}
	_ = work.Wait() // all return nil
}

func (w *walk) endLink(h *netlink.Handle, place Place) bool {
	link, err := h.LinkByName("eth0")
	if err != nil {
		w.add("end", Stop, fmt.Sprintf("%s has no interface eth0: %v", place, err), "delete the pod and let it be made again")
		return false
	}
	if peer := w.peer(link); peer != nil && peer.Attrs().Flags&net.FlagUp == 0 {
		w.add("end", Stop, fmt.Sprintf("%s, the host's end of eth0 of %s, is down", peer.Attrs().Name, place), "ip link set "+peer.Attrs().Name+" up")
		return false
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		w.add("end", Stop, "eth0 of "+place.String()+" is down", "nsenter --net="+place.NetNS+" ip link set eth0 up")
		return false
	}
	return true
}

// listens tells who has the port, from the kernel's list of sockets.
func (w *walk) listens(h *netlink.Handle, place Place, to netip.AddrPort) error {
	at, err := sockets(h, w.Protocol, to.Port())
	if err != nil {
		return fmt.Errorf("list sockets: %w", err)
	}
	var elsewhere []netip.Addr
	for _, a := range at {
		if a.IsUnspecified() && (a.Is6() || to.Addr().Is4()) || a.Unmap() == to.Addr() {
			w.add("end", OK, fmt.Sprintf("%s listens on port %d/%s", place, to.Port(), w.Protocol), "")
			return nil
		}
		elsewhere = append(elsewhere, a)
	}
	if len(elsewhere) > 0 {
		w.add("end", Stop, fmt.Sprintf("%s listens on port %d/%s at %s alone, which %s is not", place, to.Port(), w.Protocol, join(elsewhere), to.Addr()),
			"let the program listen on all addresses (0.0.0.0 or ::)")
		return nil
	}
	w.add("end", Stop, fmt.Sprintf("nothing in %s listens on port %d/%s", place, to.Port(), w.Protocol),
		"check the program in the pod and its port: pausa exec POD -- netstat -ln, and targetPort of the Service")
	return nil
}

// sockets are the addresses at which a port is open.
func sockets(h *netlink.Handle, protocol string, port uint16) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, f := range []uint8{unix.AF_INET, unix.AF_INET6} {
		list, err := openSockets(h, protocol, f)
		if err != nil {
			return nil, err
		}
		for _, s := range list {
			if a, ok := netip.AddrFromSlice(s.IP); ok && s.port == port {
				if f == unix.AF_INET {
					a = a.Unmap()
				}
				out = append(out, a)
			}
		}
	}
	return out, nil
}

type openSocket struct {
	net.IP
	port uint16
}

func openSockets(h *netlink.Handle, protocol string, f uint8) ([]openSocket, error) {
	const listen, closed = 10, 7 // TCP_LISTEN; of UDP, TCP_CLOSE is a socket without a peer
	ask, state := h.SocketDiagTCP, uint8(listen)
	if protocol == "UDP" {
		ask, state = h.SocketDiagUDP, closed
	}
	list, err := ask(f)
	if err != nil {
		return nil, err
	}
	var out []openSocket
	for _, s := range list {
		if s.State == state {
			out = append(out, openSocket{s.ID.Source, s.ID.SourcePort})
		}
	}
	return out, nil
}
