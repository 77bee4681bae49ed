package tunnel

import "time"

// A carrier is one link of a session, and all that goes away with it.
//
// It starts silent: each side sends END, and before it, if it has no other link that
// is ready, a CREDIT for each stream. OPEN, DATA and DGRAM flow once END was sent and
// has come: then it is ready.
type carrier struct {
	link   Link
	lanes  LaneLink // link, if it has lanes
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
	empty      bool          // suspect, and everything has left it
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
	roleAt   time.Duration // when the peer has earned the last change of the role
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
