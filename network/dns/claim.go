package dns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Claim makes addresses this host's own, on its loopback link: there they are
// whatever networks pods have, and nobody answers for them on a wire. It returns
// those that it gave: done twice, none.
func Claim(addrs []netip.Addr) (given []netip.Addr, err error) {
	err = onLoopback(func(lo netlink.Link, has []netlink.Addr) error {
		var errs []error
		for _, a := range addrs {
			if indexOf(has, a) >= 0 {
				continue
			}
			if err := netlink.AddrReplace(lo, hostAddr(a)); err != nil {
				errs = append(errs, fmt.Errorf("give %s to this host: %w", a, err))
				continue
			}
			given = append(given, a)
		}
		return errors.Join(errs...)
	})
	return given, err
}

// Release takes back what Claim gave; what is not there is no error.
func Release(addrs []netip.Addr) error {
	return onLoopback(func(lo netlink.Link, has []netlink.Addr) error {
		var errs []error
		for _, a := range addrs {
			if i := indexOf(has, a); i >= 0 {
				if err := netlink.AddrDel(lo, &has[i]); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
					errs = append(errs, fmt.Errorf("take %s from this host: %w", a, err))
				}
			}
		}
		return errors.Join(errs...)
	})
}

func onLoopback(f func(lo netlink.Link, has []netlink.Addr) error) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find the loopback link: %w", err)
	}
	has, err := netlink.AddrList(lo, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list addresses of lo: %w", err)
	}
	return f(lo, has)
}

func indexOf(has []netlink.Addr, a netip.Addr) int {
	return slices.IndexFunc(has, func(h netlink.Addr) bool {
		got, ok := netip.AddrFromSlice(h.IP)
		return ok && got.Unmap() == a
	})
}

// hostAddr is the address alone, without a network around it.
func hostAddr(a netip.Addr) *netlink.Addr {
	out := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}}
	if a.Is6() {
		out.Flags = unix.IFA_F_NODAD
	} else {
		out.Scope = unix.RT_SCOPE_HOST
	}
	return out
}
