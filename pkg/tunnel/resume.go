package tunnel

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Attach gives the session a new link, which is authenticated and belongs to the
// same session at the other end. A link it still has is closed with ErrSuperseded.
//
// Both sides tell what they have received of each stream. Then each sends again
// what the other one misses, and the streams go on.
func (s *Session) Attach(l Link, role Role, now time.Time) {
	s.enter(now)
	if s.closed {
		l.Close(ErrClosed)
		return
	}
	old := s.link
	s.detach()
	s.link = l
	s.heard = s.now
	s.stats.Links++
	s.order = s.sorted()
	for _, st := range s.order {
		st.flags &^= flagListed
	}
	for id := range s.tombs {
		s.resets.push(id)
	}
	slices.Sort(s.resets.items)
	if old != nil {
		old.Close(ErrSuperseded)
	}
	s.wake()
}

// Lost tells that l is gone. The streams wait for another link.
func (s *Session) Lost(l Link, err error, now time.Time) {
	s.enter(now)
	if l == s.link && l != nil {
		s.detach()
	}
}

// detach forgets the link and whatever was about to be sent on it: a STATE tells it
// all on the next one.
func (s *Session) detach() {
	if s.link != nil {
		s.lostAt = s.now
	}
	s.link = nil
	for _, l := range []*list{&s.fresh, &s.bulk} {
		for l.head != nil {
			l.pop().flags &^= flagQueued
		}
	}
	for !s.credits.empty() {
		s.credits.pop().flags &^= flagCredit
	}
	for _, st := range s.owed {
		st.flags &^= flagOwed
	}
	s.linkState = linkState{}
	s.rx = decoder{}
}

// fillState adds what opens a link: after the resets, STATE for each stream that
// the peer may know, and END.
func (s *Session) fillState(b []byte) []byte {
	if s.sentEnd || !s.resets.empty() {
		return b
	}
	for ; s.told < len(s.order); s.told++ {
		if len(b)+creditSize > batchSize {
			return b
		}
		st := s.order[s.told]
		if st.s == nil || st.flags&flagEmitted == 0 {
			continue // it was reset meanwhile, and RESET goes before END; or the peer cannot know it
		}
		b = st.tell(b, frameState)
	}
	if len(b)+headerSize+4 > batchSize {
		return b
	}
	s.sentEnd = true
	b = appendEnd(b, s.highest)
	s.linkReady()
	return b
}

// receiveState takes what the peer has of a stream. One that is over here is
// ignored: the peer finds out by itself, from the END.
func (s *Session) receiveState(id uint32, received, limit uint64) error {
	if s.gotEnd {
		return fmt.Errorf("stream %d: STATE after END: %w", id, ErrProtocol)
	}
	st := s.lookup(id)
	if st == nil {
		return nil
	}
	if st.flags&flagListed != 0 || st.flags&flagEmitted == 0 {
		return fmt.Errorf("stream %d: STATE twice, or before its OPEN: %w", id, ErrProtocol)
	}
	if received < st.acked || !s.acknowledge(st, received) {
		return fmt.Errorf("stream %d: %d received, %d to %d possible: %w", id, received, st.acked, st.next, ErrProtocol)
	}
	st.confirm()
	st.flags |= flagListed
	st.limit = max(st.limit, limit)
	s.rewind(st)
	return nil
}

// rewind has everything that is not acknowledged sent again.
func (s *Session) rewind(st *Stream) {
	s.unacked -= int(st.next - st.acked)
	st.next = st.acked
	st.cur = nil
	if st.next < st.end {
		st.cur = st.out.head
	}
	if st.Pending() > s.highMark() {
		st.flags |= flagHigh
	}
}

// receiveEnd ends the peer's STATEs. highest is the last stream of ours that it
// has seen.
func (s *Session) receiveEnd(highest uint32) error {
	if s.gotEnd {
		return fmt.Errorf("END twice: %w", ErrProtocol)
	}
	s.gotEnd = true
	for _, st := range s.order {
		switch {
		case st.s == nil:
		case st.flags&flagListed != 0:
			s.finish(st)
		case st.flags&flagLocal != 0 && st.flags&flagConfirmed == 0 && after(st.id, highest):
			s.rewind(st) // the OPEN was lost, or was never sent
			st.flags &^= flagEmitted
			s.opens.push(st)
		case st.flags&flagFin != 0 && st.next == st.end+1 && st.flags&flagPeerFin != 0:
			// The peer could end it because both directions were finished; only
			// its last acknowledgement was lost.
			s.acknowledge(st, st.next)
			st.pump()
		default:
			s.end(st, &StreamError{Code: CodeUnknownStream})
		}
	}
	slices.SortFunc(s.opens.items, func(a, b *Stream) int {
		return cmp.Compare(int32(a.id-highest), int32(b.id-highest))
	})
	s.linkReady()
	return nil
}

// linkReady lets the streams use the link once END has crossed both ways.
func (s *Session) linkReady() {
	if !s.ready() {
		return
	}
	s.ping()
	for _, st := range s.order {
		if st.s != nil {
			s.schedule(st)
			s.credit(st)
		}
	}
	s.order = nil
	s.wake()
}
