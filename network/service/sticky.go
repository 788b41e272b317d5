package service

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/pausa-run/pausa/internal/nft"
)

// Session affinity has chains of its own for each Service port that asks for it,
// since what would do in a shared one cannot be said in nft's syntax, and makes
// its list abort. svc-sticky4-HASH tries the set of clients of each endpoint and
// then picks one at random; svc-client4-HASH notes the client in the endpoint's
// set and translates. The names are hashes of the content: what changes gets new
// ones, and an endpoint that stays keeps its clients.

const (
	prefixSticky = prefix + "sticky"
	prefixClient = prefix + "client"
)

// sticky is one Service port with affinity, in one family. All its frontends
// share the clients.
type sticky struct {
	owner   string // "namespace/name"
	port    uint16
	proto   uint8
	timeout time.Duration
}

// client is one endpoint of a sticky port: a set of clients and a chain.
type client struct {
	sticky
	endpoint netip.AddrPort
}

func hashName(prefix string, f nft.Family, of string) string {
	sum := sha256.Sum256([]byte(of))
	digit := "4-"
	if f == nft.IPv6 {
		digit = "6-"
	}
	return prefix + digit + hex.EncodeToString(sum[:8])
}

func (c client) family() nft.Family { return nft.FamilyOf(c.endpoint.Addr()) }

// name is that of the set and of the chain.
func (c client) name() string { return hashName(prefixClient, c.family(), c.String()) }

func (c client) String() string {
	return fmt.Sprintf("%s %d/%d %s %s", c.owner, c.port, c.proto, c.timeout, c.endpoint)
}

func (c client) set() nft.Set {
	return nft.Set{Name: c.name(), Key: []nft.Type{c.family().AddrType()}, Timeout: c.timeout}
}

func (c client) rules() []nft.Rule {
	f := c.family()
	return []nft.Rule{
		// update @svc-client4-HASH { ip saddr }
		nft.NewRule(nft.NFProto(f), nft.Update(c.set(), nft.Saddr(f))),
		// meta l4proto tcp dnat ip to 10.1.0.11:8080
		nft.NewRule(nft.NFProto(f), nft.Is(nft.L4Proto(), nft.Value(nil).Proto(c.proto)), nft.DNAT(c.endpoint)),
	}
}

// clients are the endpoints of a frontend with affinity, in a fixed order.
func (f *frontend) clients() []client {
	out := make([]client, len(f.endpoints))
	for i, e := range f.endpoints {
		out[i] = client{f.sticky, e}
	}
	slices.SortFunc(out, func(a, b client) int { return a.endpoint.Compare(b.endpoint) })
	return out
}

// stickyName is that of the chain to which the frontend's element leads.
func (f *frontend) stickyName() string {
	var all strings.Builder
	for _, c := range f.clients() {
		all.WriteString(c.String() + "\n")
	}
	return hashName(prefixSticky, f.key.family, all.String())
}

// stickyRules sends known clients on, and others anywhere with equal chances.
func stickyRules(f nft.Family, clients []client) []nft.Rule {
	var rules []nft.Rule
	for _, c := range clients {
		// ip saddr @svc-client4-HASH goto svc-client4-HASH
		rules = append(rules, nft.NewRule(nft.NFProto(f), nft.InSet(c.set(), nft.Saddr(f)), nft.Goto(c.name())))
	}
	for i, c := range clients {
		r := nft.NewRule(nft.Goto(c.name()))
		if left := len(clients) - i; left > 1 {
			// numgen random mod 3 0 goto svc-client4-HASH
			r = nft.NewRule(nft.Is(nft.Random(uint32(left)), nft.Value(nil).Mark(0)), nft.Goto(c.name()))
		}
		rules = append(rules, r)
	}
	return rules
}

// addSticky makes the sets and chains that elements will lead to.
func (c *change) addSticky(tx *nft.Tx) {
	for _, cl := range c.newClients {
		tx.AddSet(cl.set())
		tx.SetRules(nft.Chain{Name: cl.name()}, cl.rules()...)
	}
	for name, clients := range c.newStickies {
		tx.SetRules(nft.Chain{Name: name}, stickyRules(clients[0].family(), clients)...)
	}
}
