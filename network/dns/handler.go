package dns

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/miekg/dns"
)

// udpSize is what we send and take over UDP at most: it fits into one packet of
// every link, so nothing is lost in fragments.
const udpSize = 1232

// handler answers one question at a time, of any number of clients.
type handler struct {
	domain  string
	ranges  atomic.Pointer[[]netip.Prefix]                            // of pods and Services: names of these addresses are ours
	pods    atomic.Pointer[func(namespace string, a netip.Addr) bool] // nil: no pods but those of the snapshot
	log     *slog.Logger
	now     atomic.Pointer[zone]
	turn    atomic.Uint32
	forward *forwarder
	// answered is told of every answer.
	answered func(from Source, code string)
}

// Source is where an answer came from.
type Source string

// The sources of answers.
const (
	FromCluster  Source = "cluster"  // our own records
	FromCache    Source = "cache"    // what an upstream said before
	FromUpstream Source = "upstream" // also when none has answered
	FromNowhere  Source = "none"     // the question was refused as such
)

// code is the name of an answer's code, of a few.
func code(rcode int) string {
	if name, ok := dns.RcodeToString[rcode]; ok {
		return name
	}
	return "OTHER"
}

// ServeDNS is called in a goroutine of its own for each question.
func (h *handler) ServeDNS(w dns.ResponseWriter, req *dns.Msg) {
	remote, stream := remoteOf(w.RemoteAddr())
	reply, from := h.reply(remote, req)
	h.answered(from, code(reply.Rcode))
	size := dns.MaxMsgSize
	if opt := req.IsEdns0(); !stream {
		size = dns.MinMsgSize
		if opt != nil {
			size = min(max(size, int(opt.UDPSize())), udpSize)
		}
	}
	reply.Truncate(size)
	data, err := reply.Pack()
	if err != nil {
		h.log.Warn("an answer of DNS cannot be written", "question", req.Question, "error", err)
		data, err = new(dns.Msg).SetRcode(req, dns.RcodeServerFailure).Pack()
	}
	if err == nil {
		_, err = w.Write(data)
	}
	if err != nil {
		h.log.Debug("answer a question of DNS", "client", remote, "error", err)
	}
}

func remoteOf(a net.Addr) (addr netip.Addr, stream bool) {
	switch a := a.(type) {
	case *net.UDPAddr:
		return a.AddrPort().Addr().Unmap(), false
	case *net.TCPAddr:
		return a.AddrPort().Addr().Unmap(), true
	}
	return netip.Addr{}, false
}

// reply works an answer out. Whatever a stranger sends, the daemon goes on.
func (h *handler) reply(remote netip.Addr, req *dns.Msg) (reply *dns.Msg, from Source) {
	from = FromNowhere
	reply = new(dns.Msg).SetReply(req)
	reply.RecursionAvailable, reply.Compress = true, true
	defer func() {
		if cause := recover(); cause != nil {
			h.log.Error("a question of DNS could not be answered: this is a fault in pausa", "question", req.String(), "cause", cause)
			reply = new(dns.Msg).SetRcode(req, dns.RcodeServerFailure)
		}
	}()
	opt := req.IsEdns0()
	if opt != nil {
		reply.SetEdns0(udpSize, opt.Do())
	}
	switch {
	case opt != nil && opt.Version() != 0:
		reply.Rcode = dns.RcodeBadVers
	case req.Opcode != dns.OpcodeQuery:
		reply.Rcode = dns.RcodeNotImplemented
	case len(req.Question) != 1:
		reply.Rcode = dns.RcodeFormatError
	case !h.serves(remote), req.Question[0].Qclass != dns.ClassINET, transfer(req.Question[0].Qtype):
		reply.Rcode = dns.RcodeRefused
	default:
		from = h.question(reply, req)
	}
	return reply, from
}

// serves refuses the Internet: it has nothing to ask here, and a server that
// answers everyone is made to flood others.
func (h *handler) serves(a netip.Addr) bool {
	return a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() || h.ours(a)
}

func transfer(t uint16) bool { return t == dns.TypeAXFR || t == dns.TypeIXFR }

func (h *handler) ours(a netip.Addr) bool {
	return slices.ContainsFunc(*h.ranges.Load(), func(p netip.Prefix) bool { return p.Contains(a) })
}

func (h *handler) question(reply, req *dns.Msg) Source {
	q := req.Question[0]
	name := strings.ToLower(q.Name)
	s := h.now.Load()
	if within(name, h.domain) {
		if next := s.answer(reply, q, int(h.turn.Add(1)%1024)); next != "" {
			return h.follow(reply, req, next)
		}
		if reply.Rcode == dns.RcodeNameError && len(reply.Answer) == 0 {
			if a, ok := h.otherPod(name); ok {
				s.answerPod(reply, q, a)
			}
		}
		return FromCluster
	}
	if a, ok := reverseAddr(name); ok && h.ours(a) {
		s.answerPTR(reply, q, a)
		return FromCluster
	}
	if h.forward.cameBack(q) {
		reply.Rcode = dns.RcodeRefused
		return FromNowhere
	}
	answer, from := h.forward.exchange(context.Background(), req)
	h.copyInto(reply, answer)
	return from
}

// follow adds what others know of the name that ours is another one for.
func (h *handler) follow(reply, req *dns.Msg, name string) Source {
	ask := req.Copy()
	ask.Question[0].Name = name
	reply.Authoritative = false
	answer, from := h.forward.exchange(context.Background(), ask)
	h.copyInto(reply, answer)
	return from
}

// copyInto takes over an answer from elsewhere; nil is none.
func (h *handler) copyInto(reply, from *dns.Msg) {
	if from == nil || from.Rcode > 0xf { // more than fits without EDNS, which is between two neighbours
		reply.Rcode = dns.RcodeServerFailure
		return
	}
	reply.Rcode = from.Rcode
	reply.AuthenticatedData, reply.CheckingDisabled = from.AuthenticatedData, from.CheckingDisabled
	reply.Answer = append(reply.Answer, from.Answer...)
	reply.Ns = append(reply.Ns, from.Ns...)
	for _, rr := range from.Extra {
		if rr.Header().Rrtype != dns.TypeOPT { // it is between two neighbours
			reply.Extra = append(reply.Extra, rr)
		}
	}
}
