package public

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

const (
	// takeoverTime is how long the active session may be without a link before a
	// stand-by takes over: a link that is made again at once is back by then.
	takeoverTime = 500 * time.Millisecond

	// doubtMax bounds how long a private relay has to say that it lives, where the
	// round trip is long.
	doubtMax = 2 * time.Second

	// doubtTick is how often it is looked whether it has.
	doubtTick = 20 * time.Millisecond

	// maxLinked is how many sessions of a site may have links, and maxSessions how
	// many there may be, those that wait for a link included.
	maxLinked, maxSessions = 8, 16

	// maxHeld bounds the visitors that wait for a takeover.
	maxHeld = 4096
)

// group is the private relays of one site: sessions, of which one is active and
// gets the visitors. The others stand by: they have links and say what they
// offer, and publish nothing.
//
// The active session changes only when it ends, leaves, was without a link for
// takeoverTime, or when an operator says so. One that comes back stands by, so
// two that fail in turn take over from each other no more often than they fail.
//
// All sessions of a site share a loop, now and later, so that what is published
// passes from one to the other in one turn; ports stay open.
type group struct {
	// Immutable.
	relay *Relay
	site  string
	loop  *loop

	// Owned by the loop.
	ports     map[relay.Publish]*port
	timer     evloop.Timer      // of the takeover
	past      Traffic           // of sessions that are over
	tallies   map[string]*tally // by service, of those that are published
	gone      []orphan          // of services that are withdrawn
	undecided bool              // the active session has no link, or is in doubt, and a stand-by may take over
	held      []func()          // visitors that wait for the decision

	// Guarded by relay.mu; active changes on the loop only, which so may read it.
	sessions []*session      // in the order in which they came
	active   *session        // one of them, or nil
	heard    bool            // the active one has announced its services
	names    map[string]bool // see away; of the last announcement of an active one
}

// all returns the sessions.
func (g *group) all() []*session {
	g.relay.mu.Lock()
	defer g.relay.mu.Unlock()
	return slices.Clone(g.sessions)
}

// settle has the right session be active. It is called whenever something that
// matters for that has changed. On the loop.
func (g *group) settle() {
	sessions := g.all()
	if !slices.Contains(sessions, g.active) || !g.active.steady(g.loop.Now()) {
		if next := g.choose(sessions); next != g.active {
			g.activate(next, "")
		}
	}
	a := g.active
	g.undecided = a != nil && (a.doubted || !a.lostAt.IsZero()) && !g.relay.draining.Load() &&
		slices.ContainsFunc(sessions, func(s *session) bool { return s != a && s.ready() })
	g.timer.Stop()
	switch {
	case !g.undecided:
		held := g.held
		g.held = nil
		for _, f := range held {
			f()
		}
	case !a.doubted:
		g.loop.Arm(&g.timer, a.takeAt.Sub(g.loop.Now()), g.settle)
	}
}

// choose returns the session to be active in place of the one that is, or that
// again if no other one is better.
func (g *group) choose(sessions []*session) *session {
	if g.relay.draining.Load() { // nobody takes visitors any more
		if slices.Contains(sessions, g.active) {
			return g.active
		}
		return nil
	}
	rank := func(s *session) int {
		switch {
		case s.ready():
			return 4
		case s == g.active:
			return 3
		case len(s.links) > 0 && !s.leaving: // it has not announced anything yet
			return 2
		case !s.leaving && s.tun != nil:
			return 1
		}
		return 0
	}
	if len(sessions) == 0 {
		return nil
	}
	best := slices.MaxFunc(sessions, func(a, b *session) int { return cmp.Compare(rank(a), rank(b)) }) // the first of several
	if rank(best) == 0 {
		return nil
	}
	return best
}

// steady reports whether s, which is active, is to stay so.
func (s *session) steady(now time.Time) bool {
	return !s.leaving && (len(s.links) > 0 || now.Before(s.takeAt))
}

// ready reports whether s could serve visitors right now.
func (s *session) ready() bool {
	return len(s.links) > 0 && !s.doubted && !s.leaving && s.announced != nil
}

// begun is told that s has its first link. If there are sessions of the same machine by
// another process, which have links, then s is the machine's restart, and they are
// about to lose them; unless there are two of that machine.
func (g *group) begun(s *session) {
	for _, o := range g.all() {
		if o != s && len(o.links) > 0 && o.machine == s.machine && s.machine != "" && o.process != s.process && !slices.Contains(o.twins, s.process) {
			o.heirs = append(o.heirs, s)
			o.doubt()
		}
	}
}

// lives notes that s is alive after all: its heirs are no restarts of it.
func (s *session) lives() {
	for _, heir := range s.heirs {
		s.relay.mu.Lock()
		s.twin(heir.process)
		heir.twin(s.process)
		s.relay.mu.Unlock()
		s.relay.say(slog.LevelWarn, "two private relays say that they are the same machine: is one a copy of the other? Give each a host name and an /etc/machine-id of its own",
			s.site, "session", s.shortID(), "remote", s.remote, "other", heir.shortID(), "from", heir.remote)
	}
	s.heirs = nil
}

// twin remembers the process of another private relay with the machine of s. relay.mu is held.
func (s *session) twin(process string) {
	if len(s.twins) == maxSessions {
		s.twins = slices.Delete(s.twins, 0, 1)
	}
	s.twins = append(s.twins, process)
}

// activate makes s active, nil meaning that nobody is. On the loop.
func (g *group) activate(s *session, by string) {
	r, old := g.relay, g.active
	r.mu.Lock()
	g.active = s
	r.mu.Unlock()
	var list []relay.Announcement
	if s != nil {
		list = s.announced
	}
	g.publish(s, list)
	if old != nil {
		if len(old.links) == 0 {
			for _, svc := range old.services {
				svc.resetUnseen()
			}
		}
		old.stopPublishing()
		old.notify()
	}
	if s == nil {
		return
	}
	s.cut.Stop()
	s.notify()
	if old != nil {
		level := slog.LevelWarn
		if by != "" || old.leaving && !old.ended { // somebody wants it so
			level = slog.LevelInfo
		}
		r.say(level, "site taken over by a stand-by", g.site, "session", s.shortID(), "remote", s.remote, "from", old.shortID(), "because", cmp.Or(by, old.why()))
	}
}

// why is why s is active no more.
func (s *session) why() string {
	switch {
	case s.ended:
		return "its session has ended"
	case s.leaving:
		return "it is shutting down"
	}
	return "it has no link"
}

// hold keeps a visitor who comes before it is decided who serves it, and calls f
// when that is. It reports whether it does. On the loop.
func (g *group) hold(f func()) bool {
	if !g.undecided || len(g.held) >= maxHeld {
		return false
	}
	g.held = append(g.held, f)
	return true
}

// notify tells the private relay whether its session is active, if it does not
// know. A notice that it has not heard yet is overtaken.
func (s *session) notify() {
	active := s.group.active == s
	if s.ended || !s.welcomed || s.told == active {
		return
	}
	what := relay.NoticeStandby
	if active {
		what = relay.NoticeActive
	}
	header, err := relay.Header{Kind: relay.KindNotice, Service: what}.Append(nil)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	if s.notice != nil {
		s.notice.Reset(tunnel.CodeCancelled)
	}
	st, err := s.tun.Open(header)
	if err != nil { // it is leaving, or full; the next Welcome says it, too
		return
	}
	s.told, s.notice = active, st
	st.SetHandler(&notice{s, st})
	st.CloseWrite()
}

// notice is the handler of a notice, which nobody answers but by its end.
type notice struct {
	session *session
	stream  *tunnel.Stream
}

func (n *notice) OnData(b []byte) int { return len(b) }
func (n *notice) OnEOF()              {}
func (n *notice) OnDrain()            {}
func (n *notice) OnClose(error) {
	if n.session.notice == n.stream {
		n.session.notice = nil
	}
}

// ErrUnknownSite says that the relay has no site of that name.
var ErrUnknownSite = errors.New("no such site")

// groupOf returns the group of a site. It must not be called on a loop.
func (r *Relay) groupOf(site string) (*group, error) {
	r.prepare()
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, known := r.sites[site]; !known {
		return nil, fmt.Errorf("%w: %q", ErrUnknownSite, site)
	}
	g := r.groups[site]
	if g == nil {
		return nil, fmt.Errorf("site %q has no private relay connected", site)
	}
	return g, nil
}

// Promote makes a stand-by of a site active: visitors who come from now on go to
// it. What they have under way on the other one finishes there; what is left of that
// after the time cut is reset, unless cut is negative. id is the beginning of a
// SessionStatus.ID, or "" for the only stand-by there is. It returns that ID. It must not
// be called on a loop. If ctx ends first, it may still happen.
func (r *Relay) Promote(ctx context.Context, site, id string, cut time.Duration) (string, error) {
	g, err := r.groupOf(site)
	if err != nil {
		return "", err
	}
	type result struct {
		id  string
		err error
	}
	done := make(chan result, 1)
	if !g.loop.Post(func() {
		id, err := g.promote(id, cut)
		done <- result{id, err}
	}) {
		return "", errDraining
	}
	select {
	case res := <-done:
		return res.id, res.err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// promote is Promote on the loop.
func (g *group) promote(id string, cut time.Duration) (string, error) {
	var fit []*session
	var standbys []string
	for _, s := range g.all() {
		if s != g.active {
			standbys = append(standbys, s.shortID())
		}
		if id == "" && s != g.active || id != "" && strings.HasPrefix(s.id, id) {
			fit = append(fit, s)
		}
	}
	there := "it has no stand-by: connect a second private relay of this site first"
	if len(standbys) > 0 {
		there = "its stand-bys are " + strings.Join(standbys, ", ")
	}
	switch {
	case g.relay.draining.Load():
		return "", errDraining
	case len(fit) == 0 && id == "":
		return "", fmt.Errorf("site %q: %s", g.site, there)
	case len(fit) == 0:
		return "", fmt.Errorf("site %q has no session %q; %s", g.site, id, there)
	case len(fit) > 1:
		return "", fmt.Errorf("site %q: say which one, by its ID: %s", g.site, there)
	}
	s, old := fit[0], g.active
	switch {
	case s == old:
		return "", fmt.Errorf("site %q: session %s is active already; %s", g.site, s.shortID(), there)
	case s.leaving:
		return "", fmt.Errorf("site %q: session %s is shutting down: choose another one, or wait until it is back", g.site, s.shortID())
	case len(s.links) == 0:
		return "", fmt.Errorf("site %q: session %s has no link: wait until it is back", g.site, s.shortID())
	case s.announced == nil:
		return "", fmt.Errorf("site %q: session %s has not said yet what it offers: try again in a moment", g.site, s.shortID())
	}
	g.activate(s, "an operator said so")
	if old != nil && cut >= 0 {
		g.loop.Arm(&old.cut, cut, old.resetStreams)
	}
	g.settle()
	return s.shortID(), nil
}
