package bridge

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// ensurePorts puts living links back on the bridge: it may have been made anew,
// or somebody took them away. With heal, links that are gone are made again.
func (c call) ensurePorts(host hostState, all []attachment, heal bool) error {
	c.watched(all)
	if len(all) == 0 {
		return nil
	}
	links, err := c.host.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list links: %w", err)
	}
	byName := map[string]netlink.Link{}
	for _, l := range links {
		byName[l.Attrs().Name] = l
	}
	var errs []error
	ends := []end{{c.host, host.bridge.Name}}
	for _, a := range all {
		l := byName[a.Veth]
		if l == nil && heal {
			errs = append(errs, c.remakeLink(a, host))
			continue
		}
		if l == nil {
			continue // it is on its way, or the pod's namespace has gone
		}
		if err := c.ensurePort(l, a, host); err != nil {
			errs = append(errs, err)
			continue
		}
		ends = append(ends, end{c.host, a.Veth})
	}
	if err := errors.Join(errs...); err != nil || len(ends) == 1 {
		return err
	}
	return awaitUp(ends)
}

func (c call) ensurePort(l netlink.Link, a attachment, host hostState) error {
	mac, err := net.ParseMAC(a.MAC)
	if err != nil {
		return fmt.Errorf("read record of %s: %w", a.Owner, err)
	}
	if err := c.enslave(l, host.bridge, mac, a.Addrs); err != nil {
		return err
	}
	if err := c.ensureLimit(l, host.mtu, a.Bandwidth); err != nil {
		return err
	}
	if err := c.followMTU(l, a, host.mtu); err != nil { // the pod can be reached all the same
		c.log.Warn("pod keeps its mtu", "pod", a.Pod, "error", err)
	}
	return c.host.LinkSetUp(l)
}

// remakeLink makes the link of an attachment again that somebody deleted, with
// the addresses that it had. Without the pod's namespace there is nothing to heal.
func (c call) remakeLink(a attachment, host hostState) error {
	c.mu.Lock()
	adding := c.adding[a.Owner]
	c.mu.Unlock()
	if adding || a.NetNS == "" {
		return nil
	}
	ns, err := openNetNS(a.NetNS)
	if err != nil {
		c.log.Debug("link is gone with the pod's namespace", "pod", a.Pod, "error", err)
		return nil
	}
	defer func() { _ = unix.Close(ns) }()
	l, err := a.link(ns, host)
	if err != nil {
		return err
	}
	if err := c.connect(l, host.bridge); err != nil {
		return errors.Join(fmt.Errorf("make the link of pod %s again: %w", a.Pod, err), deleteLink(c.host, a.Veth))
	}
	c.log.Warn("made the link of a pod again that somebody had deleted", "pod", a.Pod, "link", a.Veth)
	return nil
}

// ports follows what happens to the pods' links. It is guarded by Plugin.mu.
type ports struct {
	pods     map[string]string // of attached pods, by link
	suspects map[string]bool   // links that somebody may have deleted, taken from the bridge or brought down
}

// watched remembers whose links the attachments' are.
func (p *Plugin) watched(all []attachment) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range all {
		p.ports.pods[a.Veth] = a.Pod
	}
}

func (p *Plugin) unwatch(veth string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.ports.pods, veth)
	delete(p.ports.suspects, veth)
}

// WatchLinks has the kernel tell of changes of pods' links, for Damage, until
// Close. It is for a process that stays.
func (p *Plugin) WatchLinks() error {
	p.stopWatch = make(chan struct{})
	return p.subscribe()
}

func (p *Plugin) subscribe() error {
	updates := make(chan netlink.LinkUpdate, 256)
	ns := netns.NsHandle(p.hostNS)
	err := netlink.LinkSubscribeWithOptions(updates, p.stopWatch, netlink.LinkSubscribeOptions{
		Namespace: &ns, ReceiveBufferSize: 4 << 20,
		ErrorCallback: func(err error) { p.log.Debug("watch links", "error", err) },
	})
	if err != nil {
		return fmt.Errorf("watch links: %w", err)
	}
	p.watching.Go(func() {
		for u := range updates {
			p.suspect(u)
		}
		select {
		case <-p.stopWatch:
			return
		default:
		}
		// What was missed while the socket overflowed is found by looking at all.
		p.mu.Lock()
		for veth := range p.ports.pods {
			p.ports.suspects[veth] = true
		}
		p.mu.Unlock()
		if err := p.subscribe(); err != nil {
			p.log.Error("links of pods are not watched any more", "error", err)
		}
	})
	return nil
}

func (p *Plugin) suspect(u netlink.LinkUpdate) {
	a := u.Attrs()
	well := u.Header.Type == unix.RTM_NEWLINK && a.MasterIndex != 0 && a.Flags&net.FlagUp != 0
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ours := p.ports.pods[a.Name]; ours && !well {
		p.ports.suspects[a.Name] = true
	}
}

// portDamage looks at the suspects on one bridge.
func (p *Plugin) portDamage(br *netlink.Bridge) Damage {
	p.mu.Lock()
	suspects := map[string]string{}
	for veth := range p.ports.suspects {
		if strings.HasPrefix(veth, VethPrefix(br.Name)) {
			suspects[veth] = p.ports.pods[veth]
			delete(p.ports.suspects, veth)
		}
	}
	p.mu.Unlock()
	for veth, pod := range suspects {
		link, err := p.host.LinkByName(veth)
		switch {
		case errors.As(err, &netlink.LinkNotFoundError{}):
			return Damage{LinkDeleted, fmt.Sprintf("link %s of pod %s is gone", veth, pod)}
		case err != nil:
			continue
		case link.Attrs().MasterIndex != br.Index:
			return Damage{LinkDetached, fmt.Sprintf("link %s of pod %s is not on bridge %s", veth, pod, br.Name)}
		case link.Attrs().Flags&net.FlagUp == 0:
			return Damage{LinkDown, fmt.Sprintf("link %s of pod %s is down", veth, pod)}
		}
	}
	return Damage{}
}
