package public

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"net"
	"net/netip"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/link"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

var (
	errReplaced = errors.New("the private relay has begun a new session")
	errRevoked  = errors.New("the site's key was revoked")
)

// session is a site that is connected: a tunnel.Session, and the services that
// it publishes. All of it, its links, its streams and their visitors included,
// belongs to one loop.
type session struct {
	// Immutable.
	relay  *Relay
	loop   *loop
	site   string
	id     string // to resume by, with secret
	secret string
	since  time.Time

	// Owned by the loop.
	tun       *tunnel.Session // nil until the first link is there
	link      *link.Link      // the last one attached; nil when it is lost
	timer     evloop.Timer
	fires     time.Time // when timer does; zero: it is stopped
	lostAt    time.Time // since when there is no link; zero: there is one
	remote    netip.AddrPort
	software  string
	announced []relay.Announcement // the last announcement
	hearing   bool                 // another one is coming in
	services  []*service
	woken     bool   // flush comes at the end of this turn
	flushFunc func() // s.flush, made once
	ports     map[relay.Publish]*port
	leaving   bool // the private relay drains: no new streams
	ended     bool

	// Guarded by relay.mu.
	linked bool // or about to be
}

// newSession makes a session of a site on a loop. It is started there.
func newSession(r *Relay, l *loop, site string) *session {
	var b [16 + 32]byte
	rand.Read(b[:])
	return &session{
		relay: r, loop: l, site: site,
		id: hex.EncodeToString(b[:16]), secret: hex.EncodeToString(b[16:]),
		since: time.Now(),
		ports: make(map[relay.Publish]*port),
	}
}

// start makes the tunnel. On the loop.
func (s *session) start() {
	s.flushFunc = s.flush
	s.tun = tunnel.New(tunnel.Config{
		MaxStreams:    s.relay.MaxStreams,
		Budget:        s.relay.Budget,
		ResumeTimeout: s.relay.ResumeTimeout,
		Wake:          s.wake,
		Accept:        s.accept,
		OnGoAway:      s.onGoAway,
		OnClose:       s.onClose,
	}, s.loop.Now())
}

// wake has the session flushed at the end of this turn.
func (s *session) wake() {
	if !s.woken {
		s.woken = true
		s.loop.AfterTurn(s.flushFunc)
	}
}

// flush sends what is to be sent.
func (s *session) flush() {
	s.woken = false
	s.tun.Flush(s.loop.Now())
	s.rearm()
}

// rearm keeps the timer no later than the session needs it.
func (s *session) rearm() {
	next := s.tun.Next()
	if next.IsZero() {
		s.timer.Stop()
		s.fires = time.Time{}
		return
	}
	if s.fires.IsZero() || next.Before(s.fires) {
		s.fires = next
		s.loop.Arm(&s.timer, next.Sub(s.loop.Now()), s.onTimer)
	}
}

func (s *session) onTimer() {
	s.fires = time.Time{}
	s.tun.Advance(s.loop.Now())
	s.wake()
}

// attached notes that a link carries the session from now on.
func (s *session) attached(remote netip.AddrPort, software string, resumed bool) {
	gap := time.Duration(0)
	if !s.lostAt.IsZero() {
		gap = s.loop.Now().Sub(s.lostAt)
	}
	s.lostAt = time.Time{}
	s.remote, s.software = remote, software
	if resumed {
		s.relay.log.Info("site resumed", "site", s.site, "remote", remote, "gap", gap.Round(time.Millisecond))
	} else {
		s.relay.log.Info("site up", "site", s.site, "remote", remote, "software", software)
	}
	s.rearm()
}

// lost notes that the session has no link any more. Its streams wait.
func (s *session) lost(err error) {
	if s.ended {
		return
	}
	s.relay.mu.Lock()
	s.linked = false
	s.relay.mu.Unlock()
	if s.lostAt.IsZero() {
		s.lostAt = s.loop.Now()
		s.relay.log.Warn("site lost its link", "site", s.site, "err", err)
	}
	s.wake()
}

// lostFor is how long the session has been without a link.
func (s *session) lostFor() time.Duration {
	if s.lostAt.IsZero() {
		return 0
	}
	return s.loop.Now().Sub(s.lostAt)
}

// onClose is the end of the session, after that of its streams.
func (s *session) onClose(err error) {
	if s.ended {
		return
	}
	s.ended = true
	s.timer.Stop()
	s.relay.removeSession(s)
	for _, svc := range s.services {
		svc.remove()
	}
	for _, p := range s.ports {
		p.Close()
	}
	s.services, s.ports = nil, nil
	if err == nil {
		s.relay.log.Info("site down", "site", s.site)
	} else {
		s.relay.log.Warn("site down", "site", s.site, "err", err)
	}
}

// close ends the session now. On the loop.
func (s *session) close(err error) {
	if s.tun == nil { // it has been admitted, and its link is on the way here
		s.onClose(err)
		return
	}
	s.tun.Close(err)
}

// drain ends the session with its last stream. On the loop.
func (s *session) drain() {
	if s.tun == nil || !s.lostAt.IsZero() { // there is nobody to finish with
		s.close(nil)
		return
	}
	for _, svc := range s.services {
		svc.finish()
	}
	s.tun.GoAway()
}

// onGoAway is told that the private relay is about to leave. It waits for the
// streams that are open, so those that nobody uses end now.
func (s *session) onGoAway() {
	s.leaving = true
	for _, svc := range s.services {
		svc.finish()
	}
}

// accept takes a stream that the private relay opened: an announcement. There is
// one at a time, as each may take up relay.MaxAnnounce of memory.
func (s *session) accept(st *tunnel.Stream, header []byte) {
	h, err := relay.DecodeHeader(header)
	if err != nil || h.Kind != relay.KindAnnounce {
		st.Reset(tunnel.CodeForbidden)
		return
	}
	if s.hearing {
		st.Reset(tunnel.CodeOverload)
		return
	}
	s.hearing = true
	st.SetHandler(&announcement{session: s, stream: st})
}

// announcement is the handler of an announce stream.
type announcement struct {
	session *session
	stream  *tunnel.Stream
	list    []byte
	heard   bool // all of it has come, or will not
}

func (a *announcement) OnData(b []byte) int {
	if len(a.list)+len(b) > relay.MaxAnnounce {
		a.stream.Reset(tunnel.CodeOverload)
		return len(b)
	}
	a.list = append(a.list, b...)
	return len(b)
}

func (a *announcement) OnEOF() {
	list, err := relay.DecodeAnnounce(a.list)
	a.over()
	if err != nil {
		a.session.relay.log.Warn("announcement refused", "site", a.session.site, "err", err)
		a.stream.Reset(tunnel.CodeForbidden)
		return
	}
	a.stream.Write(relay.Encode(a.session.publish(list)))
	a.stream.CloseWrite()
}

func (a *announcement) OnDrain()      {}
func (a *announcement) OnClose(error) { a.over() }

// over lets the next announcement come in, once.
func (a *announcement) over() {
	if !a.heard {
		a.heard, a.list = true, nil
		a.session.hearing = false
	}
}

// publish replaces the services of the session by those of list and tells for
// each where it is to be found, or why it is not published.
func (s *session) publish(list []relay.Announcement) []relay.AnnounceReply {
	r := s.relay
	r.mu.Lock()
	allowed := r.sites[s.site].Publish // a reload makes a new one
	r.mu.Unlock()

	old := make(map[string]*service, len(s.services)) // by name; in the end those that go
	for _, svc := range s.services {
		old[svc.name] = svc
	}
	made := make([]*service, len(list)) // nil: refused
	errs := make([]error, len(list))
	routes := make(map[route]*service)
	ports := make(map[relay.Publish]*port)
	for i, a := range list {
		if made[i], errs[i] = s.newService(a, allowed); errs[i] != nil {
			continue
		}
		if o := old[a.Name]; o != nil && o.same(made[i]) {
			made[i] = o
		}
		errs[i] = s.claim(made[i], routes, ports)
	}

	replies := make([]relay.AnnounceReply, len(list))
	s.services = make([]*service, 0, len(list))
	r.mu.Lock()
	for i, svc := range made {
		replies[i].Name = list[i].Name
		if errs[i] == nil {
			if o := r.claims[svc.route()]; o != nil && o.session != s {
				delete(routes, svc.route())
				errs[i] = errors.New("publish \"" + svc.publish.String() + "\": another site has this address")
			}
		}
		if errs[i] != nil {
			replies[i].Error = errs[i].Error()
			continue
		}
		replies[i].Addresses = r.addresses(svc, ports)
		s.services = append(s.services, svc)
		if old[svc.name] == svc {
			delete(old, svc.name)
		}
	}
	r.replaceRoutes(s, routes)
	r.mu.Unlock()

	for p, o := range s.ports {
		if ports[p] == nil {
			o.Close()
		}
	}
	s.ports, s.announced = ports, list
	for _, o := range old {
		o.remove()
	}
	refused := 0
	for i, err := range errs {
		if err == nil {
			continue
		}
		if refused++; refused <= maxRefusals {
			r.log.Warn("service refused", "site", s.site, "service", list[i].Name, "publish", list[i].Publish, "err", err)
		}
	}
	r.log.Info("services published", "site", s.site, "services", len(s.services), "refused", refused, "withdrawn", len(old))
	return replies
}

// maxRefusals is how many services of an announcement the log names that are refused.
const maxRefusals = 5

// reconsider publishes the last announcement again: the site may publish
// something else now. What nothing has changed for stays as it is.
func (s *session) reconsider() {
	if !s.ended && s.announced != nil {
		s.publish(s.announced)
	}
}

// newService makes the service of an announcement, if the site may publish it.
func (s *session) newService(a relay.Announcement, allowed []relay.Pattern) (*service, error) {
	if a.Publish == "" {
		return newService(s, a, relay.Publish{}), nil
	}
	p, err := relay.ParsePublish(a.Publish)
	if err != nil {
		return nil, err
	}
	if err := (relay.Service{Name: a.Name, Publish: p, Target: relay.Target{Scheme: a.TargetScheme}}).Validate(); err != nil {
		return nil, err
	}
	for _, pattern := range allowed {
		if pattern.Allows(p) {
			return newService(s, a, p), nil
		}
	}
	return nil, errors.New("publish \"" + p.String() + "\": site \"" + s.site + "\" may not publish this: the public relay's configuration says what it may")
}

// claim takes the route or port of svc, unless another service of the session has
// it, or, with a port, anybody.
func (s *session) claim(svc *service, routes map[route]*service, ports map[relay.Publish]*port) error {
	p := svc.publish
	switch {
	case p.IsZero():
		return nil
	case p.IsPort():
		if ports[p] != nil {
			return errors.New("publish \"" + p.String() + "\": service \"" + ports[p].service.name + "\" has this port")
		}
		if old := s.ports[p]; old != nil {
			old.hand(svc)
			ports[p] = old
			return nil
		}
		t, err := s.listen(svc)
		if err != nil {
			return errors.New("publish \"" + p.String() + "\": " + reasonOf(err))
		}
		ports[p] = t
		return nil
	}
	k := svc.route()
	if other := routes[k]; other != nil {
		return errors.New("publish \"" + p.String() + "\": service \"" + other.name + "\" has this address")
	}
	routes[k] = svc
	return nil
}

// reasonOf is the part of a listen error that a private relay may know.
func reasonOf(err error) string {
	if e, ok := errors.AsType[*net.OpError](err); ok && e.Err != nil {
		err = e.Err
	}
	return "the public relay cannot listen there: " + err.Error()
}
