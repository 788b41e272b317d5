// Package trace follows a connection through this host: from a pod or the host
// itself, over links, routes, the rules of Services and the rules of others, to
// whatever listens at its end. It asks the kernel at each step, changes nothing
// (but for the table that a packet trace needs, which is gone afterwards), and
// says where the connection ends, why, and what cures it.
package trace

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// The verdicts of a Step.
const (
	OK   = "ok"
	Warn = "warn" // not as it should be, and no reason to stop
	Stop = "stop" // the connection ends here
)

// Step is one thing that a connection passes.
type Step struct {
	Name    string `json:"step"`
	Verdict string `json:"verdict"`
	What    string `json:"what"`
	Cure    string `json:"cure,omitempty"` // a command, or words
}

// Place is where a connection begins or ends: a pod, or the host.
type Place struct {
	Name  string // "pod default/web-1"; "" is the host
	NetNS string // path of its network namespace; "" is the caller's own
	Addrs []netip.Addr
}

func (p Place) String() string {
	if p.Name == "" {
		return "this host"
	}
	return p.Name
}

// Request says what to follow.
type Request struct {
	From     Place
	To       netip.AddrPort
	Protocol string // "TCP" or "UDP"
	Bridge   string // of the built-in network
	Ranges   []netip.Prefix
	// PodOf finds the pod that has an address.
	PodOf func(netip.Addr) (Place, bool)
	// Packet asks for the rules that a packet really meets.
	Packet  bool
	Timeout time.Duration // of the connection that is tried
}

// walk is one request on its way.
type walk struct {
	Request
	host  *netlink.Handle
	steps []Step
	link  string // the host's end of the pod's link, "" from the host
	src   netip.Addr
	// outside is what endpoints on other hosts answered; nil: they were not asked.
	outside map[netip.AddrPort]error
}

func (w *walk) add(name, verdict, what, cure string) {
	w.steps = append(w.steps, Step{name, verdict, what, cure})
}

// Run follows the request in the calling thread's network namespace, which is
// the host's. The steps end with the connection that was tried; through tells
// whether that succeeded. When it did, nothing before it is a Stop.
func Run(ctx context.Context, r Request) (steps []Step, through bool, err error) {
	if r.Timeout == 0 {
		r.Timeout = 3 * time.Second
	}
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE, unix.NETLINK_INET_DIAG)
	if err != nil {
		return nil, false, fmt.Errorf("connect to the kernel's routing: %w", err)
	}
	defer host.Close()
	w := &walk{Request: r, host: host}
	w.start()
	ends := []netip.AddrPort{r.To}
	if !w.stopped() {
		if ends = w.service(); len(ends) == 0 {
			ends = []netip.AddrPort{r.To}
		}
	}
	if !w.stopped() {
		w.askOutside(ctx, ends)
		w.reach(ends)
	}
	w.tracked(ends)
	through = w.try(ctx)
	return w.steps, through, nil
}

func (w *walk) stopped() bool {
	return slices.ContainsFunc(w.steps, func(s Step) bool { return s.Verdict == Stop })
}

// reach looks at the way to each end. One that cannot be reached stops a
// connection only if there is no other.
func (w *walk) reach(ends []netip.AddrPort) {
	before := len(w.steps)
	bad := 0
	for _, e := range ends {
		from := len(w.steps)
		w.forward(e)
		w.foreign(e)
		w.end(e)
		if slices.ContainsFunc(w.steps[from:], func(s Step) bool { return s.Verdict == Stop }) {
			bad++
		}
	}
	if bad == len(ends) {
		return
	}
	for i := range w.steps[before:] {
		if s := &w.steps[before+i]; s.Verdict == Stop {
			s.Verdict = Warn
			s.What += fmt.Sprintf(" (one connection in %d ends here)", len(ends))
		}
	}
}

// try connects for real. What it says overrules the steps before.
func (w *walk) try(ctx context.Context) bool {
	stopped := w.stopped()
	p := w.probe(ctx)
	if p.err != nil {
		if stopped {
			w.add("connect", Warn, "a connection was tried: "+p.what, "")
		} else {
			w.add("connect", Stop, p.what, p.cure)
		}
	} else {
		for i := range w.steps {
			if w.steps[i].Verdict == Stop {
				w.steps[i].Verdict = Warn
			}
		}
		w.add("connect", OK, p.what, "")
	}
	if w.Packet {
		w.packet(ctx)
	}
	return p.err == nil
}

// in calls f with a handle in a place's network namespace.
func in(p Place, f func(*netlink.Handle) error) error {
	if p.NetNS == "" {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE, unix.NETLINK_INET_DIAG)
		if err != nil {
			return err
		}
		defer h.Close()
		return f(h)
	}
	ns, err := netns.GetFromPath(p.NetNS)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", p.NetNS, err)
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE, unix.NETLINK_INET_DIAG)
	if err != nil {
		return fmt.Errorf("enter network namespace %s: %w", p.NetNS, err)
	}
	defer h.Close()
	return f(h)
}

func family(a netip.Addr) int {
	if a.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

func join[T fmt.Stringer](list []T) string {
	words := make([]string, len(list))
	for i, v := range list {
		words[i] = v.String()
	}
	return strings.Join(words, ", ")
}
