package service

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
)

func TestAllocatorIsStable(t *testing.T) {
	give := func(keys []string) map[string]string {
		a := NewAllocator(testCIDRs, 30000, 32767)
		out := map[string]string{}
		for _, k := range keys {
			for _, family := range []int{4, 6} {
				addr, err := a.ClusterIP(k, family)
				if err != nil {
					t.Fatal(err)
				}
				again, err := a.ClusterIP(k, family)
				if err != nil || again != addr {
					t.Errorf("%s: %s, then %s, %v", k, addr, again, err)
				}
				if (family == 4) != addr.Is4() {
					t.Errorf("%s is not IPv%d", addr, family)
				}
				out[k+fmt.Sprint(family)] = addr.String()
			}
			port, err := a.NodePort(k, "TCP")
			if err != nil {
				t.Fatal(err)
			}
			out[k] = fmt.Sprint(port)
		}
		return out
	}
	one, two := give([]string{"a/x", "a/y", "b/x"}), give([]string{"b/x", "a/y", "a/x"})
	for k, v := range one {
		if two[k] != v {
			t.Errorf("%s: %s in one order, %s in another", k, v, two[k])
		}
	}
}

func TestAllocatorErrors(t *testing.T) {
	a := NewAllocator(testCIDRs, 30000, 30001)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	addr := netip.MustParseAddr
	must(a.ReserveClusterIP("a/x", addr("10.96.0.10")))
	must(a.ReserveClusterIP("a/x", addr("::ffff:10.96.0.10")))
	must(a.ReserveNodePort("a/x", "TCP", 30000))
	must(a.ReserveNodePort("a/x", "TCP", 30000))
	must(a.ReserveNodePort("a/y", "UDP", 30000))
	for _, c := range []struct {
		err  error
		is   error
		says string
	}{
		{a.ReserveClusterIP("a/y", addr("10.96.0.10")), ErrInUse, "belongs to service a/x"},
		{a.ReserveClusterIP("a/y", addr("10.97.0.1")), ErrOutOfRange, "10.96.0.0/16, fd96::/112"},
		{a.ReserveClusterIP("a/y", addr("10.96.0.0")), ErrOutOfRange, "10.96.0.0"},
		{a.ReserveClusterIP("a/y", addr("10.96.255.255")), ErrOutOfRange, "10.96.255.255"},
		{a.ReserveClusterIP("a/y", addr("fd96::")), ErrOutOfRange, "fd96::"},
		{a.ReserveNodePort("a/y", "TCP", 30000), ErrInUse, "belongs to service a/x"},
		{a.ReserveNodePort("a/y", "TCP", 29999), ErrOutOfRange, "30000-30001"},
		{a.ReserveNodePort("a/y", "TCP", 0), ErrOutOfRange, "30000-30001"},
	} {
		if !errors.Is(c.err, c.is) || !strings.Contains(c.err.Error(), c.says) {
			t.Errorf("error %v, want %v and %q", c.err, c.is, c.says)
		}
	}
	if p, err := a.NodePort("a/z", "TCP"); err != nil || p != 30001 {
		t.Errorf("the last port: %d, %v", p, err)
	}
	if _, err := a.NodePort("a/w", "TCP"); !errors.Is(err, ErrExhausted) {
		t.Errorf("no port left: %v", err)
	}
	if _, err := NewAllocator(testCIDRs[:1], 0, 0).ClusterIP("a/x", 6); !errors.Is(err, ErrOutOfRange) {
		t.Errorf("no range: %v", err)
	}
	if _, err := NewAllocator(testCIDRs[:1], 0, 0).NodePort("a/x", "TCP"); !errors.Is(err, ErrExhausted) {
		t.Errorf("no port range: %v", err)
	}
	a.Release("a/x")
	a.Release("a/x")
	must(a.ReserveClusterIP("a/y", addr("10.96.0.10")))
	must(a.ReserveNodePort("a/y", "TCP", 30000))
}

// TestAllocatorProperties runs random orders against a plain model: nobody
// gets what another has, all that is free can be had, and it ends exactly when
// nothing is left.
func TestAllocatorProperties(t *testing.T) {
	for _, size := range []string{"10.0.0.0/29", "10.0.0.0/31", "10.0.0.0/32", "fd00::/125", "fd00::/64"} {
		cidr := netip.MustParsePrefix(size)
		family := familyNumber(cidr.Addr())
		r := rand.New(rand.NewPCG(7, uint64(len(size))))
		a := NewAllocator([]netip.Prefix{cidr}, 1000, 1003)
		owner, has := map[netip.Addr]string{}, map[string]netip.Addr{}
		for range 3000 {
			key := fmt.Sprint("n/", r.IntN(12))
			switch r.IntN(3) {
			case 0:
				a.Release(key)
				delete(owner, has[key])
				delete(has, key)
			case 1:
				addr, err := a.ClusterIP(key, family)
				full := uint64(len(owner)) == usable(cidr)
				if old, ok := has[key]; ok {
					if err != nil || addr != old {
						t.Fatalf("%s: %s has %s, got %s, %v", size, key, old, addr, err)
					}
				} else if full != errors.Is(err, ErrExhausted) {
					t.Fatalf("%s: full is %v, error %v", size, full, err)
				} else if err == nil {
					if owner[addr] != "" || !cidr.Contains(addr) {
						t.Fatalf("%s: %s got %s of %q", size, key, addr, owner[addr])
					}
					owner[addr], has[key] = key, addr
				}
			case 2:
				if _, ok := has[key]; ok {
					continue
				}
				addr := nth(cidr, r.Uint64N(10))
				err := a.ReserveClusterIP(key, addr)
				switch {
				case !handsOut(cidr, addr):
					if !errors.Is(err, ErrOutOfRange) {
						t.Fatalf("%s: reserve %s: %v", size, addr, err)
					}
				case owner[addr] != "":
					if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), owner[addr]) {
						t.Fatalf("%s: reserve %s of %s: %v", size, addr, owner[addr], err)
					}
				case err != nil:
					t.Fatalf("%s: reserve %s: %v", size, addr, err)
				default:
					owner[addr], has[key] = key, addr
				}
			}
		}
	}
}

func FuzzReserveClusterIP(f *testing.F) {
	f.Add("10.96.0.1", "10.96.0.0/16")
	f.Add("fd96::1", "fd96::/112")
	f.Add("::ffff:10.0.0.1", "10.0.0.0/30")
	f.Add("255.255.255.255", "255.255.255.254/31")
	f.Add("ffff::", "ffff::/0")
	f.Fuzz(func(t *testing.T, address, cidr string) {
		addr, err1 := netip.ParseAddr(address)
		p, err2 := netip.ParsePrefix(cidr)
		if err1 != nil || err2 != nil {
			return
		}
		a := NewAllocator([]netip.Prefix{p}, 1, 2)
		err := a.ReserveClusterIP("a/x", addr)
		if err == nil && !p.Contains(addr.Unmap()) {
			t.Errorf("%s is not in %s", addr, p)
		}
		if other := a.ReserveClusterIP("a/y", addr); err == nil && !errors.Is(other, ErrInUse) {
			t.Errorf("%s was given twice: %v", addr, other)
		}
		got, err := a.ClusterIP("a/z", familyNumber(p.Addr()))
		if err == nil && (!p.Contains(got) || got == addr.Unmap()) {
			t.Errorf("%s of %s while %s is taken", got, p, addr)
		}
	})
}
