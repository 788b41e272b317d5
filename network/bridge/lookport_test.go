package bridge

import (
	"bytes"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/internal/nft"
)

// findable is a fake whose single elements can be read.
type findable struct{ *nft.Fake }

func (f findable) Find(s nft.Set, key nft.Value) (nft.Element, bool, error) {
	all, err := f.Elements(s)
	for _, e := range all {
		if bytes.Equal(e.Key, key) {
			return e, true, err
		}
	}
	return nft.Element{}, false, err
}

func TestLookPort(t *testing.T) {
	fake := nft.NewFake()
	tx := nft.NewTx()
	at := netip.MustParseAddrPort
	for bridge, ports := range map[string][]hostPort{
		"pausa0": {
			{unix.IPPROTO_TCP, at("0.0.0.0:8080"), at("10.9.0.2:80")},
			{unix.IPPROTO_TCP, at("[::]:8080"), at("[fd09::2]:80")},
			{unix.IPPROTO_UDP, at("192.0.2.1:53"), at("10.9.0.2:5353")},
		},
		"pausa0-blue": {{unix.IPPROTO_TCP, at("192.0.2.1:9090"), at("10.90.0.2:90")}},
	} {
		r := rules{bridge}
		for _, s := range r.sets() {
			tx.AddSet(s)
		}
		r.add(tx, attachment{Ports: ports})
	}
	if err := fake.Commit(tx); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		to, protocol string
		local        bool
		want         string
	}{
		{"192.0.2.1:8080", "TCP", true, "10.9.0.2:80"},
		{"192.0.2.1:8080", "TCP", false, ""}, // somebody else's address
		{"192.0.2.1:8080", "UDP", true, ""},
		{"[2001:db8::1]:8080", "TCP", true, "[fd09::2]:80"},
		{"192.0.2.1:53", "UDP", true, "10.9.0.2:5353"},
		{"192.0.2.2:53", "UDP", true, ""},
		{"192.0.2.1:9090", "TCP", true, "10.90.0.2:90"},
		{"127.0.0.1:8080", "TCP", true, ""},
	} {
		got, err := LookPort(findable{fake}, at(c.to), c.protocol, c.local)
		if text := got.String(); err != nil || got.IsValid() != (c.want != "") || got.IsValid() && text != c.want {
			t.Errorf("%s/%s, local %v: %s, %v; want %q", c.to, c.protocol, c.local, text, err, c.want)
		}
	}
}
