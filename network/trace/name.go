package trace

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// Resolve asks the first server of a resolv.conf for the addresses of a name,
// from the place, as its programs would.
func Resolve(ctx context.Context, from Place, resolvConf, name string) (found []netip.Addr, s Step) {
	conf, err := dns.ClientConfigFromFile(resolvConf)
	if err != nil || len(conf.Servers) == 0 {
		return nil, Step{"name", Warn, fmt.Sprintf("%s has no server to ask for names (%s)", from, resolvConf), "set dnsPolicy ClusterFirst, or dnsConfig.nameservers"}
	}
	server := net.JoinHostPort(conf.Servers[0], conf.Port)
	var said []string
	err = inside(from.NetNS, func() error {
		for _, t := range []uint16{dns.TypeA, dns.TypeAAAA} {
			c := dns.Client{Timeout: 2 * time.Second}
			m, _, err := c.ExchangeContext(ctx, new(dns.Msg).SetQuestion(dns.Fqdn(name), t), server)
			if err != nil {
				return err
			}
			said = append(said, dns.RcodeToString[m.Rcode])
			for _, rr := range m.Answer {
				switch rr := rr.(type) {
				case *dns.A:
					a, _ := netip.AddrFromSlice(rr.A.To4())
					found = append(found, a)
				case *dns.AAAA:
					a, _ := netip.AddrFromSlice(rr.AAAA.To16())
					found = append(found, a)
				case *dns.CNAME:
					said = append(said, "another name of "+strings.TrimSuffix(rr.Target, "."))
				}
			}
		}
		return nil
	})
	switch said = slices.Compact(said); {
	case errors.Is(err, os.ErrDeadlineExceeded) || isTimeout(err):
		return nil, Step{"name", Stop, fmt.Sprintf("server %s of %s does not answer for %s", server, from, name), "see whether the daemon runs (`pausa info`), and `pausa trace` to " + server + "/UDP"}
	case err != nil:
		return nil, Step{"name", Stop, fmt.Sprintf("ask %s for %s: %v", server, name, err), "see whether the daemon runs: `pausa info`"}
	case len(found) == 0:
		return nil, Step{"name", Stop, fmt.Sprintf("%s of %s says %s of %s", server, from, strings.Join(said, ", "), name), "a name has only ready endpoints; servers other than the cluster's do not know it"}
	}
	return found, Step{"name", OK, fmt.Sprintf("%s is %s, says %s", name, join(found), server), ""}
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}
