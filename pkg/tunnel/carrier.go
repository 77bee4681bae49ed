package tunnel

import "time"

// A carrier is one link of a session, and all that goes away with it.
//
// It starts silent: each side sends END, and before it, if it has no other link that
// is ready, a CREDIT for each stream. OPEN, DATA and DGRAM flow once END was sent and
// has come: then it is ready.
type carrier struct {
	link   Link
	lanes  LaneLink // link, if it is one
	serial uint32   // from 1: Stream.toldOn
	role   Role
	own    path // the link's own channel
	gone   bool // it is none of the session's links any more

	sentEnd, gotEnd bool
	order           []*Stream // those that a CREDIT goes to before END; nil until the first
	told            int       // how many of them have it

	fresh    list    // streams with something to send on the own channel that have not used up their quantum
	bulk     list    // those that have
	laned    list    // those with something to send on lanes
	opened   []*path // the lanes
	laneless bool    // OpenLane gave nil; forgotten with the next trim
	streams  int     // that are bound to it: they have something to send or in flight

	suspect    bool
	rtt        time.Duration // smoothed; 0 until a ping was answered
	since      time.Duration // when it was attached
	heard      time.Duration // last sign of life
	boundAt    time.Duration // when streams became more than 0
	pong       uint64        // to be sent if wantPong
	wantPong   bool          // only the last ping is answered
	pingID     uint64        // last one sent
	pingSent   bool          // it is not answered
	wantPing   bool          // one is to be sent
	askedAt    time.Duration // when it was wanted
	pingAt     time.Duration // when the last one was sent
	sent, rcvd uint64        // bytes

	tellRole bool          // ROLE is to be sent
	drains   bool          // SetRole(RoleNone) was called here: this side closes it
	left     bool          // the peer's streams have left it
	echo     bool          // the peer drains it: ROLE tells when the streams of this side have left
	drainAt  time.Duration // when it is closed at last; 0: not being drained

	// Answers, which go where the question came from: whoever asks knows that
	// they are lost when this link is.
	resetAcks queue[uint32]
	acks      queue[ack]

	allowance int // what datagrams may take of the batch while others wait, saved up
	rx        decoder
	buf       [maxSmall]byte // of rx
}

// An ack is a CREDIT for a stream that has ended here.
type ack struct {
	id       uint32
	received uint64
}

// ready reports whether streams may use the link.
func (c *carrier) ready() bool { return c.sentEnd && c.gotEnd }

// carrier returns the carrier of an attached link, or nil.
func (s *Session) carrier(l Link) *carrier {
	for _, c := range s.carriers {
		if c.link == l {
			return c
		}
	}
	return nil
}

// A path is an ordered channel for DATA: a link's own, or a lane of it.
//
// A stream is bound to a path while it has something to send or in flight. It leaves
// the path when all it has sent is acknowledged, or when the path is lost or suspect:
// then it goes back to what is acknowledged. So what it sends on a path begins at an
// offset that the peer has, and goes on without a gap, whatever happens on others: a
// receiver drops what it has, and never misses anything.
type path struct {
	c    *carrier
	lane Lane    // nil: the link's own channel
	st   *Stream // whose lane it is
	at   int     // its index in carrier.opened
	full bool    // LaneDrained is to come
	idle bool    // nothing was sent since the last trim
}

// How much a role is liked for control frames and small streams, for bulk, and for
// datagrams: the least is the best.
var (
	forControl   = [...]int{RoleInteractive: 0, RoleBulk: 1, RoleDatagram: 2, RoleNone: 3}
	forBulk      = [...]int{RoleBulk: 0, RoleInteractive: 1, RoleDatagram: 2, RoleNone: 3}
	forDatagrams = [...]int{RoleDatagram: 0, RoleInteractive: 1, RoleBulk: 2, RoleNone: 3}
)

// rank is c's place in an order of roles. Any other link comes before a suspect one.
func (c *carrier) rank(order *[4]int) int {
	if c.suspect {
		return order[c.role] + len(order)
	}
	return order[c.role]
}

// prefer returns the link for what st sends next: the control path, or, if st has much
// to send and the peer is known to have it, the best one for bulk.
func (s *Session) prefer(st *Stream) *carrier {
	if st.Pending() < quantum || st.flags&flagConfirmed == 0 {
		return s.control
	}
	best, here := s.control, false
	if st.path != nil {
		best, here = st.path.c, true // stays among equals
	}
	for _, c := range s.carriers {
		if !c.ready() {
			continue
		}
		d := c.rank(&forBulk) - best.rank(&forBulk)
		if d < 0 || d == 0 && !here && c.streams < best.streams {
			best, here = c, false
		}
	}
	return best
}

// choose returns a path for st, which is bound to none.
func (s *Session) choose(st *Stream) *path {
	c := s.prefer(st)
	if p := st.path; p != nil && p.c == c { // its lane
		return p
	}
	s.dropLane(st)
	if c.offers(st) {
		if lane := c.lanes.OpenLane(); lane != nil {
			p := &path{c: c, lane: lane, st: st, at: len(c.opened)}
			c.opened = append(c.opened, p)
			return p
		}
		c.laneless = true
	}
	return &c.own
}

// offers reports whether c may have a lane for st.
func (c *carrier) offers(st *Stream) bool {
	return c.lanes != nil && !c.laneless && st.flags&flagConfirmed != 0
}

// leaves reports whether st, whose turn it is on p, goes on elsewhere: at once if all
// it has sent is acknowledged, or else then. That costs it a round trip, so it waits
// only if it has used up its quantum and has as much again, or if p is being drained.
func (s *Session) leaves(st *Stream, p *path) bool {
	if !s.choice {
		return false
	}
	c := s.prefer(st)
	if c == p.c && (p.lane != nil || !c.offers(st)) {
		return false
	}
	return st.next == st.acked || st.deficit <= 0 && st.Pending() >= quantum || p.c.role == RoleNone && c != p.c
}

// leave takes st, which is in no list, from its path.
func (s *Session) leave(st *Stream) {
	if st.next != st.acked {
		return // the acknowledgement of it calls schedule
	}
	s.unbind(st)
	s.schedule(st)
}

func (s *Session) bind(st *Stream, p *path) {
	st.path = p
	st.flags |= flagBound
	if p.c.streams == 0 {
		p.c.boundAt = s.now
	}
	p.c.streams++
}

// unbind notes that st has nothing to send or in flight. It keeps its lane for a while.
func (s *Session) unbind(st *Stream) {
	if st.flags&flagBound == 0 {
		return
	}
	st.flags &^= flagBound
	c := st.path.c
	if st.path.lane == nil {
		st.path = nil
	}
	if c.streams--; c.streams == 0 && c.role == RoleNone {
		s.wake()
	}
}

// dropLane gives back the lane of a stream that is bound to nothing, if it has one.
func (s *Session) dropLane(st *Stream) {
	p := st.path
	if p == nil {
		return
	}
	st.path = nil
	delete(s.full, p.lane)
	last := len(p.c.opened) - 1
	p.c.opened[p.at] = p.c.opened[last]
	p.c.opened[p.at].at = p.at
	p.c.opened[last] = nil
	p.c.opened = p.c.opened[:last]
	if !p.c.gone {
		p.lane.Close()
	}
}

// reroute follows a change of the links. The control path is the best one that is
// ready; a new one starts with everything that the peer may not have seen. Nothing
// stays on a suspect link while there is another one.
func (s *Session) reroute() {
	old := s.control
	s.control, s.direct, s.ready = nil, nil, 0
	for _, c := range s.carriers {
		if !c.ready() {
			continue
		}
		s.ready++
		if s.control == nil || c.rank(&forControl) < s.control.rank(&forControl) ||
			c == old && c.rank(&forControl) == s.control.rank(&forControl) {
			s.control = c
		}
		if c.lanes != nil && !c.suspect && (s.direct == nil || c.rank(&forDatagrams) < s.direct.rank(&forDatagrams)) {
			s.direct = c
		}
	}
	s.choice = s.ready > 1 || s.control != nil && s.control.lanes != nil
	if s.control == nil {
		if old != nil {
			s.lostAt = s.now
			s.dropDatagrams()
		}
		return
	}
	for _, c := range s.carriers {
		if c.suspect && !s.control.suspect {
			s.abandon(c)
		}
	}
	if s.control != old {
		s.reopen()
	}
	s.resume()
}

// hear notes a sign of life: something came on c, or what was sent on it is acknowledged.
func (s *Session) hear(c *carrier) {
	c.heard = s.now
	if c.suspect {
		c.suspect = false
		s.reroute()
	}
}

// quiet is how long c may give no sign of life when one is due.
func (s *Session) quiet(c *carrier) time.Duration {
	if c.rtt == 0 {
		return s.cfg.PingInterval
	}
	return max(500*time.Millisecond, 2*c.rtt)
}

// deadline is when a silent link is asked for a sign of life, or is suspect if it was
// asked, or is given up. Another link that is ready makes the session impatient.
func (s *Session) deadline(c *carrier) time.Duration {
	asked := c.wantPing || c.pingSent
	other := c.ready() && s.ready > 1
	switch {
	case !asked && other && c.streams > 0:
		return min(c.heard+s.cfg.PingInterval, max(c.heard, c.boundAt)+s.quiet(c))
	case !asked:
		return c.heard + s.cfg.PingInterval
	case other && !c.suspect:
		return max(c.heard, c.askedAt) + min(s.quiet(c), s.cfg.PingTimeout)
	}
	return max(c.heard, c.askedAt) + s.cfg.PingTimeout
}

// watch does what the silence of c calls for.
func (s *Session) watch(c *carrier) {
	asked := c.wantPing || c.pingSent
	switch due := s.now >= s.deadline(c); {
	case c.drainAt != 0 && s.now >= c.drainAt:
		s.drop(c, nil)
	case due && asked && s.now >= max(c.heard, c.askedAt)+s.cfg.PingTimeout:
		s.drop(c, ErrLinkTimeout)
	case due && asked:
		c.suspect = true
		s.reroute()
		if s.cfg.OnSuspect != nil {
			s.events = append(s.events, event{call: func() { s.cfg.OnSuspect(c.link) }})
			s.wake()
		}
	case due, !asked && c.ready() && s.now >= c.pingAt+rttInterval:
		s.ping(c)
	}
}

// trim gives back what c has not used since the last time.
func (c *carrier) trim(s *Session) {
	c.laneless = false
	if len(c.rx.dgram) == 0 {
		c.rx.dgram = nil
	}
	for i := len(c.opened) - 1; i >= 0; i-- { // dropLane moves one from behind
		p := c.opened[i]
		if p.idle && p.st.flags&flagBound == 0 {
			s.dropLane(p.st)
		} else {
			p.idle = true
		}
	}
}

func (s *Session) ping(c *carrier) {
	c.wantPing = true
	c.askedAt = s.now
	s.wake()
}

// drop closes c. What it carried goes on elsewhere.
func (s *Session) drop(c *carrier, err error) {
	s.lose(c)
	c.link.Close(err)
}

// SetRole changes the role of l, for this side and, by a ROLE frame, for the peer.
// RoleNone drains l: its streams leave it, and it gets Close(nil) when nothing needs
// it, after 5 s at most.
func (s *Session) SetRole(l Link, role Role) {
	c := s.carrier(l)
	if c == nil || c.role == role {
		return
	}
	c.tellRole = true
	c.drains, c.echo = role == RoleNone, false
	s.setRole(c, role)
}

func (s *Session) setRole(c *carrier, role Role) {
	c.role = role
	c.drainAt = 0
	if role == RoleNone {
		c.drainAt = s.now + drainTimeout
	}
	s.reroute()
	s.wake() // Next may have moved
}

// receiveRole takes the peer's wish. Its RoleNone is a request to leave the link, and
// the answer to ours.
func (s *Session) receiveRole(c *carrier, role Role) {
	c.left = role == RoleNone
	if role != c.role {
		c.drains, c.echo = false, c.left
		s.setRole(c, role)
	}
	s.wake()
}

// closeDrained closes the drained links that nothing needs any more.
func (s *Session) closeDrained() {
	for i := len(s.carriers) - 1; i >= 0; i-- {
		c := s.carriers[i]
		if !c.drains || !c.left || c.streams > 0 || !c.resetAcks.empty() || !c.acks.empty() {
			continue
		}
		if c != s.control || len(s.streams) == 0 && len(s.tombs) == 0 {
			s.drop(c, nil)
		}
	}
}

// Links returns a snapshot of the links, the oldest first.
func (s *Session) Links() []LinkStats {
	var all []LinkStats
	for _, c := range s.carriers {
		all = append(all, LinkStats{c.link, c.role, c.rtt, s.start.Add(c.since), c.suspect, c.sent, c.rcvd})
	}
	return all
}
