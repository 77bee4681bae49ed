package public

import (
	"crypto/tls"
	"errors"
	"net/netip"
	"strings"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/relay"
)

// Services of tls:// end their TLS themselves, at the private relay or behind it. Of
// what their visitors send the public relay reads the ClientHello, for the name in
// it, and passes on all of it as it came, whatever protocol or challenge it is for.
// So nothing may be taken for such a connection that is not one, and the other way
// round: a name comes from one parser, that of crypto/tls, and goes one way.

// Alerts that visitors get in place of a handshake (RFC 8446, section 6).
const (
	alertIllegalParameter tls.AlertError = 47
	alertAccessDenied     tls.AlertError = 49
	alertInternalError    tls.AlertError = 80 // it may be better in a moment
)

// meetHello goes on with a visitor whose ClientHello has come.
func (v *visitor) meetHello(sni string) {
	name, ok := serverName(sni)
	if !ok {
		v.refuseTLS(alertIllegalParameter)
		return
	}
	v.sni = name
	v.shake()
}

// serverName returns the name of a ClientHello in lower case, and whether it is one
// that a host can have (RFC 6066, section 3; some have underscores). An address,
// which must not be there and is sent by some, is no name, as if there was none.
func serverName(sni string) (name string, ok bool) {
	if _, err := netip.ParseAddr(sni); err == nil || sni == "" {
		return "", true
	}
	if len(sni) > 253 {
		return "", false
	}
	label := 0 // length of the one under way
	for i := range len(sni) {
		switch c := sni[i]; {
		case c == '.' && label > 0:
			label = 0
			continue
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_':
			label++
		default:
			return "", false
		}
		if label > 63 {
			return "", false
		}
	}
	return strings.ToLower(sni), label > 0
}

// refuseHello answers what is no ClientHello.
func (v *visitor) refuseHello(err error) {
	if e, ok := errors.AsType[*evloop.HelloError](err); ok {
		v.refuseTLS(e.Alert)
		return
	}
	v.loop.handshake(0, err)
	v.conn.Abort(err)
}

// refuseTLS ends a visitor instead of a handshake.
func (v *visitor) refuseTLS(alert tls.AlertError) {
	err := error(&evloop.HelloError{Alert: alert})
	if alert == alertInternalError {
		err = errTurnedAway
	}
	v.loop.handshake(0, err)
	v.phase = closing
	v.await(farewell)
	v.conn.RefuseTLS(alert)
}

// passThrough takes a visitor of a tls service, whose ClientHello is unread. It
// reports false if that is not what the visitor is.
func (v *visitor) passThrough() bool {
	r := v.relay
	if v.sni == "" || v.sni == r.Domain {
		return false
	}
	v.loop.host = append(v.loop.host[:0], v.sni...)
	routes := r.routes.Load()
	s := routes.passed(v.loop.host)
	switch {
	case s == nil && !routes.passedAway(v.sni):
		return false
	case v.verdict != admitted:
		v.refuseTLS(alertInternalError)
	case s == nil && r.hasJustBegun():
		v.look()
	case s == nil:
		v.refuseTLS(alertInternalError)
	case s.session.loop != v.loop:
		v.move(s.session.loop, v.shake)
	case v.hold(s.session.group):
	default:
		v.pass(s)
	}
	return true
}

// isElsewhere reports whether the TLS of the name in the ClientHello of a player ends
// elsewhere, as far as is known.
func (v *visitor) isElsewhere() bool {
	routes := v.relay.routes.Load()
	return v.sni != "" && v.sni != v.relay.Domain && (routes.passed([]byte(v.sni)) != nil || routes.passedAway(v.sni))
}

// pass splices the visitor with a stream of s, the ClientHello first.
func (v *visitor) pass(s *service) {
	r := record{service: s, visitor: v.addr, proto: "tls", began: v.loop.since()}
	if v.relay.AccessLog != nil {
		r.request = appendText(nil, "host", v.sni, logHost)
	}
	if !v.relay.mayShake(v.addr.Addr(), false) { // it costs the site what it would cost us
		v.loop.counters.HandshakesLimited++
		v.conn.Abort(errHandshakes)
		s.turnAway(r, wordLimit)
		return
	}
	if !s.admits(v.addr.Addr()) {
		v.refuseTLS(alertAccessDenied)
		s.turnAway(r, wordPolicy)
		return
	}
	st, err := s.openStream(v.addr, "tls", v.sni)
	if err != nil {
		v.refuseTLS(alertInternalError)
		s.turnAway(r, openTrouble(err).word())
		return
	}
	s.total++
	r.stream = st
	j := v.spliced(st, s, "tls")
	j.name(v.sni)
	j.logs(r)
}

// isWeb reports whether browsers are served by s, which may be nil: what it says of
// its target is all that is known of a tls service.
func (s *service) isWeb() bool {
	if s == nil {
		return false
	}
	switch s.target {
	case "tcp", "unix":
		return false
	}
	return true
}

// passed returns the tls service of host, or nil: an exact name comes before a
// wildcard, also when it is the name of an https service.
func (t *table) passed(host []byte) *service {
	if len(t.raw) == 0 {
		return nil
	}
	if s := t.raw[string(host)]; s != nil || len(t.secure[string(host)]) > 0 {
		return s
	}
	for i, c := range host {
		if c == '.' && i > 0 {
			return t.raw[string(host[i:])]
		}
	}
	return nil
}

// passedAway reports whether a site that is away may have host, for which there is no
// tls service, as one: then nobody else may end the TLS of its visitors, least of all
// with a wildcard's certificate. What the site had by https when it was there is
// another matter.
func (t *table) passedAway(host string) bool {
	allowed := func(wildcard bool) bool {
		for _, p := range t.passes {
			if strings.HasPrefix(p.Host, "*") == wildcard && relay.MatchHost(p.Host, host) {
				return true
			}
		}
		return false
	}
	for i, name := range [...]string{host, parent(host)} {
		if len(t.secure[name]) > 0 {
			return false
		}
		if raw, known := t.names[name]; known {
			return raw
		}
		if allowed(i == 1) {
			return true
		}
	}
	return false
}

// parent is what host is a wildcard's below of: ".example.com" of "a.example.com".
func parent(host string) string {
	if i := strings.IndexByte(host, '.'); i > 0 {
		return host[i:]
	}
	return ""
}

// rivals are those who have the host of svc in the way that excludes it.
func (t *table) rivals(svc *service) []*service {
	name := strings.TrimPrefix(svc.host, "*")
	switch {
	case svc.raw:
		return t.secure[name]
	case svc.secure && t.raw[name] != nil:
		return []*service{t.raw[name]}
	}
	return nil
}
