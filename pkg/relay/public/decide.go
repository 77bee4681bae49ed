package public

import (
	"strings"

	"culvert.dev/pkg/http1"
)

// action is what becomes of a request.
type action uint8

const (
	doServe  action = iota // by service, whose loop is this one
	doMove                 // service is of another loop, which decides
	doHold                 // it is about to be decided which session serves it, or who asks: see hold
	doLook                 // nobody serves it, but may soon: decide again in a moment
	doOwn                  // it is for the relay itself
	doProve                // an authority may ask: decide again when Relay.Challenge has answered
	doPlay                 // a WebSocket of RTSP, whose requests say for what service they are
	doAnswer               // with trouble and fields
)

// decision is what decide has found.
type decision struct {
	action  action
	service *service      // of doServe, doMove and doHold; of doAnswer if that is its policy's
	attempt *attempt      // of doHold: nil if it is about the session
	trouble *trouble      // of doAnswer
	fields  []http1.Field // of doAnswer, besides the usual ones
	user    string        // of doServe, for a player who has authenticated
}

// hold has f called, on this loop, when a request should be decided again that has got doHold. If it
// reports false, that is in a moment, as with doLook.
func (d decision) hold(f func()) bool {
	if d.attempt != nil {
		d.attempt.wait(f)
		return true
	}
	return d.service.session.group.hold(f)
}

// decide says what becomes of a request, for all versions of HTTP. It may be
// asked again about a request which had to wait or to move; doServe and doAnswer
// are the last word.
func (l *loop) decide(c *client, req *http1.Request) decision {
	r := l.relay
	if c.verdict != admitted {
		return decision{action: doAnswer, trouble: troubleFull}
	}
	if req.Path == nil { // CONNECT
		return decision{action: doAnswer, trouble: troubleMethod}
	}
	l.host = appendHost(l.host[:0], req.Host)
	if d, ok := l.challenge(c, req); ok {
		return d
	}
	if c.secure && r.own(l.host, req.Path) {
		return decision{action: doOwn}
	}
	routes := r.routes.Load()
	if c.secure && routes.passed(l.host) != nil { // on a connection for another name
		return decision{action: doAnswer, trouble: troubleElsewhere}
	}
	if routes.divided(l.host, c.secure) && (ambiguous(req.Path) || routes.misleads(l.host, req.Path, c.secure)) {
		l.counters.Rejected++
		return decision{action: doAnswer, trouble: troublePath}
	}
	if s := routes.find(l.host, req.Path, c.secure); s != nil {
		switch {
		case s.session.loop != l:
			return decision{action: doMove, service: s}
		case s.session.group.undecided:
			return decision{action: doHold, service: s}
		}
		if s.session.crowded(c.addr.Addr()) {
			return decision{action: doAnswer, service: s, trouble: troubleFull}
		}
		if s.isCamera() {
			return l.decideCamera(s, c, req)
		}
		if p := s.policy.Load(); p != nil {
			if d, pass := p.check(l, s, c, req); !pass {
				return d
			}
		}
		return decision{service: s}
	}
	if isRTSPSocket(req) && c.isHTTP1() && routes.hasCameras(l.host, c.secure) {
		return decision{action: doPlay}
	}
	host, path := string(l.host), string(req.Path)
	if !c.secure && opensTunnel(req) { // of whose halves players would send one where it is redirected to
		if s := routes.find(l.host, req.Path, true); s != nil && s.isCamera() {
			return decision{action: doAnswer, trouble: troubleEncrypted}
		}
	}
	if !c.secure && (host == r.Domain || routes.redirects(l.host, req.Path)) {
		if d, ok := l.redirect(req); ok {
			return d
		}
	}
	switch {
	case !routes.allowed(host, path, c.secure):
		return decision{action: doAnswer, trouble: troubleService}
	case r.hasJustBegun():
		return decision{action: doLook}
	}
	return decision{action: doAnswer, trouble: troubleAway}
}

var (
	redirectGet = &trouble{301, redirectText}
	redirectAny = &trouble{308, redirectText} // keeps the method
)

const redirectText = "This service is reached by https."

// redirect answers a request in the clear for l.host that is served by https, if
// there is an https listener.
func (l *loop) redirect(req *http1.Request) (decision, bool) {
	port, ok := l.relay.httpsPort()
	if !ok {
		return decision{}, false
	}
	t := redirectAny
	if m := string(req.Method); m == "GET" || m == "HEAD" {
		t = redirectGet
	}
	location := append([]byte("https://"), l.host...)
	if strings.IndexByte(string(l.host), ':') >= 0 {
		location = append(append([]byte("https://["), l.host...), ']')
	}
	location = append(location, port...)
	location = append(location, req.Path...)
	if req.Query != nil {
		location = append(append(location, '?'), req.Query...)
	}
	return decision{action: doAnswer, trouble: t, fields: []http1.Field{{Name: []byte("Location"), Value: location}}}, true
}
