package public

import (
	"net/netip"
	"time"

	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/rtsp"
)

// decide says what becomes of a request, as loop.decide does: doServe comes with a service that has
// let the player in.
func (p *player) decide(u rtsp.URL, m *rtsp.Message) decision {
	l, r, c := p.loop, p.loop.relay, p.client
	path := []byte(u.Path)
	if len(path) == 0 {
		path = []byte{'/'}
	}
	l.host = appendHost(l.host[:0], []byte(u.Authority))
	if len(p.sessions) > 0 || p.setsUp() {
		// What is under way goes on, whoever has the address by now.
		if !p.service.covers(l.host, path) && u.Path != "*" {
			return decision{action: doAnswer, service: p.service, trouble: troubleOther}
		}
		return decision{service: p.service}
	}
	s := p.bound
	if s != nil {
		if !s.covers(l.host, path) {
			return decision{action: doAnswer, trouble: troubleService}
		}
		if s.removed {
			return decision{action: doAnswer, trouble: troubleAway}
		}
		if !isName(l.host) {
			l.host = append(l.host[:0], c.sni...)
		}
	} else {
		routes := r.routes.Load()
		if !isName(l.host) && c.sni != "" && routes.any(l.host, c.secure) == nil {
			l.host = append(l.host[:0], c.sni...)
		}
		if c.secure && routes.passed(l.host) != nil {
			return decision{action: doAnswer, trouble: troubleElsewhere}
		}
		if routes.divided(l.host, c.secure) && (ambiguous(path) || routes.misleads(l.host, path, c.secure)) {
			l.counters.Rejected++
			return decision{action: doAnswer, trouble: troublePath}
		}
		s = routes.find(l.host, path, c.secure)
		if s == nil || !s.isCamera() {
			return p.nobody(routes, string(l.host), string(path))
		}
	}
	switch {
	case s.session.loop != l:
		return decision{action: doMove, service: s}
	case s.session.group.undecided:
		return decision{action: doHold, service: s}
	case s == p.service:
		return decision{service: s}
	case s.session.crowded(c.addr.Addr()):
		return decision{action: doAnswer, service: s, trouble: troubleFull}
	}
	return p.admit(s, m)
}

// nobody decides about a request for a camera that is not there.
func (p *player) nobody(routes *table, host, path string) decision {
	r, secure := p.loop.relay, p.client.secure
	switch {
	case routes.allowedCamera(host, path, secure) && r.hasJustBegun():
		return decision{action: doLook}
	case routes.allowedCamera(host, path, secure):
		return decision{action: doAnswer, trouble: troubleAway}
	case !secure:
		if s := routes.find([]byte(host), []byte(path), true); s != nil && s.isCamera() {
			return decision{action: doAnswer, trouble: troubleEncrypted}
		}
	}
	return decision{action: doAnswer, trouble: troubleService}
}

// admit has the policy of s decide about the player.
func (p *player) admit(s *service, m *rtsp.Message) decision {
	l, c := p.loop, p.client
	pol := s.policy.Load()
	if pol == nil {
		return decision{service: s}
	}
	user := ""
	t, fields := pol.meet(c, l.since())
	if t == nil && pol.authority != nil {
		t = pol.authority.check(c, string(l.host), time.Now())
	}
	if t == nil && pol.users != nil {
		d := pol.users.authenticate(l, c.addr.Addr(), m)
		if d.action == doHold {
			return d
		}
		t, fields, user = d.trouble, d.fields, d.user
	}
	if t == nil && s.full(pol, c.addr.Addr()) {
		t = troubleCrowd
	}
	if t != nil {
		l.counters.Refused++
		return decision{action: doAnswer, service: s, trouble: t, fields: fields}
	}
	return decision{service: s, user: user}
}

// covers reports whether a URL with that host and path can be one of s, which the player has already. Not
// all players know the name.
func (s *service) covers(host, path []byte) bool {
	return (!isName(host) || relay.MatchHost(s.host, string(host))) && relay.MatchPath(s.prefix, string(path))
}

// isName reports whether host is neither empty nor an address.
func isName(host []byte) bool {
	if len(host) == 0 {
		return false
	}
	_, err := netip.ParseAddr(string(host))
	return err != nil
}

// enter counts the player as a visitor of s.
func (p *player) enter(s *service, user string) {
	p.leave()
	p.service, p.user = s, user
	s.enter(p.client.addr.Addr())
	s.total++
	p.began, p.received, p.sent, p.rank, p.packets = p.loop.since(), 0, 0, 0, Datagrams{}
}

// leave ends the visit of the service, if there is one, and writes the line of what was.
func (p *player) leave() {
	if srv := p.server; srv != nil {
		p.server = nil
		srv.leave()
	}
	p.endTracks()
	p.flight, p.sessions, p.midway = nil, nil, false
	if s := p.service; s != nil {
		p.service = nil
		s.leave(p.client.addr.Addr())
		s.errors[p.err]++
		p.log(s)
	} else if p.asked && p.status != 0 && p.phase >= playClosing {
		if p.err != fine {
			p.loop.refused[p.err]++
		}
		p.log(nil)
	}
	p.status, p.err, p.stream, p.user = 0, fine, nil, ""
}

func (p *player) log(s *service) {
	l := p.loop
	if l.relay.AccessLog == nil {
		return
	}
	a := &l.access
	a.request = a.request[:0]
	if p.method != "" {
		a.request = appendText(a.request, "method", p.method, logMethod)
	}
	if p.path != "" {
		a.request = appendText(a.request, "path", p.path, logPath)
	}
	c := p.client
	l.log(&record{
		service: s, visitor: c.addr, user: p.user, subject: c.subject(), proto: p.how, tls: c.tls, request: a.request,
		status: p.status, err: p.err, received: p.received, sent: p.sent, packets: p.packets, began: p.began, stream: p.stream,
	})
}

// move takes the player to another loop, where the request is read again.
func (p *player) move(to *loop) {
	if p.conn == nil { // who made it has seen to it that the service is here
		p.refuse(troubleAway)
		return
	}
	if len(p.flight) > 0 {
		p.block()
		return
	}
	p.leave()
	p.phase = playMoving
	p.due.stop()
	p.loop.removePlayer(p)
	p.conn.Pause()
	p.conn.Move(to.Loop, func() {
		p.loop = to
		to.addPlayer(p)
		p.moved = to.since()
		p.began = p.moved
		p.phase = playReading
		p.await(headTime)
		p.conn.Resume()
	})
}

// wait keeps a request until release is called, as whoever has it queued will do, or else until the
// next look.
func (p *player) wait(queued bool) {
	if !queued {
		p.look()
		return
	}
	p.phase = playHeld
	p.end.Pause()
	p.due.stop()
}

// look keeps a request, which is read again soon, and then later and later.
func (p *player) look() {
	p.phase = playHeld
	p.end.Pause()
	p.await(holdTime << p.looks)
	p.looks = min(p.looks+1, 3)
}

// release has a request that was held read again, if it still is.
func (p *player) release() {
	if p.phase == playHeld {
		p.phase = playReading
		p.await(headTime)
		p.blocked = false
		p.end.Resume()
	}
}
