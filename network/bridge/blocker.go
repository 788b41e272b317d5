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
			if accepted(conn, c, expr.MetaKeyIIFNAME, bridge, 0) && accepted(conn, c, expr.MetaKeyOIFNAME, bridge, 0) {
				continue
			}
			chain := name + " " + c.Table.Name + " " + c.Name
			out = append(out, fmt.Sprintf("chain %s drops what is forwarded, so pods may reach nothing: run nft 'insert rule %s iifname %q accept; insert rule %s oifname %q accept'",
				chain, chain, bridge, chain, bridge))
		}
	}
	return out, nil
}

// accepted looks for such a rule in a chain and in those that all packets go
// through from there, as ufw and docker have theirs.
func accepted(conn *nftables.Conn, c *nftables.Chain, key expr.MetaKey, iface string, depth int) bool {
	const most = 16 // the kernel's limit of jumps
	rules, err := conn.GetRules(c.Table, c)
	if err != nil || depth > most {
		return false
	}
	if accepts(rules, key, iface) {
		return true
	}
	for _, r := range rules {
		if to := always(r); to != "" && accepted(conn, &nftables.Chain{Name: to, Table: c.Table}, key, iface, depth+1) {
			return true
		}
	}
	return false
}

// always is the chain that a rule without a condition jumps to.
func always(r *nftables.Rule) (chain string) {
	for _, e := range r.Exprs {
		switch e := e.(type) {
		case *expr.Counter:
		case *expr.Verdict:
			if e.Kind == expr.VerdictJump {
				chain = e.Chain
			}
		default:
			return ""
		}
	}
	return chain
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
