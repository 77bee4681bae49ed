package tunnel

import (
	"cmp"
	"slices"
	"time"
)

// Attach gives the session another link, which is authenticated and belongs to the
// same session at the other end. An interactive or a datagram link supersedes the one
// of the same role, a bulk link a suspect one; what is superseded is closed with
// ErrSuperseded.
//
// If there was no link, the streams go on: each side tells what it has received and
// sends again what the other one misses.
func (s *Session) Attach(l Link, role Role, now time.Time) {
	s.enter(now)
	if s.closed {
		l.Close(ErrClosed)
		return
	}
	old := s.superseded(role)
	if old != nil {
		s.drop(old, ErrSuperseded)
	}
	s.serial++
	s.stats.Links++
	c := &carrier{link: l, serial: s.serial, role: role, since: s.now, heard: s.now, roleAt: s.now - roleBurst*roleInterval}
	if lanes, ok := l.(LaneLink); ok && lanes.Lanes() {
		c.lanes = lanes
	}
	c.own.c = c
	c.rx.buf = c.buf[:]
	s.carriers = append(s.carriers, c)
	s.wake()
}

// superseded returns the link that one more in the given role takes the place of, or nil.
func (s *Session) superseded(role Role) *carrier {
	for _, c := range s.carriers {
		if c.role == role && (role == RoleInteractive || role == RoleDatagram || c.suspect) {
			return c
		}
	}
	if len(s.carriers) >= MaxLinks {
		return s.carriers[0]
	}
	return nil
}

// Lost tells that l is gone. What it carried goes on elsewhere, or waits for another link.
func (s *Session) Lost(l Link, err error, now time.Time) {
	s.enter(now)
	if c := s.carrier(l); c != nil {
		s.lose(c)
	}
}

// Ping asks every link for a sign of life.
func (s *Session) Ping(now time.Time) {
	s.enter(now)
	for _, c := range s.carriers {
		if !c.asked() {
			s.ping(c)
		}
	}
}

// lose forgets a link.
func (s *Session) lose(c *carrier) {
	c.gone = true
	i := slices.Index(s.carriers, c)
	s.carriers = slices.Delete(s.carriers, i, i+1)
	s.abandon(c)
	s.reroute()
	s.wake() // Next has moved
}

// abandon takes everything from a link that is lost or suspect. Streams go back to what
// is acknowledged, and have no path until resume.
func (s *Session) abandon(c *carrier) {
	for _, l := range []*list{&c.fresh, &c.bulk, &c.laned} {
		for l.head != nil {
			l.pop().flags &^= flagQueued
		}
	}
	for _, st := range s.streams {
		if st.path != nil && st.path.c == c {
			s.rewind(st)
			s.dropLane(st)
		}
		if st.toldOn == c.serial {
			st.toldOn = 0
			st.flags |= flagUntold
		}
		if st.closing() {
			s.rewind(st)
		}
	}
	s.sweeps = s.now + 2*(s.cfg.PingInterval+s.cfg.PingTimeout)
}

// closing reports whether st has finished but for an acknowledgement. The peer may have
// none to send any more: it had everything, has ended the stream, and its last CREDIT
// was lost with a link. It answers any DATA.
func (st *Stream) closing() bool {
	return st.flags&(flagFin|flagPeerFin) == flagFin|flagPeerFin && st.next == st.end+1 && st.acked < st.next
}

// sweep asks for lost acknowledgements. The peer may notice the loss of a link later
// than this side, and send into the void until then.
func (s *Session) sweep() {
	for _, st := range s.sorted((*Stream).closing) {
		s.rewind(st)
		s.schedule(st)
	}
}

// rewind has everything that is not acknowledged sent again.
func (s *Session) rewind(st *Stream) {
	s.unacked -= int(st.next - st.acked)
	st.next = st.acked
	st.cur = nil
	if st.next < st.end {
		st.cur = st.out.head
	}
	if st.Pending() > st.mark() {
		st.flags |= flagHigh
	}
	if st.flags&flagQueued == 0 {
		s.unbind(st)
	}
}

// reopen has a new control path begin with all that the peer may not have seen: the
// OPENs that nothing has confirmed, in the order of their ids, and the RESETs.
//
// So whatever was lost or is late, when an OPEN or a RESET arrives on a link, each older
// stream was seen, or its OPEN has come on that link before, or it was reset: the
// receiver takes only an OPEN that is newer than all it has seen.
func (s *Session) reopen() {
	s.opens, s.resets, s.sentGoaway = queue[*Stream]{}, queue[uint32]{}, false
	for _, st := range s.streams {
		st.flags &^= flagOpening
		if st.flags&flagConfirmed == 0 {
			st.flags |= flagOpening
			s.opens.push(st)
		}
	}
	slices.SortFunc(s.opens.items, func(a, b *Stream) int {
		return cmp.Compare(int32(a.id-s.nextID), int32(b.id-s.nextID))
	})
	for id := range s.tombs {
		s.resets.push(id)
	}
	slices.Sort(s.resets.items)
}

// resume gives everything that waits for a link to those that there are.
func (s *Session) resume() {
	for _, st := range s.sorted(func(st *Stream) bool { return st.untold() || st.sendable() }) { // few, as a rule
		if st.untold() {
			s.pushCredit(st)
		}
		s.schedule(st)
	}
	s.wake()
}

// untold reports whether the peer has to hear again what st has received and allows.
func (st *Stream) untold() bool {
	return st.flags&(flagUntold|flagEmitted) == flagUntold|flagEmitted
}

// fillStart adds what a link begins with.
func (s *Session) fillStart(c *carrier, b []byte, most int) []byte {
	if c.sentEnd {
		return b
	}
	if s.control == nil {
		if c.order == nil {
			c.order = s.sorted(nil)
		}
		for ; c.told < len(c.order); c.told++ {
			if !fits(b, creditSize, most) {
				return b
			}
			// The peer knows a stream that it has confirmed.
			if st := c.order[c.told]; st.s != nil && st.flags&flagConfirmed != 0 {
				b = st.tell(b, c)
			}
		}
	}
	if !fits(b, headerSize, most) {
		return b
	}
	c.sentEnd, c.order = true, nil
	b = appendEmpty(b, frameEnd, 0)
	s.started(c)
	return b
}

// started lets the streams use c once END has crossed both ways.
func (s *Session) started(c *carrier) {
	if c.ready() {
		s.ping(c)
		s.reroute()
	}
}
