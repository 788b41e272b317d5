package bridge

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
)

// staticAddrs are the addresses that the runtime asks for, checked, at most one per family.
func (c *Conf) staticAddrs() ([]netip.Addr, error) {
	if c.RuntimeConfig == nil {
		return nil, nil
	}
	var out []netip.Addr
	for _, text := range c.RuntimeConfig.IPs {
		host, _, _ := strings.Cut(text, "/") // the pod's address is one of /32 or /128 here
		a, err := netip.ParseAddr(host)
		if err != nil || a.Zone() != "" {
			return nil, fmt.Errorf("%q is not an address", text)
		}
		a = a.Unmap()
		if slices.ContainsFunc(out, func(o netip.Addr) bool { return o.Is4() == a.Is4() }) {
			return nil, fmt.Errorf("%v: want at most one address per family", c.RuntimeConfig.IPs)
		}
		if err := c.checkStatic(a); err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
}

func (c *Conf) checkStatic(a netip.Addr) error {
	i := slices.IndexFunc(c.Ranges, func(r netip.Prefix) bool { return r.Contains(a) })
	switch {
	case i < 0:
		return fmt.Errorf("%s is in no range of network %s: choose one of %v", a, c.Name, c.Ranges)
	case a == gateway(c.Ranges[i]).Addr():
		return fmt.Errorf("%s is the gateway of %s", a, c.Ranges[i])
	case a == c.Ranges[i].Masked().Addr() || isBroadcast(c.Ranges[i], a):
		return fmt.Errorf("%s stands for all of %s", a, c.Ranges[i])
	}
	return nil
}

// claimStatic takes one address or says who has it. One that is held by a link
// that is being deleted is waited for.
func (c call) claimStatic(a netip.Addr) error {
	path := c.store.path("addresses", a.String())
	err := os.Symlink(c.owner, path)
	if errors.Is(err, fs.ErrExist) {
		c.Drain()
		err = os.Symlink(c.owner, path)
	}
	if errors.Is(err, fs.ErrExist) {
		return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("give the pod the address %s", a),
			fmt.Sprintf("%s has it; delete that pod or choose another address", c.store.who(c.store.addressOwner(a.String()))))
	}
	if err != nil {
		return fmt.Errorf("claim address %s: %w", a, err)
	}
	return nil
}

// claimMAC records the attachment with the hardware address that the runtime asks for.
func (c call) claimMAC(a *attachment) error {
	refuse := func(format string, args ...any) error {
		return types.NewError(types.ErrInvalidNetworkConfig, "give the pod the hardware address "+c.conf.RuntimeConfig.MAC, fmt.Sprintf(format, args...))
	}
	mac, err := net.ParseMAC(c.conf.RuntimeConfig.MAC)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 || bytes.Equal(mac, make([]byte, 6)) {
		return refuse("want six bytes of a unicast address, such as 02:00:00:00:00:01")
	}
	if mac.String() == hashMAC("bridge "+c.conf.Bridge).String() {
		return refuse("it is that of bridge %s", c.conf.Bridge)
	}
	a.MAC = mac.String()
	unlock, err := c.store.lock()
	if err != nil {
		return err
	}
	defer unlock()
	all, err := c.store.attachments("attached")
	if err != nil {
		return err
	}
	for _, o := range all {
		if o.MAC == a.MAC {
			return refuse("%s has it; delete that pod or choose another one", c.store.who(o.Owner))
		}
	}
	return c.store.save(*a)
}

// who names an owner for people.
func (s *store) who(owner string) string {
	if a, err := s.load("attached", owner); err == nil && a.Pod != "" {
		return fmt.Sprintf("pod %s (%s)", a.Pod, owner)
	}
	return owner
}
