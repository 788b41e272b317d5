package bridge

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Bandwidth is the runtimeConfig of that name. Rates are in bits per second, as
// the pod sees them; 0 is no limit. Bursts are in bits.
type Bandwidth struct {
	IngressRate  uint64 `json:"ingressRate,omitempty"`
	IngressBurst uint64 `json:"ingressBurst,omitempty"`
	EgressRate   uint64 `json:"egressRate,omitempty"`
	EgressBurst  uint64 `json:"egressBurst,omitempty"`
}

// queueTime is how long a packet waits at most for its turn, in seconds.
const queueTime = 0.05

func (b *Bandwidth) check() error {
	for what, pair := range map[string][2]uint64{"ingress": {b.IngressRate, b.IngressBurst}, "egress": {b.EgressRate, b.EgressBurst}} {
		if (pair[0] == 0) != (pair[1] == 0) {
			return fmt.Errorf("bandwidth: %sRate %d and %[1]sBurst %d: want both or none", what, pair[0], pair[1])
		}
		if pair[0] != 0 && (pair[0] < 8 || pair[1] < 8*1500 || pair[1]/8 > 1<<31) {
			return fmt.Errorf("bandwidth: %sRate %d, %[1]sBurst %d: want a rate of at least 8 and a burst of 12000 to 2^34 bits", what, pair[0], pair[1])
		}
	}
	return nil
}

// ensureLimit shapes what goes to the pod on the host's end of its link, and
// what comes from it on a device that the host's end hands it to. The pod
// cannot get at either.
func (p *Plugin) ensureLimit(link netlink.Link, mtu int, b *Bandwidth) error {
	if b == nil {
		return nil
	}
	name := link.Attrs().Name
	if b.IngressRate > 0 {
		if err := p.shape(link.Attrs().Index, b.IngressRate, b.IngressBurst); err != nil {
			return fmt.Errorf("limit what goes to %s: %w", name, err)
		}
	}
	if b.EgressRate == 0 {
		return nil
	}
	to, err := p.ensureIfb(ifbName(name), mtu)
	if err == nil {
		err = p.shape(to.Attrs().Index, b.EgressRate, b.EgressBurst)
	}
	if err == nil {
		err = p.redirect(link, to)
	}
	if err != nil {
		return fmt.Errorf("limit what comes from %s: %w", name, err)
	}
	return nil
}

// shape makes a token bucket the device's queue.
func (p *Plugin) shape(index int, rate, burst uint64) error {
	rate, burst = rate/8, burst/8
	return p.host.QdiscReplace(&netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       rate, Buffer: netlink.Xmittime(rate, uint32(burst)), Limit: uint32(min(float64(burst)+float64(rate)*queueTime, 1<<31)),
	})
}

func (p *Plugin) ensureIfb(name string, mtu int) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, mtu
	if err := p.host.LinkAdd(&netlink.Ifb{LinkAttrs: attrs}); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make device %s (the kernel needs CONFIG_IFB): %w", name, err)
	}
	link, err := p.host.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("look up device %s: %w", name, err)
	}
	return link, p.host.LinkSetUp(link)
}

// redirect hands all that comes in by a link to another device, whose queue it
// leaves as if it had come in just then.
func (p *Plugin) redirect(from, to netlink.Link) error {
	index := from.Attrs().Index
	in := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS}}
	if err := p.host.QdiscAdd(in); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("add ingress queue: %w", err)
	}
	has, err := p.host.FilterList(from, in.Handle)
	if err != nil || len(has) > 0 {
		return err
	}
	return p.host.FilterAdd(&netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: in.Handle, Priority: 1, Protocol: unix.ETH_P_ALL},
		Actions: []netlink.Action{&netlink.MirredAction{
			ActionAttrs:  netlink.ActionAttrs{Action: netlink.TC_ACT_STOLEN},
			MirredAction: netlink.TCA_EGRESS_REDIR, Ifindex: to.Attrs().Index,
		}},
	})
}

// checkLimit tells what of the limits is missing.
func (p *Plugin) checkLimit(link netlink.Link, b *Bandwidth) error {
	if b == nil {
		return nil
	}
	if b.IngressRate > 0 {
		if err := p.shaped(link, b.IngressRate); err != nil {
			return err
		}
	}
	if b.EgressRate == 0 {
		return nil
	}
	ifb, err := p.host.LinkByName(ifbName(link.Attrs().Name))
	if err != nil {
		return fmt.Errorf("device of the egress limit: %w", err)
	}
	filters, err := p.host.FilterList(link, netlink.MakeHandle(0xffff, 0))
	if err != nil || len(filters) == 0 {
		return fmt.Errorf("the egress limit of %s is missing: %w", link.Attrs().Name, errors.Join(err, errors.New("no filter")))
	}
	return p.shaped(ifb, b.EgressRate)
}

func (p *Plugin) shaped(link netlink.Link, rate uint64) error {
	queues, err := p.host.QdiscList(link)
	if err != nil {
		return fmt.Errorf("list queues of %s: %w", link.Attrs().Name, err)
	}
	for _, q := range queues {
		if t, ok := q.(*netlink.Tbf); ok && t.Rate == rate/8 {
			return nil
		}
	}
	return fmt.Errorf("the limit of %d bits per second of %s is missing", rate, link.Attrs().Name)
}

// ifbName is the device of an attachment's egress limit: beside its link by name.
func ifbName(veth string) string { return "pi" + veth[2:] }
