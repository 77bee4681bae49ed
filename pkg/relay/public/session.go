package public

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/link"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

var (
	errReplaced = errors.New("the private relay has begun a new session")
	errRevoked  = errors.New("the site's key was revoked")
	errEvicted  = errors.New("the site has too many sessions")
)

// session is a private relay that is connected: the tunnel, and the
// services that it publishes when it is the active one of its site. All of it, its
// links, its streams and their visitors included, belongs to one loop.
type session struct {
	// Immutable.
	relay            *Relay
	group            *group
	loop             *loop // the group's
	site             string
	key              string // that it has proved to have
	machine, process string // as in its Hello
	id               string // to resume by, with secret
	secret           string
	since            time.Time

	// Owned by the loop.
	tun       *link.Session // nil until the first link is there
	links     []*carrier
	lostAt    time.Time    // since when there is no link; zero: there is one
	takeAt    time.Time    // with lostAt: when a stand-by may take over
	parting   evloop.Timer // the end of a session that parted
	doubts    evloop.Timer // the end of doubt
	doubted   bool         // it runs: nobody knows whether the private relay lives
	heirs     []*session   // of the same machine, that have come meanwhile: it has restarted, unless this one lives
	cut       evloop.Timer // resets what is under way on a session that is active no more
	remote    netip.AddrPort
	software  string
	choice    string
	announced []relay.Announcement // the last announcement; nil: none has come
	hearing   bool                 // another one is coming in
	services  []*service           // nil unless active
	builtIn   map[string]*service  // those for operators that the private relay has by itself
	held      map[netip.Addr]int   // visitors by address, those of services that are gone included
	store     store                // of cameras
	refused   []ServiceError       // of announced
	welcomed  bool                 // there was a Welcome
	told      bool                 // the private relay knows that the session is active
	notice    *tunnel.Stream       // by which it is told otherwise; nil: none is open
	leaving   bool                 // the private relay drains: no new streams
	parted    bool                 // it has closed a link because the session is over
	ended     bool

	// Guarded by relay.mu.
	linked   int      // links, those on the way here included
	replaced bool     // about to be closed
	twins    []string // processes of others that live and have the same machine; changed on the loop only
}

// carrier is a link of a session.
type carrier struct {
	tunnel.Link
	transport link.Transport
	remote    netip.AddrPort
}

// newSession makes a session of a group, to be started on its loop.
func newSession(g *group, h relay.Hello) *session {
	var b [16 + 32]byte
	rand.Read(b[:])
	return &session{
		relay: g.relay, group: g, loop: g.loop, site: g.site,
		key: h.Key, machine: h.Machine, process: h.Process,
		id: hex.EncodeToString(b[:16]), secret: hex.EncodeToString(b[16:]),
		since: time.Now(),
		held:  make(map[netip.Addr]int),
	}
}

// shortID is what operators call the session.
func (s *session) shortID() string { return s.id[:8] }

// standing is what the log calls the session.
func (s *session) standing() string {
	if s.group.active == s {
		return "site"
	}
	return "stand-by"
}

// start makes the tunnel. On the loop.
func (s *session) start() {
	s.tun = link.NewSession(s.loop.Loop, tunnel.Config{
		MaxStreams:    s.relay.MaxStreams,
		Budget:        s.relay.Budget,
		ResumeTimeout: s.relay.ResumeTimeout,
		Accept:        s.accept,
		OnGoAway:      s.onGoAway,
		OnClose:       s.onClose,
	})
	s.store.size = s.tun.Budget() / storeShare
}

// attached notes that a link carries the session from now on.
func (s *session) attached(h relay.Hello, remote netip.AddrPort) {
	gap := time.Duration(0)
	if !s.lostAt.IsZero() {
		gap = s.loop.Now().Sub(s.lostAt)
	}
	s.lostAt = time.Time{}
	s.remote, s.software, s.choice = remote, h.Software, h.Choice
	s.group.settle()
	switch {
	case !s.welcomed:
		s.relay.say(slog.LevelInfo, s.standing()+" up", s.site, "session", s.shortID(), "remote", remote, "software", h.Software)
	case gap > 0:
		s.relay.say(slog.LevelInfo, s.standing()+" resumed", s.site, "session", s.shortID(), "remote", remote, "gap", gap.Round(time.Millisecond))
	}
	if !s.welcomed {
		s.welcomed, s.told = true, s.group.active == s
	}
}

// lost notes that the session has no link any more. Its streams wait.
func (s *session) lost(err error) {
	if s.ended {
		return
	}
	s.doubted = false
	s.doubts.Stop()
	s.lostAt = s.loop.Now()
	s.takeAt = s.lostAt.Add(takeoverTime)
	if errors.Is(err, tunnel.ErrLinkTimeout) { // nothing has come for longer than that
		s.takeAt = s.lostAt
	}
	s.relay.say(slog.LevelWarn, s.standing()+" lost its link", s.site, "session", s.shortID(), "err", err)
	s.group.settle()
	if s.heirs != nil {
		s.close(errReplaced)
	}
}

// doubt gives the private relay a moment to answer a ping, and gives up its links if it
// does not: of a process that dies the system ends the TCP connections, but QUIC ones
// just fall silent. What else comes may be older.
func (s *session) doubt() {
	if s.ended || s.doubted || len(s.links) == 0 {
		return
	}
	now, wait := s.loop.Now(), takeoverTime
	for _, l := range s.tun.Links() {
		wait = max(wait, min(3*l.RTT, doubtMax))
	}
	s.doubted = true
	s.tun.Ping(now)
	s.loop.Arm(&s.doubts, doubtTick, func() { s.resolve(now.Add(wait)) })
	s.group.settle()
}

// resolve ends the doubt when a link has answered, or none has by then.
func (s *session) resolve(until time.Time) {
	switch {
	case slices.ContainsFunc(s.tun.Links(), func(l tunnel.LinkStats) bool { return !l.Asked }):
		s.doubted = false
		s.lives()
		s.group.settle()
	case s.loop.Now().Before(until):
		s.loop.Arm(&s.doubts, doubtTick, func() { s.resolve(until) })
	default:
		s.forsake(tunnel.ErrLinkTimeout)
		s.lost(tunnel.ErrLinkTimeout)
	}
}

// forsake gives up the links that there are.
func (s *session) forsake(err error) {
	for _, c := range s.links {
		s.tun.Lost(c.Link, err, s.loop.Now())
		c.Close(err)
		s.relay.unlink(s)
	}
	s.links = nil
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
	if what := s.standing() + " down"; err == nil {
		s.relay.say(slog.LevelInfo, what, s.site, "session", s.shortID())
	} else {
		s.relay.say(slog.LevelWarn, what, s.site, "session", s.shortID(), "err", err)
	}
	s.ended = true
	if s.tun != nil {
		s.group.past.add(s.tun.Stats())
	}
	s.parting.Stop()
	s.doubts.Stop()
	s.cut.Stop()
	s.relay.removeSession(s)
	s.group.settle()
	s.relay.checkDrained()
}

// stopPublishing ends the services of a session that is active no more. What is
// under way goes on.
func (s *session) stopPublishing() {
	for _, svc := range s.services {
		svc.remove()
	}
	s.services = nil
}

// resetStreams ends what visitors have under way.
func (s *session) resetStreams() {
	telling := s.notice != nil // it is reset, too
	s.tun.ResetOpened(tunnel.CodeCancelled)
	if telling {
		s.told = !s.told
		s.notify()
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
	s.group.settle()
}

// accept takes a stream that the private relay opened: an announcement. There is
// one at a time, as each may take up relay.MaxAnnounce of memory.
func (s *session) accept(st *tunnel.Stream, header []byte) {
	h, err := relay.DecodeHeader(header)
	if err == nil && h.Kind == relay.KindNotice && h.Service == relay.NoticeChoice {
		s.choice = h.Host
		st.SetHandler(&notice{s, st})
		st.CloseWrite()
		return
	}
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
		a.stream.Reset(tunnel.CodeForbidden)
		return len(b)
	}
	a.list = append(a.list, b...)
	return len(b)
}

func (a *announcement) OnEOF() {
	list, err := relay.DecodeAnnounce(a.list)
	a.over()
	if err != nil {
		a.session.relay.say(slog.LevelWarn, "announcement refused", a.session.site, "err", err)
		a.stream.Reset(tunnel.CodeForbidden)
		return
	}
	a.stream.Write(relay.Encode(a.session.publish(list)))
	a.session.group.settle()
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

// publish notes what the private relay offers and tells for each service where it
// is to be found, or why it is not published. If the session is not active, that is
// what would be.
func (s *session) publish(list []relay.Announcement) []relay.AnnounceReply {
	if list == nil {
		list = []relay.Announcement{}
	}
	s.announced = list
	if s.group.active == s {
		return s.group.publish(s, list)
	}
	allowed := s.allowed()
	taken := newClaims()
	replies := make([]relay.AnnounceReply, len(list))
	errs := make([]error, len(list))
	s.relay.mu.Lock()
	for i, a := range list {
		replies[i].Name = a.Name
		svc, err := s.newService(a, allowed)
		if err == nil {
			err = taken.claim(svc, func(svc *service) (*port, error) { return &port{service: svc}, nil })
		}
		if err == nil {
			err = s.relay.conflict(s.group, svc)
		}
		if errs[i] = err; err != nil {
			replies[i].Error = err.Error()
			continue
		}
		replies[i].Addresses = s.relay.addresses(svc, nil)
	}
	s.relay.mu.Unlock()
	refused := s.refuse(list, errs)
	s.relay.say(slog.LevelInfo, "services of a stand-by", s.site, "session", s.shortID(), "services", len(list)-refused, "refused", refused)
	return replies
}

// publish replaces the services of the site by those of list, which s offers. Without a
// session there are none. On the loop.
func (g *group) publish(s *session, list []relay.Announcement) []relay.AnnounceReply {
	r := g.relay
	var allowed []relay.Pattern
	old := make(map[string]*service) // by name; in the end those that go
	if s != nil {
		allowed = s.allowed()
		for _, svc := range s.services {
			old[svc.name] = svc
		}
	}
	made := make([]*service, len(list)) // nil: refused
	errs := make([]error, len(list))
	taken := newClaims()
	for i, a := range list {
		if made[i], errs[i] = s.newService(a, allowed); errs[i] != nil {
			continue
		}
		if o := old[a.Name]; o != nil && o.same(made[i]) {
			if p := made[i].policy.Load(); !p.equal(o.policy.Load()) {
				o.policy.Store(p) // what is under way goes on
			}
			o.inspect = made[i].inspect
			made[i] = o
		}
		errs[i] = taken.claim(made[i], s.open)
	}

	replies := make([]relay.AnnounceReply, len(list))
	services := make([]*service, 0, len(list))
	r.mu.Lock()
	for i, svc := range made {
		replies[i].Name = list[i].Name
		if errs[i] == nil {
			if errs[i] = r.conflict(g, svc); errs[i] != nil {
				for _, k := range svc.routes() {
					delete(taken.routes, k)
				}
			}
		}
		if errs[i] != nil {
			replies[i].Error = errs[i].Error()
			continue
		}
		replies[i].Addresses = r.addresses(svc, taken.ports)
		services = append(services, svc)
		if old[svc.name] == svc {
			delete(old, svc.name)
		}
	}
	g.heard = s != nil && s.announced != nil
	if g.heard {
		g.names = taken.names()
	}
	r.replaceRoutes(g, taken.routes)
	r.mu.Unlock()

	g.closePorts(taken.ports)
	for _, o := range old {
		o.remove()
	}
	if s == nil || s.announced == nil {
		return nil
	}
	for _, svc := range services {
		if !svc.inspect {
			r.inspector.forget(serviceName{g.site, svc.name})
		}
		svc.tally = g.tally(svc.name)
	}
	g.forget(services)
	s.services = services
	refused := s.refuse(list, errs)
	r.say(slog.LevelInfo, "services published", g.site, "session", s.shortID(), "services", len(services), "refused", refused, "withdrawn", len(old))
	return replies
}

// maxRefusals is how many services of an announcement the log names that are
// refused, and maxShown how many the status does.
const maxRefusals, maxShown = 5, 20

// refuse notes which services of an announcement are refused, and tells how many.
func (s *session) refuse(list []relay.Announcement, errs []error) (refused int) {
	s.refused = nil
	for i, err := range errs {
		if err == nil {
			continue
		}
		if refused++; refused <= maxRefusals {
			s.relay.say(slog.LevelWarn, "service refused", s.site, "session", s.shortID(), "service", list[i].Name, "publish", list[i].Publish, "err", err)
		}
		if refused <= maxShown {
			s.refused = append(s.refused, ServiceError{list[i].Name, err.Error()})
		}
	}
	return refused
}

// allowed is what the site may publish; a reload makes a new list.
func (s *session) allowed() []relay.Pattern {
	s.relay.mu.Lock()
	defer s.relay.mu.Unlock()
	return s.relay.sites[s.site].Publish
}

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
	if err := (relay.Service{Name: a.Name, Publish: p, Target: relay.Target{Scheme: a.TargetScheme}, Policy: a.Policy, Camera: a.Camera, Files: a.Files, Inspect: a.Inspect}).Validate(); err != nil {
		return nil, err
	}
	if p.Scheme == "tftp" && s.relay.TFTP == "" {
		return nil, errNoTFTP
	}
	for _, pattern := range allowed {
		if pattern.Allows(p) {
			svc := newService(s, a, p)
			svc.inspect = a.Inspect
			made, err := newPolicy(a.Policy, cmp.Or(strings.TrimPrefix(p.Host, "*."), "culvert"))
			if err != nil {
				return nil, err
			}
			svc.policy.Store(made)
			return svc, nil
		}
	}
	return nil, errors.New("publish \"" + p.String() + "\": site \"" + s.site + "\" may not publish this: the public relay's configuration says what it may")
}

// claims are what the services of one announcement have.
type claims struct {
	routes map[route]*service
	ports  map[relay.Publish]*port
	hosts  map[string]*service // the first one that has a host by https or tls
}

func newClaims() *claims {
	return &claims{make(map[route]*service), make(map[relay.Publish]*port), make(map[string]*service)}
}

// claim takes the route or port of svc, which open opens, unless another service
// has it.
func (c *claims) claim(svc *service, open func(*service) (*port, error)) error {
	p := svc.publish
	switch {
	case p.IsZero():
		return nil
	case p.IsPort():
		if t := c.ports[p]; t != nil {
			return errors.New("publish \"" + p.String() + "\": service \"" + t.service.name + "\" has this port")
		}
		t, err := open(svc)
		if err != nil {
			return errors.New("publish \"" + p.String() + "\": " + reasonOf(err))
		}
		c.ports[p] = t
		return nil
	}
	for _, k := range svc.routes() {
		if other := c.routes[k]; other != nil {
			return errors.New("publish \"" + p.String() + "\": service \"" + other.name + "\" has this address")
		}
	}
	if svc.secure || svc.raw {
		if other := c.hosts[svc.host]; other == nil {
			c.hosts[svc.host] = svc
		} else if other.raw != svc.raw {
			return errors.New("publish \"" + p.String() + "\": service \"" + other.name + "\" has this host by " + other.publish.Scheme + "://, and TLS can end in one place only")
		}
	}
	for _, k := range svc.routes() {
		c.routes[k] = svc
	}
	return nil
}

// names are those of a site for when it is away.
func (c *claims) names() map[string]bool {
	names := make(map[string]bool)
	for k := range c.routes {
		if k.secure || k.raw {
			names[strings.TrimPrefix(k.host, "*")] = k.raw
		}
	}
	return names
}

// reasonOf is the part of a listen error that a private relay may know.
func reasonOf(err error) string {
	if e, ok := errors.AsType[*net.OpError](err); ok && e.Err != nil {
		err = e.Err
	}
	return "the public relay cannot listen there: " + err.Error()
}
