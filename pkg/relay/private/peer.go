package private

import (
	"errors"
	"sync/atomic"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/link"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

const (
	// endTimeout bounds the wait for what is on its way on the other links when one has said that the
	// session is over.
	endTimeout = time.Second

	// doubtTimeout is the least that links get to answer when there is reason to believe that the relay at
	// the end of them has restarted.
	doubtTimeout = time.Second

	// drainIdle is how long a flow must be silent to be over in a drain.
	drainIdle = time.Second

	// lookInterval is how often the links are looked at: for Status, and for the choice of transports.
	lookInterval = 5 * time.Second
)

// peer is the session with one public relay, over the links of its lines.
//
// While there is no link, the first line alone dials: two that did would make two sessions, or declare each
// other's links dead. Once it has a link the others follow.
type peer struct {
	relay   *Relay       // immutable, as is the rest of this group
	address string       // host:port
	loop    *evloop.Loop // owns all of the following
	lines   []*line      // at least one
	ended   chan<- error // gets one value, when over becomes true

	over          bool          // drained, or refused for good
	session       *link.Session // nil before the first link, and when it is over
	id, secret    string        // to resume it
	look          evloop.Timer
	announcing    bool // an announcement is not answered yet
	stale         bool // the services have changed since
	reannounce    evloop.Timer
	announceTries int      // that failed in a row
	published     []string // see setNames
	standby       bool     // another session gets the site's visitors
	hinted        bool     // about the sockets of QUIC
	choice        choice
	flows         flows
	operations    int // streams of operators that have not come to their request yet
	rtsp          rtspScratch

	ending   bool         // the relay has said that the session is over
	endTimer evloop.Timer // ending
	doubts   map[tunnel.Link]uint64
	judgeAt  evloop.Timer // doubts is not nil
	draining bool
	deadline evloop.Timer // of the drain

	status atomic.Pointer[PeerStatus] // written by loop, read by Relay.Status
}

func newPeer(r *Relay, address string, loop *evloop.Loop, ended chan<- error) *peer {
	p := &peer{relay: r, address: address, loop: loop, ended: ended}
	p.flows.table.Loop = loop
	add := func(t link.Transport, role tunnel.Role) {
		p.lines = append(p.lines, &line{peer: p, transport: t, role: role, since: time.Now()})
	}
	if r.Transport == TransportQUIC {
		add(link.QUIC, tunnel.RoleInteractive)
	} else {
		add(link.WSS, tunnel.RoleInteractive)
		for range max(r.Links, 1) - 1 {
			add(link.WSS, tunnel.RoleBulk)
		}
	}
	switch {
	case r.Transport != TransportAuto:
		p.choice.text = p.lines[0].transport.String() + ": the configuration says so"
	case r.Proxied != nil && r.Proxied(address):
		p.choice.text = "wss: the proxy on the way carries no quic"
	default:
		add(link.QUIC, tunnel.RoleDatagram)
		p.choice.explain(reading{})
	}
	p.setStatus()
	return p
}

func (p *peer) now() time.Time { return p.loop.Now() }

// start begins to dial.
func (p *peer) start() { p.lines[0].start() }

// links counts the lines that have a link, suspect ones included.
func (p *peer) links() (n int) {
	for _, ln := range p.lines {
		if ln.link != nil {
			n++
		}
	}
	return n
}

// linksBeside counts those of the other lines.
func (p *peer) linksBeside(ln *line) int {
	n := p.links()
	if ln.link != nil {
		n--
	}
	return n
}

// takesTurn reports whether a line may dial now.
func (p *peer) takesTurn(ln *line) bool {
	if p.over || p.ending {
		return false
	}
	if p.links() > 0 {
		return true
	}
	for _, other := range p.lines {
		if other == ln || other.attempt == nil {
			continue
		}
		if ln != p.lines[0] {
			return false
		}
		other.rest()
	}
	return true
}

// alone leaves the dialling to the first line, as no link is left.
func (p *peer) alone() {
	if p.over {
		return
	}
	if p.draining && !p.busy() {
		p.finish(nil)
		return
	}
	for _, ln := range p.lines[1:] {
		ln.rest()
	}
	if first := p.lines[0]; first.attempt == nil {
		first.wait()
	}
	p.setStatus()
}

// help lets a line with another transport try while the first one, which could not reach the relay, waits.
func (p *peer) help() {
	for _, ln := range p.lines {
		if ln.wish() {
			ln.start()
		}
	}
}

// linkUp is told that a line has a new link, and what was said on it.
func (p *peer) linkUp(w relay.Welcome) {
	p.setStandby(!w.Active)
	if !w.Resumed {
		p.announce()
	}
	for _, other := range p.lines {
		if other.state == idle {
			other.start()
		}
	}
	p.choose(false)
	p.setStatus()
}

// begin makes the session that a relay has given us. It returns false if there is no more use for one.
func (p *peer) begin(w relay.Welcome) bool {
	if p.draining {
		p.finish(nil)
		return false
	}
	p.id, p.secret = w.Session, w.Resume
	p.session = p.newSession()
	p.loop.Arm(&p.look, lookInterval, p.looked)
	return true
}

func (p *peer) newSession() *link.Session {
	var s *link.Session
	s = link.NewSession(p.loop, tunnel.Config{
		Client:    true,
		Accept:    p.accept,
		OnSuspect: p.suspect,
		OnClose: func(err error) {
			if p.session == s {
				p.sessionOver(err)
			}
		},
	})
	return s
}

// choose decides anew what the transports are used for, if there is a choice: at a look by measurement,
// otherwise only if the QUIC link has gone.
func (p *peer) choose(look bool) {
	quic := p.lines[len(p.lines)-1]
	if !quic.wish() || p.session == nil {
		return
	}
	r := reading{quic: quic.link != nil}
	if look && r.quic {
		r = p.read(quic)
		if p.busy() {
			p.session.Ping(p.now()) // for the next look
		}
	}
	if (look || !r.quic) && p.choice.step(p.now(), r) {
		if p.choice.quic {
			quic.setRole(tunnel.RoleInteractive)
			p.lines[0].setRole(tunnel.RoleBulk)
		} else {
			p.lines[0].setRole(tunnel.RoleInteractive)
			quic.setRole(tunnel.RoleDatagram)
		}
	}
	if p.choice.explain(r) {
		p.relay.log.Info("transport", "relay", p.address, "choice", p.choice.text)
		p.notify()
	}
}

// notify tells the relay of the choice, for its operators to see. Should it not come, the next Hello tells it.
func (p *peer) notify() {
	header, err := relay.Header{Kind: relay.KindNotice, Service: relay.NoticeChoice, Host: p.choice.text}.Append(nil)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	if s, err := p.session.Open(header); err == nil {
		s.SetHandler(notice{s})
		s.CloseWrite()
	}
}

// read looks at the links.
func (p *peer) read(quic *line) reading {
	r := reading{quic: quic.link != nil}
	var moved, lost float64 // bytes, by the WebSocket links since the last look
	links := p.session.Links()
	r.quicRTT, r.wssRTT = quic.stats(links).RTT, p.lines[0].stats(links).RTT
	for _, ln := range p.lines {
		l := ln.stats(links)
		if l.Link == nil || ln == quic {
			continue
		}
		sent := l.Sent - ln.sent
		ln.sent = l.Sent
		if path, ok := ln.link.Path(); ok {
			moved += float64(sent)
			lost += float64(sent) * path.Loss
		}
	}
	if moved >= enoughToTell {
		r.loss, r.lossKnown = lost/moved, true
	}
	return r
}

// hint is told what could be better for QUIC.
func (p *peer) hint(what string) {
	if !p.hinted {
		p.hinted = true
		p.relay.log.Warn("quic", "relay", p.address, "hint", what)
	}
}

// suspect is told that a link is silent although something is owed: it may be dead, which its ping will
// show much later.
func (p *peer) suspect(l tunnel.Link) {
	for _, ln := range p.lines {
		if ln.link != nil && tunnel.Link(ln.link) == l && ln.state == linked {
			p.relay.log.Info("link is silent, dialling another one for it", "relay", p.address, "transport", ln.transport.String(), "role", ln.role.String())
			ln.start()
		}
	}
}

// forgotten is told that the relay at the end of a new link does not know the session. It returns true if
// the session is over. Otherwise there are other links, which have to show now that there is somebody at the
// end of them.
func (p *peer) forgotten(ln *line) bool {
	if p.linksBeside(ln) > 0 {
		p.doubt()
		return false
	}
	p.relay.log.Warn("session lost: the relay has forgotten it, its streams are closed", "relay", p.address)
	p.forget()
	return true
}

// doubt asks all links for a sign of life.
func (p *peer) doubt() {
	if p.doubts != nil {
		return
	}
	p.doubts = make(map[tunnel.Link]uint64)
	wait := doubtTimeout
	for _, l := range p.session.Links() {
		p.doubts[l.Link] = l.Received
		wait = max(wait, 4*l.RTT)
	}
	p.session.Ping(p.now())
	p.loop.Arm(&p.judgeAt, wait, p.judge)
}

var errNoSign = errors.New("no sign of life, and the relay does not know the session any more")

// judge closes the links that have not given one.
func (p *peer) judge() {
	doubts := p.doubts
	p.doubts = nil
	for _, l := range p.session.Links() {
		if received, ok := doubts[l.Link]; ok && l.Received == received {
			l.Link.Close(errNoSign)
		}
	}
}

// forget ends the session and closes its streams.
func (p *peer) forget() {
	s := p.session
	p.session = nil
	s.Close(nil)
	p.drop()
}

// drop forgets the session, which is closed, and its links.
func (p *peer) drop() {
	p.session, p.id, p.secret = nil, "", ""
	p.announcing, p.stale, p.announceTries = false, false, 0
	p.ending, p.doubts = false, nil
	for _, t := range []*evloop.Timer{&p.look, &p.reannounce, &p.endTimer, &p.judgeAt} {
		t.Stop()
	}
	for _, ln := range p.lines {
		if l := ln.unlink(); l != nil {
			l.Close(nil)
		}
	}
}

// sessionOver is told that the session has ended by itself: it was drained by either side, or it had no link
// for too long.
func (p *peer) sessionOver(err error) {
	p.drop()
	if p.draining {
		p.finish(nil)
		return
	}
	p.relay.log.Info("session over", "relay", p.address, "err", err)
	p.alone()
}

// end is told by one link that the session is over. What the others have still to say is let in.
func (p *peer) end() {
	if p.ending {
		return
	}
	p.relay.log.Info("session ended by the relay", "relay", p.address)
	p.ending = true
	for _, ln := range p.lines {
		if ln.state != linked {
			ln.rest()
		}
	}
	p.loop.Arm(&p.endTimer, endTimeout, p.atEnd)
}

func (p *peer) atEnd() {
	p.forget()
	p.alone()
}

// looked is called every lookInterval while there is a session.
func (p *peer) looked() {
	p.loop.Arm(&p.look, lookInterval, p.looked)
	p.choose(true)
	p.setStatus()
}

// setStandby is told what the session is for.
func (p *peer) setStandby(standby bool) {
	if p.standby == standby {
		return
	}
	p.standby = standby
	if standby {
		p.relay.log.Info("standing by: another private relay of the site gets its visitors", "relay", p.address)
	} else {
		p.relay.log.Info("active: the site's visitors come here", "relay", p.address)
	}
	p.setNames()
	p.setStatus()
}

// drain ends the session with its last stream, or with the timeout.
func (p *peer) drain() {
	if p.over {
		return
	}
	p.draining = true
	if p.links() == 0 && !p.busy() { // there is nobody to take leave of
		p.finish(nil)
		return
	}
	p.loop.Arm(&p.deadline, p.relay.DrainTimeout, p.cut)
	p.session.GoAway()
	if p.flows.table.Len() > 0 { // they have no end of their own
		p.flows.table.Hurry(drainIdle)
	}
}

// busy reports whether streams are open.
func (p *peer) busy() bool { return p.session != nil && p.session.Stats().Streams > 0 }

// cut ends the streams that have not finished in time.
func (p *peer) cut() {
	if n := p.session.Stats().Streams; n > 0 {
		p.relay.log.Warn("drain timeout: streams are cut", "relay", p.address, "streams", n)
	}
	p.finish(nil)
}

// finish is the end of the peer.
func (p *peer) finish(err error) {
	p.over = true
	for _, ln := range p.lines {
		ln.rest()
	}
	p.deadline.Stop()
	if p.session != nil {
		p.forget()
	}
	if err != nil {
		p.lines[0].problem = err.Error()
	}
	p.setStatus()
	p.ended <- err
}

func (p *peer) setStatus() {
	s := &PeerStatus{Address: p.address, Linked: p.links() > 0, Standby: p.standby, Choice: p.choice.text}
	if !s.Linked {
		s.Problem = p.lines[0].problem
	}
	var links []tunnel.LinkStats
	if p.session != nil {
		links = p.session.Links()
	}
	for _, ln := range p.lines {
		one := LineStatus{
			Transport: ln.transport.String(), Role: ln.role.String(), State: ln.state.String(),
			RTT: ln.stats(links).RTT, Since: ln.since, Problem: ln.problem,
		}
		if ln.link != nil && ln.state != linked {
			one.State = "suspect"
		}
		s.Lines = append(s.Lines, one)
	}
	p.status.Store(s)
}
