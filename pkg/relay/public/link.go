package public

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/http1"
	"culvert.dev/pkg/link"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
	"culvert.dev/pkg/websocket"
)

var troubleUpgrade = &trouble{426, "This needs a WebSocket of a private relay."}

// link takes the request of a private relay for a link. It counts as a visitor
// until the relay knows who it is: sites are few, and known.
func (v *visitor) link(head, close bool) {
	req := &v.loop.req
	key, err := websocket.CheckRequest(func(name string) string { return joined(req.Fields, name) })
	if err != nil || string(req.Method) != "GET" || req.Minor != 1 || req.Framing != http1.NoBody {
		v.answer(troubleUpgrade, head, close)
		return
	}
	v.phase = asking
	v.stop() // link has a deadline of its own
	link.Accept(v.conn, key, func(in *link.Incoming, err error) {
		if err == nil {
			err = v.relay.authenticate(in)
		}
		if err != nil {
			v.relay.refused(in, v.addr, err)
			v.unlinked()
			return
		}
		v.leave()
		v.relay.greet(in, v.addr, v.loop)
	})
}

// joined returns the values of the fields of that name, joined by commas.
func joined(fields []http1.Field, name string) string {
	var list []string
	for _, f := range fields {
		if http1.EqualFold(f.Name, name) {
			list = append(list, string(f.Value))
		}
	}
	return strings.Join(list, ",")
}

// unlinked has a connection that is being closed count until it is. It may be
// closed already, so that nobody tells; then the count ends a little late.
func (v *visitor) unlinked() {
	v.conn.SetHandler(discard{v})
	v.loop.Arm(&v.timer, farewell, v.leave)
}

// refused notes a link that did not come about. in is nil if there was no Hello.
func (r *Relay) refused(in *link.Incoming, from netip.AddrPort, err error) {
	if in == nil { // anybody can make this happen, as often as they like
		r.log.Debug("no link", "remote", from, "err", err)
		return
	}
	refusal, ok := errors.AsType[*relay.Refusal](err)
	if !ok {
		refusal = &relay.Refusal{Code: relay.RefuseInternal, Message: "the public relay could not make the session", Retry: true}
	}
	in.Refuse(*refusal)
	r.log.Log(context.Background(), r.refusalLevel(from.Addr(), refusal.Code), "link refused",
		"site", in.Hello.Site, "remote", from, "err", err)
}

// refusal is what strangers can have logged.
type refusal struct {
	addr netip.Addr
	code relay.RefusalCode
}

// maxRefused is how many refusals a minute are logged as warnings, each for
// another address or reason.
const maxRefused = 256

// refusalLevel is the level to log a refusal at: anybody can ask to be refused, as
// often as they like, so a warning tells of the first one in a minute.
func (r *Relay) refusalLevel(addr netip.Addr, code relay.RefusalCode) slog.Level {
	if r.refusals.allow(refusal{source(addr), code}, time.Now()) {
		return slog.LevelWarn
	}
	return slog.LevelDebug
}

// greet lets a private relay in that is who it says, if there is room for it. It
// runs on the loop of the link.
func (r *Relay) greet(in *link.Incoming, from netip.AddrPort, l *loop) {
	s, old, resumed, refusal := r.admit(in.Hello, l)
	if refusal != nil {
		r.refused(in, from, refusal)
		return
	}
	in.Move(s.loop.Loop, func(err error) {
		if old != nil {
			old.close(errReplaced)
		}
		switch {
		case err != nil && resumed:
			if s.link == nil {
				s.lost(err)
			}
		case err != nil:
			s.close(err)
		case s.ended:
			r.refused(in, from, &relay.Refusal{Code: relay.RefuseBusy, Message: "the session ended just now", Retry: true})
		default:
			s.serve(in, from, resumed)
		}
	})
}

// authenticate checks that the site exists, that the key is its key, and that the
// peer of this very TLS connection has it. The error is a *relay.Refusal.
func (r *Relay) authenticate(in *link.Incoming) error {
	h := in.Hello
	r.mu.Lock()
	site, ok := r.sites[h.Site]
	r.mu.Unlock()
	refuse := func(code relay.RefusalCode, format string) error {
		return &relay.Refusal{Code: code, Message: fmt.Sprintf(format, h.Site)}
	}
	if !ok {
		return refuse(relay.RefuseUnknownSite, "the public relay has no site %q: is the name right, or was the site removed?")
	}
	if site.Revoked {
		return refuse(relay.RefuseRevoked, "the key of site %q was revoked: ask for a new join token")
	}
	if site.Key == "" {
		return refuse(relay.RefuseBadKey, "site %q has not joined yet: use its join token")
	}
	if h.Key != site.Key {
		return refuse(relay.RefuseBadKey, "site %q has another key: was it made anew, or did another machine join?")
	}
	pub, err := auth.ParsePublicKey(h.Key)
	if err != nil || !auth.VerifyLink(pub, h.Site, in.Exporter, h.Signature) {
		return refuse(relay.RefuseBadKey, "the proof of site %q is wrong: the TLS connection does not end at the public relay, or the key file does not fit")
	}
	return nil
}

// serve begins to use a link, which is on the session's loop.
func (s *session) serve(in *link.Incoming, from netip.AddrPort, resumed bool) {
	if s.tun == nil {
		s.start()
	}
	l := in.Welcome(relay.Welcome{Session: s.id, Resume: s.secret, Resumed: resumed, Software: s.relay.Software})
	s.link = l
	l.Serve(s.tun, tunnel.RoleInteractive, s.linkLost)
	s.attached(from, in.Hello.Software, resumed)
	if s.relay.draining.Load() {
		s.drain()
	}
}

// linkLost is told of the end of each link.
func (s *session) linkLost(l *link.Link, err error) {
	if l == s.link { // and no newer one has taken over
		s.link = nil
		if e, ok := errors.AsType[*link.CloseError](err); ok && e.Status == statusNormal {
			s.close(nil)
			return
		}
		s.lost(err)
	}
}

// statusNormal closes a link whose session is over: nobody will come back to it
// (rfc6455#section-7.4.1).
const statusNormal = 1000
