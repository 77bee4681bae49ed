package tunnel

import (
	"fmt"
	"time"
)

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

// asked reports whether c owes the answer to a ping, sent or about to be.
func (c *carrier) asked() bool { return c.wantPing || c.pingSent }

// deadline is when a silent link is asked for a sign of life, or is suspect if it was
// asked, or is given up. Another link that is ready makes the session impatient.
func (s *Session) deadline(c *carrier) time.Duration {
	asked := c.asked()
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
	asked := c.asked()
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
// it, after 5 s at most. The peer takes one change a second, and 16 at once.
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
// the answer to ours. A change looks at every stream, so a peer may not have many.
func (s *Session) receiveRole(c *carrier, b byte) error {
	role := Role(b)
	if role > RoleNone {
		return fmt.Errorf("role %d: %w", b, ErrProtocol)
	}
	if c.roleAt = max(c.roleAt, s.now-roleBurst*roleInterval) + roleInterval; c.roleAt > s.now {
		return fmt.Errorf("too many changes of the role: %w", ErrProtocol)
	}
	c.left = role == RoleNone
	if role != c.role {
		c.drains, c.echo = false, c.left
		s.setRole(c, role)
	}
	s.wake()
	return nil
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
		all = append(all, LinkStats{c.link, c.role, c.rtt, s.start.Add(c.since), c.suspect, c.sent, c.rcvd, c.asked()})
	}
	return all
}

// Via returns the link that what st sends next, or what is said last of it, goes by;
// nil while there is none.
func (s *Session) Via(st *Stream) Link {
	c := s.control
	if _, ok := st.h.(DatagramHandler); ok && s.direct != nil {
		c = s.direct
	} else if st.path != nil {
		c = st.path.c
	}
	if c == nil {
		return nil
	}
	return c.link
}

// Budget is that of Config.
func (s *Session) Budget() int { return s.cfg.Budget }
