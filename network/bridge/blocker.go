package bridge

import (
	"bytes"
	"fmt"
	"strings"

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
			forwards := c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookForward && c.Type == nftables.ChainTypeFilter
			if !forwards || c.Table.Name == nft.TableName {
				continue
			}
			rules, err := conn.GetRules(c.Table, c)
			if err != nil {
				return out, fmt.Errorf("list the rules of chain %s %s %s: %w", name, c.Table.Name, c.Name, err)
			}
			if !drops(c, rules) || accepted(conn, c, expr.MetaKeyIIFNAME, bridge, 0) && (translated(rules) || accepted(conn, c, expr.MetaKeyOIFNAME, bridge, 0)) {
				continue
			}
			chain := name + " " + c.Table.Name + " " + c.Name
			out = append(out, fmt.Sprintf("chain %s drops what is forwarded, so pods may reach nothing: run %s", chain, cure(chain, rules, bridge)))
		}
	}
	return out, nil
}

// drops tells of a chain whether it drops what none of its rules accepts: by its
// policy or, as firewalld's, by its last rule.
func drops(c *nftables.Chain, rules []*nftables.Rule) bool {
	if c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
		return true
	}
	if len(rules) == 0 {
		return false
	}
	dropped := false
	for _, e := range rules[len(rules)-1].Exprs {
		switch e := e.(type) {
		case *expr.Counter:
		case *expr.Reject:
			dropped = true
		case *expr.Target: // iptables' word for it
			dropped = e.Name == "REJECT"
		case *expr.Verdict:
			dropped = e.Kind == expr.VerdictDrop
		default:
			return false
		}
	}
	return dropped
}

// translated tells whether the rules accept what a Service or a host port
// brings, whose connections need no exception for what goes out by the bridge.
func translated(rules []*nftables.Rule) bool {
	for _, r := range rules {
		status, accept := false, false
		for _, e := range r.Exprs {
			switch e := e.(type) {
			case *expr.Ct:
				status = status || e.Key == expr.CtKeySTATUS
			case *expr.Verdict:
				accept = e.Kind == expr.VerdictAccept
			}
		}
		if status && accept {
			return true
		}
	}
	return false
}

// cure is said in the words of the firewall that made the chain, which would take
// ours away again. Who made it is told by the rules: programs may be installed and off.
func cure(chain string, rules []*nftables.Rule, bridge string) string {
	if strings.HasPrefix(chain, "inet firewalld ") {
		return "firewall-cmd --permanent --zone=trusted --add-interface=" + bridge + " && firewall-cmd --reload"
	}
	docker := false
	for _, r := range rules {
		for _, e := range r.Exprs {
			v, jump := e.(*expr.Verdict)
			if jump && (strings.HasPrefix(v.Chain, "ufw-") || strings.HasPrefix(v.Chain, "ufw6-")) {
				return "ufw allow in on " + bridge + " && ufw route allow in on " + bridge + " && ufw route allow out on " + bridge
			}
			docker = docker || jump && v.Chain == "DOCKER-USER"
		}
	}
	if docker {
		insert := "iptables -I DOCKER-USER "
		if strings.HasPrefix(chain, "ip6 ") {
			insert = "ip6tables -I DOCKER-USER "
		}
		return insert + "-i " + bridge + " -j ACCEPT && " + insert + "-o " + bridge + " -j ACCEPT"
	}
	return fmt.Sprintf("nft 'insert rule %s iifname %q accept; insert rule %s oifname %q accept'", chain, bridge, chain, bridge)
}

// accepted looks for a rule that accepts all packets by the interface, in a chain and in
// those that all such packets go through from there, as ufw, docker and firewalld have theirs.
func accepted(conn *nftables.Conn, c *nftables.Chain, key expr.MetaKey, iface string, depth int) bool {
	const most = 16 // the kernel's limit of jumps
	rules, err := conn.GetRules(c.Table, c)
	if err != nil || depth > most {
		return false
	}
	for _, r := range rules {
		v := says(r, key, iface)
		if v == nil {
			continue
		}
		switch v.Kind {
		case expr.VerdictAccept:
			return true
		case expr.VerdictJump, expr.VerdictGoto:
			if accepted(conn, &nftables.Chain{Name: v.Chain, Table: c.Table}, key, iface, depth+1) {
				return true
			}
		}
	}
	return false
}

// says is what a rule does with all packets by the interface; nil if it has further conditions.
func says(r *nftables.Rule, key expr.MetaKey, iface string) (v *expr.Verdict) {
	name := append([]byte(iface), 0)
	for _, e := range r.Exprs {
		switch e := e.(type) {
		case *expr.Counter:
		case *expr.Meta:
			if e.Key != key {
				return nil
			}
		case *expr.Cmp:
			if e.Op != expr.CmpOpEq || !bytes.HasPrefix(e.Data, name) {
				return nil
			}
		case *expr.Verdict:
			v = e
		default:
			return nil
		}
	}
	return v
}
