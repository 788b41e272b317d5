package service

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/pausa-run/pausa/internal/nft"
)

// prefixFrom begins the names of chains that let clients of some ranges through.
const prefixFrom = prefix + "from"

// guard is a chain that leads clients of some ranges on and drops all others. Its
// name is a hash of the content: frontends with the same ranges and endpoints share it.
type guard struct {
	family nft.Family
	target string // chain
	ranges string // those of the family, sorted, separated by blanks
}

// guard is that of a frontend which is not for everybody.
func (f *frontend) guard() guard {
	var ranges []string
	for _, p := range *f.allow {
		if nft.FamilyOf(p.Addr()) == f.key.family {
			ranges = append(ranges, p.Masked().String())
		}
	}
	slices.Sort(ranges)
	return guard{f.key.family, f.target(), strings.Join(slices.Compact(ranges), " ")}
}

func (g guard) name() string { return hashName(prefixFrom, g.family, g.ranges+" "+g.target) }

func (g guard) rules() []nft.Rule {
	var rules []nft.Rule
	for text := range strings.FieldsSeq(g.ranges) {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			continue // it was one before
		}
		to := []nft.Stmt{nft.NFProto(g.family), nft.In(nft.Saddr(g.family), p), nft.Goto(g.target)}
		if p.Bits() == 0 {
			to = slices.Delete(to, 1, 2)
		}
		// ip saddr 203.0.113.0/24 goto svc-lb4-3
		rules = append(rules, nft.NewRule(to...))
	}
	return append(rules, nft.NewRule(nft.Drop()))
}
