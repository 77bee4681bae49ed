package tunnel

import "cmp"

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
		switch {
		case !c.suspect || s.control.suspect:
			c.empty = false
		case !c.empty:
			c.empty = true
			s.abandon(c)
		}
	}
	if s.control != old {
		s.rtt = cmp.Or(s.control.rtt, s.rtt)
		s.reopen()
	}
	s.resume()
}
