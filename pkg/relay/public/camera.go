package public

import (
	"bytes"
	"strings"

	"culvert.dev/pkg/http1"
)

// A camera is reached by RTSP, see rtsp.go, and by HTTP: GET and POST of a tunnel that carries
// RTSP, a WebSocket that does, and for browsers a page below https://.

// troublePlayer is for who asks in the clear for what there is by https, if nobody listens there.
var troublePlayer = &trouble{404, "This is a camera, which players reach by RTSP."}

// decideCamera decides about a request over HTTP for s, which is a camera.
func (l *loop) decideCamera(s *service, c *client, req *http1.Request) decision {
	p := s.policy.Load()
	if tunnels(c, req) {
		// Who it is will be asked inside, on each connection, and a connection of two
		// halves counts as one; see rtspVisitor.enter.
		if p != nil && !p.lets(c.addr.Addr()) {
			l.counters.Refused++
			return decision{action: doAnswer, service: s, trouble: troubleAddress}
		}
		return decision{service: s}
	}
	if !c.secure {
		if d, ok := l.redirect(req); ok {
			return d
		}
		return decision{action: doAnswer, service: s, trouble: troublePlayer}
	}
	if m := string(req.Method); m != "GET" && m != "HEAD" {
		return decision{action: doAnswer, service: s, trouble: troubleForbidden, fields: []http1.Field{field("Allow", "GET, HEAD")}}
	}
	if p != nil {
		if d, pass := p.check(l, s, c, req); !pass {
			return d
		}
	}
	return decision{service: s}
}

// tunnels reports whether a request is for RTSP inside of HTTP: either half of a tunnel, or a
// WebSocket, on a connection that can be had for it.
func tunnels(c *client, req *http1.Request) bool {
	switch {
	case c.isHTTP1():
		return opensTunnel(req) || isRTSPSocket(req)
	case c.proto == "HTTP/2":
		return isRTSPSocket(req)
	}
	return false
}

func (c *client) isHTTP1() bool { return strings.HasPrefix(c.proto, "HTTP/1.") }

// isRTSPSocket reports whether a request is for a WebSocket that carries RTSP, as ONVIF's
// Streaming Specification has it.
func isRTSPSocket(req *http1.Request) bool {
	if !http1.EqualFold(req.Upgrade, "websocket") {
		return false
	}
	for i := range req.Fields {
		if !http1.EqualFold(req.Fields[i].Name, "sec-websocket-protocol") {
			continue
		}
		for p := range bytes.SplitSeq(req.Fields[i].Value, comma) {
			if string(bytes.TrimSpace(p)) == socketProtocol {
				return true
			}
		}
	}
	return false
}

// serveCamera begins with a request over HTTP to a camera, as decideCamera has said. It returns
// nil if there is no exchange any more: then f knows.
func (l *loop) serveCamera(f front, s *service, req *http1.Request) *exchange {
	if tunnels(f.who(), req) {
		switch f := f.(type) {
		case *stream2:
			f.socket(s, req)
		case *visitor:
			if isRTSPSocket(req) {
				f.socket(s, req)
			} else {
				f.tunnel(s, req)
			}
		}
		return nil
	}
	if string(req.Path[len(s.prefix):]) == "/snapshot.jpg" {
		return l.begin(f, s, req)
	}
	return l.show(f, s, req)
}
