package public

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
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
func (v *visitor) link() {
	req := &v.loop.req
	key, err := websocket.CheckRequest(func(name string) string { return joined(req.Fields, name) })
	if err != nil || string(req.Method) != "GET" || req.Minor != 1 || req.Framing != http1.NoBody {
		v.turnDown(troubleUpgrade)
		return
	}
	v.phase = asking
	v.due.stop() // link has a deadline of its own
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
	v.loop.Arm(&v.due.timer, farewell, v.leave)
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
	if r.refusals.allow(refusal{relay.Source(addr), code}, time.Now()) {
		return slog.LevelWarn
	}
	return slog.LevelDebug
}

// said is what a site can have logged.
type said struct{ site, what string }

// maxSaid is how often a minute a site can have the same thing logged as more than debug.
const maxSaid = 30

// say logs what a site can make happen, as often as it likes.
func (r *Relay) say(level slog.Level, what, site string, args ...any) {
	if !r.sayings.allow(said{site, what}, time.Now()) {
		level = slog.LevelDebug
	}
	r.log.Log(context.Background(), level, what, append([]any{"site", site}, args...)...)
}

// greet lets a private relay in that is who it says, if there is room for it. It
// runs on the loop of the link.
func (r *Relay) greet(in *link.Incoming, from netip.AddrPort, l *loop) {
	a, refusal := r.admit(in.Hello, l)
	if refusal != nil {
		r.refused(in, from, refusal)
		return
	}
	s := a.session
	in.Move(s.loop.Loop, func(err error) {
		for o, why := range a.instead {
			o.close(why)
		}
		switch {
		case err != nil && a.resumed:
			r.unlink(s)
		case err != nil:
			s.close(err)
		case s.ended:
			r.refused(in, from, &relay.Refusal{Code: relay.RefuseBusy, Message: "the session ended just now", Retry: true})
		default:
			s.serve(in, from, a.resumed)
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
	switch {
	case slices.Contains(site.Keys, h.Key):
	case slices.Contains(site.Revoked, h.Key):
		return refuse(relay.RefuseRevoked, "the key of site %q was revoked: ask for a new join token")
	case len(site.Keys) == 0 && len(site.Revoked) == 0:
		return refuse(relay.RefuseBadKey, "site %q has not joined yet: use its join token")
	default:
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
	c := s.take(in.Hello, from)
	l := in.Welcome(relay.Welcome{
		Session: s.id, Resume: s.secret, Resumed: resumed, Active: s.group.active == s, Software: s.relay.Software,
	})
	c.Link, c.transport = l, l.Transport()
	l.OnTuned = s.tuned
	l.Serve(s.tun, in.Role(), func(l *link.Link, err error) { s.linkLost(l, err) })
	if s.relay.draining.Load() {
		s.drain()
	}
}

// tuned is told how a link has adapted to its path, or that it could not, which is the
// same for all of them.
func (s *session) tuned(what string, err error) {
	if err == nil {
		s.relay.say(slog.LevelInfo, "link", s.site, "what", what)
		return
	}
	s.relay.slowControl.Do(func() { s.relay.log.Warn("link", "site", s.site, "what", what, "err", err) })
}

// take makes room for a link that is about to be attached.
func (s *session) take(h relay.Hello, from netip.AddrPort) *carrier {
	if s.tun == nil {
		s.start()
	}
	if h.Links == 0 { // the private relay has given up what it had
		s.forsake(errSuperseded)
	}
	c := &carrier{remote: from}
	s.links = append(s.links, c)
	first := !s.welcomed
	s.attached(h, from)
	if first {
		s.group.begun(s)
	}
	return c
}

var errSuperseded = errors.New("the private relay has given the link up")

// partTime is how long the other links of a session may carry what is on its way
// after one was closed because the session is over.
const partTime = time.Second

// linkLost is told of the end of each link, after the tunnel.
func (s *session) linkLost(l tunnel.Link, err error) {
	i := slices.IndexFunc(s.links, func(c *carrier) bool { return c.Link == l })
	if i < 0 { // it was given up
		return
	}
	s.links = slices.Delete(s.links, i, i+1)
	s.relay.unlink(s)
	if e, ok := errors.AsType[*link.CloseError](err); ok && e.Status == link.StatusOver && !s.parted {
		s.parted = true
		s.loop.Arm(&s.parting, partTime, func() { s.close(nil) })
		s.onGoAway()
	}
	_, orderly := errors.AsType[*link.CloseError](err)
	switch {
	case s.ended:
	case len(s.links) > 0:
		if !orderly {
			s.doubt()
		}
	case s.parted:
		s.close(nil)
	default:
		s.lost(err)
	}
}
