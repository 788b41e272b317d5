package loopback

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	// udpIdle ends the session of a client that has been silent, as conntrack
	// does.
	udpIdle = 60 * time.Second
	// udpSessions bounds the clients of one port.
	udpSessions = 4096
	// udpSize is the longest datagram.
	udpSize = 65535
)

// udpRelay is one port of UDP: a socket for each client, so that the
// endpoint's answers find their way back.
type udpRelay struct {
	server *Server
	port   *listener
	front  *net.UDPConn

	mu       sync.Mutex // guards sessions
	sessions map[netip.AddrPort]*udpSession
}

type udpSession struct {
	*net.UDPConn
	endpoint netip.AddrPort
}

func (s *Server) listenUDP(out *listener) error {
	front, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(out.port.AddrPort))
	if err != nil {
		return err
	}
	out.Closer = front
	r := &udpRelay{server: s, port: out, front: front, sessions: map[netip.AddrPort]*udpSession{}}
	s.wait.Go(r.serve)
	return nil
}

// serve passes datagrams on until the socket is closed.
func (r *udpRelay) serve() {
	defer r.closeSessions()
	buf := make([]byte, udpSize)
	for {
		n, client, err := r.front.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		if s := r.session(client); s != nil {
			_, _ = s.Write(buf[:n])
		}
	}
}

// session is the client's socket to an endpoint in force; nil if there is no
// endpoint or there are too many clients.
func (r *udpRelay) session(client netip.AddrPort) *udpSession {
	endpoints := *r.port.endpoints.Load()
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.sessions[client]; s != nil {
		if slices.Contains(endpoints, s.endpoint) {
			return s
		}
		_ = s.Close()
		delete(r.sessions, client)
	}
	if len(endpoints) == 0 || len(r.sessions) >= udpSessions {
		return nil
	}
	to := endpoints[rand.IntN(len(endpoints))]
	var c *net.UDPConn
	err := r.server.enter(func() (err error) {
		c, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
		return err
	})
	if err != nil {
		r.server.log.Debug("connect to an endpoint", "port", r.port.port, "endpoint", to, "cause", err)
		return nil
	}
	s := &udpSession{c, to}
	r.sessions[client] = s
	r.server.wait.Go(func() { r.answer(client, s) })
	return s
}

// answer passes the endpoint's datagrams back until the session is idle, the
// endpoint refuses or the session is closed.
func (r *udpRelay) answer(client netip.AddrPort, s *udpSession) {
	buf := make([]byte, udpSize)
	for {
		if err := s.SetReadDeadline(time.Now().Add(udpIdle)); err != nil {
			break
		}
		n, err := s.Read(buf)
		if err != nil {
			break
		}
		_, _ = r.front.WriteToUDPAddrPort(buf[:n], client)
	}
	_ = s.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sessions[client] == s {
		delete(r.sessions, client)
	}
}

func (r *udpRelay) closeSessions() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.sessions {
		_ = s.Close()
	}
}
