package bridge

import (
	"bytes"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/pausa-run/pausa/internal/nft"
)

// Blockers names chains of others that drop what is forwarded and have no
// exception for the bridge, as docker makes one, each with the command that
// cures it. Chains of legacy iptables cannot be seen.
func (p *Plugin) Blockers(bridge string) ([]string, error) {
	conn, err := nftables.New(nftables.WithNetNSFd(p.hostNS))
	if err != nil {
		return nil, fmt.Errorf("connect to nftables: %w", err)
	}
	var out []string
	families := map[nftables.TableFamily]string{nftables.TableFamilyINet: "inet", nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6"}
	for family, name := range families {
		chains, err := conn.ListChainsOfTableFamily(family)
		if err != nil {
			return out, fmt.Errorf("list chains of others: %w", err)
		}
		for _, c := range chains {
			drops := c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookForward && c.Type == nftables.ChainTypeFilter &&
				c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop
			if !drops || c.Table.Name == nft.TableName {
				continue
			}
			rules, err := conn.GetRules(c.Table, c)
			if err == nil && accepts(rules, expr.MetaKeyIIFNAME, bridge) && accepts(rules, expr.MetaKeyOIFNAME, bridge) {
				continue
			}
			chain := name + " " + c.Table.Name + " " + c.Name
			out = append(out, fmt.Sprintf("chain %s drops what is forwarded, so pods may reach nothing: run nft 'insert rule %s iifname %q accept; insert rule %s oifname %q accept'",
				chain, chain, bridge, chain, bridge))
		}
	}
	return out, nil
}

// accepts tells whether a rule accepts all packets by the interface.
func accepts(rules []*nftables.Rule, key expr.MetaKey, iface string) bool {
	name := append([]byte(iface), 0)
	for _, r := range rules {
		var meta, same, accept, more bool
		for _, e := range r.Exprs {
			switch e := e.(type) {
			case *expr.Meta:
				meta = meta || e.Key == key
				more = more || e.Key != key
			case *expr.Cmp:
				same = same || e.Op == expr.CmpOpEq && bytes.HasPrefix(e.Data, name)
			case *expr.Verdict:
				accept = accept || e.Kind == expr.VerdictAccept
			case *expr.Counter:
			default:
				more = true
			}
		}
		if meta && same && accept && !more {
			return true
		}
	}
	return false
}
