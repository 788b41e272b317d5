package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// How long an upstream is waited for, how often all are tried, and for how long
// one that failed is asked last. Two rounds end before a client's own five seconds.
const (
	tryFor   = 1500 * time.Millisecond
	askFor   = 4500 * time.Millisecond
	rounds   = 2
	avoidFor = 10 * time.Second
	// openQuestions may wait for upstreams at once: each holds a socket.
	openQuestions = 512
)

// forwarder asks the host's resolvers.
type forwarder struct {
	log   *slog.Logger
	cache *cache
	slots chan struct{}
	clock func() time.Time
	try   time.Duration

	mu      sync.Mutex // guards what follows
	servers []netip.AddrPort
	failed  map[netip.AddrPort]time.Time
	probes  map[string]netip.AddrPort // names of checkLoops
	looped  map[netip.AddrPort]bool   // those that ask us again
}

func newForwarder(log *slog.Logger) *forwarder {
	return &forwarder{
		log: log, cache: newCache(time.Now), slots: make(chan struct{}, openQuestions), clock: time.Now, try: tryFor,
		failed: map[netip.AddrPort]time.Time{}, looped: map[netip.AddrPort]bool{},
	}
}

// setServers replaces the upstreams; what the former ones said is forgotten.
func (f *forwarder) setServers(servers []netip.AddrPort) {
	f.mu.Lock()
	f.servers, f.failed, f.looped = servers, map[netip.AddrPort]time.Time{}, map[netip.AddrPort]bool{}
	f.mu.Unlock()
	f.cache.clear()
}

// order lists the upstreams as they are to be tried: those that failed lately last.
func (f *forwarder) order() []netip.AddrPort {
	f.mu.Lock()
	defer f.mu.Unlock()
	var good, bad []netip.AddrPort
	for _, s := range f.servers {
		if f.looped[s] {
			continue
		}
		if at, ok := f.failed[s]; ok && f.clock().Sub(at) < avoidFor {
			bad = append(bad, s)
		} else {
			good = append(good, s)
		}
	}
	return append(good, bad...)
}

func (f *forwarder) note(s netip.AddrPort, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		delete(f.failed, s)
	} else {
		f.failed[s] = f.clock()
	}
}

// exchange is the answer of the first upstream that has one, now or a while ago; nil if none does.
func (f *forwarder) exchange(ctx context.Context, req *dns.Msg) (*dns.Msg, Source) {
	key, name := keyOf(req), req.Question[0].Name
	known, epoch := f.cache.get(key, name)
	if known != nil {
		return known, FromCache
	}
	select {
	case f.slots <- struct{}{}:
		defer func() { <-f.slots }()
	default:
		f.log.Warn("too many questions wait for upstream servers; one is refused", "waiting", openQuestions)
		return nil, FromUpstream
	}
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	answer := f.askAll(ctx, req)
	if answer != nil {
		f.cache.put(key, answer, epoch)
	}
	return answer, FromUpstream
}

// askAll tries every upstream in each round. One that refuses or fails is not
// asked again; if all do, the first of these answers is the answer.
func (f *forwarder) askAll(ctx context.Context, req *dns.Msg) *dns.Msg {
	var last *dns.Msg
	said := map[netip.AddrPort]bool{}
	for range rounds {
		for _, s := range f.order() {
			if said[s] || ctx.Err() != nil {
				continue
			}
			answer, err := f.ask(ctx, req, s)
			f.note(s, err)
			if err != nil {
				f.log.Debug("ask an upstream server", "name", req.Question[0].Name, "error", err)
				continue
			}
			switch answer.Rcode {
			case dns.RcodeServerFailure, dns.RcodeRefused, dns.RcodeNotImplemented, dns.RcodeFormatError:
				said[s] = true
				if last == nil {
					last = answer
				}
			default:
				return answer
			}
		}
	}
	return last
}

// ask asks one upstream over UDP, and over TCP if the answer is cut off.
func (f *forwarder) ask(ctx context.Context, req *dns.Msg, server netip.AddrPort) (*dns.Msg, error) {
	ask := &dns.Msg{Question: req.Question}
	ask.Id = dns.Id()
	ask.RecursionDesired, ask.CheckingDisabled, ask.AuthenticatedData = true, req.CheckingDisabled, req.AuthenticatedData
	opt := req.IsEdns0()
	ask.SetEdns0(udpSize, opt != nil && opt.Do())
	answer, err := f.over(ctx, "udp", ask, server)
	if err == nil && answer.Rcode == dns.RcodeFormatError { // it may not know EDNS
		ask.Extra = nil
		answer, err = f.over(ctx, "udp", ask, server)
	}
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", server, err)
	}
	if !answer.Truncated {
		return answer, nil
	}
	whole, err := f.over(ctx, "tcp", ask, server)
	if err != nil { // half an answer is better than none, and it says that it is half
		return answer, nil
	}
	return whole, nil
}

var errOtherQuestion = errors.New("the answer is to another question")

func (f *forwarder) over(ctx context.Context, network string, ask *dns.Msg, server netip.AddrPort) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, f.try)
	defer cancel()
	client := dns.Client{Net: network, Timeout: f.try, UDPSize: udpSize}
	answer, _, err := client.ExchangeContext(ctx, ask, server.String())
	if err != nil {
		return nil, err
	}
	q := ask.Question[0]
	if !answer.Response || len(answer.Question) != 1 || !strings.EqualFold(answer.Question[0].Name, q.Name) ||
		answer.Question[0].Qtype != q.Qtype || answer.Question[0].Qclass != q.Qclass {
		return nil, errOtherQuestion
	}
	return answer, nil
}
