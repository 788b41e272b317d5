package probe

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// maxRedirects is how often a probe is sent on to another page of the same host.
const maxRedirects = 10

// http asks for a page. It speaks the protocol by itself, one request for each
// connection: net/http's transport costs twice as much.
func (r reach) http(ctx context.Context, g *corev1.HTTPGetAction) answer {
	req, err := r.request(ctx, g)
	if err != nil {
		return no("%v", err)
	}
	host := req.URL.Hostname()
	for range maxRedirects {
		code, location, err := r.exchange(ctx, req)
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		if err != nil {
			return no("get %s: %v", req.URL, err)
		}
		if code < 200 || code >= 400 {
			return no("%s answers %d %s", req.URL, code, http.StatusText(code))
		}
		next, err := req.URL.Parse(location)
		if err != nil {
			return no("%s leads to %q: %v", req.URL, location, err)
		}
		if code < 300 || location == "" || next.Hostname() != host {
			return yes()
		}
		req.URL = next
	}
	return no("%s: stopped after %d redirects", req.URL, maxRedirects)
}

// exchange sends one request and reads the answer, bounded. Certificates are not
// verified: a probe asks whether somebody is there, not who.
func (r reach) exchange(ctx context.Context, req *http.Request) (code int, location string, err error) {
	port := req.URL.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[req.URL.Scheme]
	}
	conn, err := r.dial(ctx, net.JoinHostPort(req.URL.Hostname(), port))
	if err != nil {
		return 0, "", err
	}
	defer func() { conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	stream := conn
	if req.URL.Scheme == "https" {
		secret := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, ServerName: req.URL.Hostname()})
		if err := secret.HandshakeContext(ctx); err != nil {
			return 0, "", err
		}
		stream = secret
	}
	req.Close = true
	if err := req.Write(stream); err != nil {
		return 0, "", err
	}
	in := bufio.NewReader(io.LimitReader(stream, 3*maxBody))
	for {
		resp, err := http.ReadResponse(in, req)
		if err != nil {
			return 0, "", err
		}
		if resp.StatusCode >= 100 && resp.StatusCode < 200 && resp.StatusCode != http.StatusSwitchingProtocols {
			continue // the answer proper follows
		}
		_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, maxBody))
		resp.Body.Close()
		return resp.StatusCode, resp.Header.Get("Location"), err
	}
}

func (r reach) request(ctx context.Context, g *corev1.HTTPGetAction) (*http.Request, error) {
	to, err := r.hostPort(g.Host, g.Port)
	if err != nil {
		return nil, err
	}
	scheme := "http"
	if g.Scheme == corev1.URISchemeHTTPS {
		scheme = "https"
	}
	u, err := url.Parse(g.Path) // it may have a query
	if err != nil {
		return nil, err
	}
	if !strings.HasPrefix(u.Path, "/") {
		u.Path = path.Clean("/" + u.Path)
	}
	u.Scheme, u.Host = scheme, to
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), http.NoBody)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "pausa-probe")
	req.Header.Set("Accept", "*/*")
	for _, h := range g.HTTPHeaders {
		switch {
		case strings.EqualFold(h.Name, "Host"):
			req.Host = h.Value
		case strings.EqualFold(h.Name, "User-Agent") || strings.EqualFold(h.Name, "Accept"):
			if h.Value == "" {
				req.Header.Del(h.Name)
				continue
			}
			req.Header.Set(h.Name, h.Value)
		default:
			req.Header.Add(h.Name, h.Value)
		}
	}
	return req, nil
}
