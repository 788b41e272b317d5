package bridge

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/internal/nft"
)

// add is ADD. What a failed one took is given back by the same steps as DEL.
func (c call) add() (out []byte, err error) {
	ns, err := openNetNS(c.req.NetNS)
	if err != nil {
		return nil, types.NewError(types.ErrInvalidNetNS, "use CNI_NETNS", err.Error())
	}
	defer func() { _ = unix.Close(ns) }()
	if err := c.notAttached(); err != nil {
		return nil, err
	}
	host, err := c.ensureHost(false)
	if err != nil {
		return nil, err
	}
	c.setLiving(true)
	c.setAdding(true)
	defer c.setAdding(false)
	defer func() {
		if err != nil {
			err = errors.Join(err, c.undo())
		}
	}()
	a, err := c.claim()
	if err != nil {
		return nil, err
	}
	link, err := a.link(ns, host)
	if err != nil {
		return nil, err
	}
	if err := c.connect(link, host.bridge); err != nil {
		return nil, err
	}
	if err := c.open(a); err != nil {
		return nil, err
	}
	c.watched([]attachment{a})
	return c.result(a, host)
}

// notAttached refuses an owner that has an attachment, and first finishes the deletion of an earlier one.
func (c call) notAttached() error {
	if _, err := c.store.load("attached", c.owner); !errors.Is(err, fs.ErrNotExist) {
		return types.NewError(types.ErrInternal, "attach "+c.owner, errors.Join(errors.New("it is attached already; call DEL first"), err).Error())
	}
	if _, err := c.store.load("detached", c.owner); !errors.Is(err, fs.ErrNotExist) {
		return c.reap(c.store, c.conf.Bridge, []string{c.owner})
	}
	return nil
}

// claim takes addresses and host ports and records them.
func (c call) claim() (attachment, error) {
	a := attachment{
		Version: attachmentVersion, Owner: c.owner, Pod: podName(c.req), NetNS: c.req.NetNS,
		Veth: vethName(c.conf.Bridge, c.owner), MAC: hashMAC("pod " + c.owner).String(), Bandwidth: c.conf.bandwidth(),
	}
	if err := c.claimAddrs(&a); err != nil {
		return a, err
	}
	var err error
	if a.Ports, err = resolvePorts(c.conf.ports(), a.Addrs); err != nil {
		return a, err
	}
	if err := c.store.claimPorts(c.owner, a.Pod, a.Ports); err != nil {
		return a, err
	}
	if err := c.portsFree(a.Ports); err != nil {
		return a, err
	}
	if c.conf.RuntimeConfig == nil || c.conf.RuntimeConfig.MAC == "" {
		return a, c.store.save(a)
	}
	return a, c.claimMAC(&a)
}

// claimAddrs gives the attachment an address of each family: the one that was
// asked for, or the next free one.
func (c call) claimAddrs(a *attachment) error {
	asked, err := c.conf.staticAddrs()
	if err != nil {
		return types.NewError(types.ErrInvalidNetworkConfig, "check static addresses", err.Error())
	}
	for _, f := range families() {
		ranges := c.conf.rangesOf(f)
		if len(ranges) == 0 {
			continue
		}
		var addr netip.Addr
		i := slices.IndexFunc(asked, func(s netip.Addr) bool { return nft.FamilyOf(s) == f })
		if i >= 0 {
			addr, err = asked[i], c.claimStatic(asked[i])
		} else {
			addr, err = c.allocate(ranges)
		}
		if err != nil {
			return err
		}
		of := slices.IndexFunc(ranges, func(r netip.Prefix) bool { return r.Contains(addr) })
		a.Addrs, a.Ranges = append(a.Addrs, addr), append(a.Ranges, ranges[of])
	}
	return nil
}

// allocate takes the next free address of the first range that has one.
func (c call) allocate(ranges []netip.Prefix) (addr netip.Addr, err error) {
	for range 2 {
		for _, r := range ranges {
			if addr, err = c.store.allocate(r, c.owner); !errors.Is(err, errFull) {
				return addr, err
			}
		}
		c.Drain() // some may be held by links that are being deleted
	}
	return addr, err
}

// sortedRanges puts IPv4 first.
func sortedRanges(ranges []netip.Prefix) []netip.Prefix {
	return slices.SortedFunc(slices.Values(ranges), func(a, b netip.Prefix) int { return a.Addr().BitLen() - b.Addr().BitLen() })
}

// link is what connect makes for the attachment.
func (a attachment) link(ns int, host hostState) (podLink, error) {
	mac, err := net.ParseMAC(a.MAC)
	if err != nil {
		return podLink{}, fmt.Errorf("read record of %s: %w", a.Owner, err)
	}
	_, ifName, _ := strings.Cut(a.Owner, ":")
	l := podLink{ns: ns, ifName: ifName, veth: a.Veth, mac: mac, mtu: host.mtu, addrs: a.Addrs, gwMAC: host.bridge.HardwareAddr, limit: a.Bandwidth}
	for _, r := range sortedRanges(a.Ranges) {
		l.gateways = append(l.gateways, gateway(r).Addr())
	}
	return l, nil
}

// open lets packets through: the pod's sources, its host ports. If the table
// was flushed meanwhile all of it is written again.
func (c call) open(a attachment) error {
	unlock, err := c.store.lock()
	if err != nil {
		return err
	}
	err = c.addElements(a)
	unlock()
	if errors.Is(err, unix.ENOENT) {
		_, err = c.ensureHost(true)
	}
	if err != nil {
		return err
	}
	c.forgetMissed(a)
	if err := c.local.serve(c.network(), a); err != nil {
		return types.NewError(types.ErrInvalidNetworkConfig, "publish host ports on loopback", err.Error())
	}
	return nil
}

func (c call) addElements(a attachment) error {
	if err := c.guard.add(c.conf.Bridge, a); err != nil {
		return err
	}
	tx := newTx()
	c.rules.add(tx, a)
	if tx.Empty() {
		return nil
	}
	return wrapRules(c.nft.Commit(tx))
}

// result is CNI's answer in the version that was asked for.
func (c call) result(a attachment, host hostState) ([]byte, error) {
	r := &types100.Result{
		CNIVersion: types100.ImplementedSpecVersion,
		Interfaces: []*types100.Interface{
			{Name: c.conf.Bridge, Mac: host.bridge.HardwareAddr.String(), Mtu: host.mtu},
			{Name: a.Veth, Mac: hashMAC("port " + a.Veth).String(), Mtu: host.mtu},
			{Name: c.req.IfName, Mac: a.MAC, Mtu: host.mtu, Sandbox: c.req.NetNS},
		},
	}
	for i, rng := range sortedRanges(a.Ranges) {
		addr, gw := a.Addrs[i], gateway(rng).Addr()
		r.IPs = append(r.IPs, &types100.IPConfig{
			Interface: types100.Int(2), Gateway: gw.AsSlice(),
			Address: *ipNet(netip.PrefixFrom(addr, addr.BitLen())),
		})
		r.Routes = append(r.Routes, &types.Route{Dst: *defaultNet(gw), GW: gw.AsSlice()})
	}
	answer, err := r.GetAsVersion(c.conf.CNIVersion)
	if err != nil {
		return nil, fmt.Errorf("convert result to version %s: %w", c.conf.CNIVersion, err)
	}
	var out bytes.Buffer
	if err := answer.PrintTo(&out); err != nil {
		return nil, fmt.Errorf("encode result: %w", err)
	}
	return out.Bytes(), nil
}

// setAdding keeps Sync from making a link that ADD is about to make.
func (c call) setAdding(now bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now {
		c.adding[c.owner] = true
	} else {
		delete(c.adding, c.owner)
	}
}

func (c call) lives(owner string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.living[owner]
}

func (c call) setLiving(alive bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if alive {
		c.living[c.owner] = true
	} else {
		delete(c.living, c.owner)
	}
}
