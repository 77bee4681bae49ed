package tunnel

import (
	"encoding/binary"
	"time"
)

// Flush makes the callbacks that are due and sends what there is to send, in
// batches, while the links take them.
func (s *Session) Flush(now time.Time) {
	s.enter(now)
	if s.busy {
		return // a callback called it: the outer call goes on anyway
	}
	s.busy, s.woken = true, true
	if s.short() {
		s.relieve(0)
	}
	for {
		s.runEvents()
		sent := false
		for _, c := range s.carriers {
			sent = s.flushLink(c) || sent
			if c.laned.head != nil {
				sent = s.flushLane(c) || sent
			}
		}
		if sent || len(s.events) > 0 {
			continue
		}
		s.closeDrained()
		if !s.drained() {
			break
		}
		s.Close(nil)
	}
	s.busy, s.woken = false, false
}

// flushLink sends one batch on c's own channel, if there is something to send and room.
func (s *Session) flushLink(c *carrier) bool {
	room := c.link.Room()
	if room <= 0 {
		return false
	}
	b := s.fill(c, room)
	if len(b) == Headroom {
		return false
	}
	s.used = true
	c.sent += uint64(len(b) - Headroom)
	c.link.Send(b)
	return true
}

// flushLane sends one batch on the lane of c whose turn it is, if there is one.
func (s *Session) flushLane(c *carrier) bool {
	for c.laned.head != nil && s.unacked < s.cfg.Budget/2 {
		st := c.laned.pop()
		st.flags &^= flagQueued
		if st.s == nil {
			continue
		}
		p := st.path
		if !st.sendable() || s.leaves(st, p) {
			s.leave(st)
			continue
		}
		room := p.lane.Room()
		if room <= 0 {
			if s.full == nil {
				s.full = make(map[Lane]*path)
			}
			s.full[p.lane] = p
			p.full = true
			continue
		}
		if st.deficit <= 0 {
			st.deficit += quantum
		}
		b, most := s.newBatch(room)
		for space(b, most) > 0 && st.sendable() && s.unacked < s.cfg.Budget/2 {
			b = s.appendData(b, st, space(b, most))
		}
		p.idle = false
		s.schedule(st)
		s.used = true
		c.sent += uint64(len(b) - Headroom)
		p.lane.Send(b)
		return true
	}
	return false
}

// Drained tells that l takes batches again.
func (s *Session) Drained(l Link, now time.Time) {
	if s.carrier(l) != nil {
		s.Flush(now)
	}
}

// LaneDrained tells that a lane takes batches again.
func (s *Session) LaneDrained(lane Lane, now time.Time) {
	if p := s.full[lane]; p != nil {
		delete(s.full, lane)
		p.full = false
		s.woken = s.woken || !s.busy // Flush comes
		s.schedule(p.st)
		s.Flush(now)
	}
}

// sendable reports whether st has something that may be sent.
func (st *Stream) sendable() bool {
	if st.next < st.end {
		return st.next < st.limit
	}
	return st.next == st.end && st.flags&flagFin != 0
}

// schedule has st sent if it has something to send and is not waiting for its OPEN.
func (s *Session) schedule(st *Stream) {
	if st.flags&(flagQueued|flagEmitted|flagOpening) != flagEmitted || s.control == nil || !st.sendable() {
		return
	}
	if st.flags&flagBound == 0 {
		s.bind(st, s.choose(st))
	}
	c := st.path.c
	switch {
	case st.path.full:
		return
	case st.path.lane != nil:
		c.laned.push(st)
	case st.deficit > 0:
		c.fresh.push(st)
	default:
		c.bulk.push(st)
	}
	st.flags |= flagQueued
	s.wake()
}

// pick returns the stream whose turn it is on c's own channel, or nil: first those that
// have not used up their quantum, then the others in turn, each with a new quantum
// (deficit round robin with the lists of RFC 8290 section 4.2). A stream keeps what is
// left of its quantum while it is silent, so that many small frames cannot starve bulk.
func (s *Session) pick(c *carrier) *Stream {
	for {
		l := &c.fresh
		if l.head == nil {
			l = &c.bulk
		}
		st := l.head
		switch {
		case st == nil:
			return nil
		case st.s == nil:
			l.pop().flags &^= flagQueued
		case !st.sendable() || s.leaves(st, &c.own):
			l.pop().flags &^= flagQueued
			s.leave(st)
		case st.deficit > 0:
			return st
		case l == &c.bulk:
			st.deficit += quantum
			fallthrough
		default:
			c.bulk.push(l.pop())
		}
	}
}

// newBatch returns an empty batch, and how long it may become in a link's room.
func (s *Session) newBatch(room int) (b []byte, most int) {
	if s.batch == nil {
		s.batch = make([]byte, batchSize)
	}
	return s.batch[:Headroom], Headroom + min(room, batchSize-Headroom)
}

// fits reports whether n bytes more fit into b: the first frame does always.
func fits(b []byte, n, most int) bool { return len(b)+n <= most || len(b) == Headroom }

// fill makes the next batch of c's own channel: datagrams, of which there are few while
// others wait, control frames, and data. It returns the headroom alone if there is
// nothing to send.
func (s *Session) fill(c *carrier, room int) []byte {
	b, most := s.newBatch(room)
	if c == s.control {
		b = s.fillDatagrams(c, b, most)
	}
	if c.wantPong && fits(b, headerSize+8, most) {
		c.wantPong = false
		b = appendUint64(b, framePong, c.pong)
	}
	if c.wantPing && fits(b, headerSize+8, most) {
		c.wantPing, c.pingSent = false, true
		c.pingID++
		c.pingAt = s.now
		b = appendUint64(b, framePing, c.pingID)
	}
	if (c.tellRole || c.echo && c.streams == 0) && fits(b, headerSize+1, most) {
		c.tellRole, c.echo = false, false
		b = appendRole(b, c.role)
	}
	for !c.resetAcks.empty() && fits(b, headerSize, most) {
		b = appendEmpty(b, frameResetAck, c.resetAcks.pop())
	}
	for !c.acks.empty() && fits(b, creditSize, most) {
		a := c.acks.pop()
		b = appendCredit(b, a.id, a.received, a.received)
	}
	b = s.fillStart(c, b, most)
	if c == s.control {
		b = s.fillControl(c, b, most)
	}
	return s.fillData(c, b, most)
}

// fillControl adds the frames of the control path.
func (s *Session) fillControl(c *carrier, b []byte, most int) []byte {
	for !s.opens.empty() {
		if !fits(b, maxSmall, most) {
			return b
		}
		st := s.opens.pop()
		st.flags &^= flagOpening
		if st.s == nil {
			continue
		}
		if st.flags&flagConfirmed == 0 {
			n := len(b)
			b = b[:n+headerSize]
			putHeader(b[n:], frameOpen, st.id, len(st.header))
			b = append(b, st.header...)
			st.flags |= flagEmitted
		}
		s.credit(st)
		s.schedule(st)
	}
	for !s.resets.empty() && fits(b, headerSize+2, most) {
		id := s.resets.pop()
		if code, ok := s.tombs[id]; ok {
			b = appendReset(b, id, code)
		}
	}
	if s.goaway && !s.sentGoaway && fits(b, headerSize, most) {
		s.sentGoaway = true
		b = appendEmpty(b, frameGoAway, 0)
	}
	for !s.credits.empty() && fits(b, creditSize, most) {
		st := s.credits.pop()
		st.flags &^= flagCredit
		if st.s != nil || st.flags&flagPeerFin != 0 { // or else it was reset
			b = st.tell(b, c)
		}
	}
	return b
}

// tell adds a CREDIT: what st has received and what it allows.
func (st *Stream) tell(b []byte, c *carrier) []byte {
	st.flags &^= flagUntold
	st.toldOn = c.serial
	st.sentRecvd = st.recvd
	st.sentLimit = max(st.sentLimit, st.consumed+uint64(st.window))
	return appendCredit(b, st.id, st.sentRecvd, st.sentLimit)
}

// minRoom is the least data worth a frame at the end of a batch.
const minRoom = 256

// space returns how much data one more frame of b may have, or 0.
func space(b []byte, most int) int {
	room := most - len(b) - dataHeaderSize
	switch {
	case room >= minRoom:
		return room
	case len(b) == Headroom:
		return minRoom
	}
	return 0
}

func (s *Session) fillData(c *carrier, b []byte, most int) []byte {
	for s.unacked < s.cfg.Budget/2 {
		room := space(b, most)
		if room == 0 {
			break
		}
		st := s.pick(c)
		if st == nil {
			break
		}
		b = s.appendData(b, st, room)
	}
	return b
}

// appendData adds a DATA frame with up to room bytes of st, which is sendable.
func (s *Session) appendData(b []byte, st *Stream, room int) []byte {
	n := 0
	if st.next < st.end {
		n = int(min(st.end-st.next, st.limit-st.next, maxData, uint64(room)))
	}
	typ, size := frameData, n
	if st.flags&flagFin != 0 && st.next+uint64(n) == st.end {
		typ |= flagFIN
		size++
	}
	at := len(b)
	b = b[:at+dataHeaderSize+n]
	putHeader(b[at:], typ, st.id, 8+n)
	binary.BigEndian.PutUint64(b[at+headerSize:], st.next)
	st.take(b[at+dataHeaderSize:])
	st.next += uint64(size - n)
	st.sent = max(st.sent, st.next)
	st.deficit -= int32(n + dataHeaderSize)
	s.unacked += size
	s.stats.Sent += uint64(n)
	if st.drainDue() {
		s.queuePump(st)
	}
	return b
}

// take copies the bytes at next into b and moves next behind them.
func (st *Stream) take(b []byte) {
	for len(b) > 0 {
		c := st.cur
		n := copy(b, c.b[st.next-c.off:])
		b = b[n:]
		st.next += uint64(n)
		if st.next == st.end {
			st.cur = nil
		} else if st.next == c.off+uint64(len(c.b)) {
			st.cur = c.next
		}
	}
}

// acknowledge drops what the peer has received. It reports whether that is possible.
// After a rewind the peer may have more than was sent again.
func (s *Session) acknowledge(st *Stream, received uint64) bool {
	if received > st.sent {
		return false
	}
	if received <= st.acked {
		return true
	}
	s.unacked -= int(min(received, st.next) - st.acked)
	st.acked = received
	for c := st.out.head; c != nil && c.off+uint64(len(c.b)) <= received; c = st.out.head {
		s.pool.put(st.out.pop())
	}
	if received > st.next {
		st.next, st.cur = received, nil
		if st.next < st.end {
			st.cur = st.out.head
		}
		if st.drainDue() {
			s.queuePump(st)
		}
	}
	if st.flags&flagBound != 0 {
		s.hear(st.path.c)
	}
	if st.next == st.acked && st.flags&flagQueued == 0 {
		s.unbind(st)
	}
	return true
}

// credit sees to it that the peer learns what st has received and consumed: now if
// that keeps the peer sending, or else soon.
func (s *Session) credit(st *Stream) {
	if st.flags&flagCredit != 0 || st.flags&flagEmitted == 0 {
		return
	}
	s.grow(st)
	window := uint64(st.window)
	limit := st.consumed + window
	if st.flags&flagPeerFin != 0 {
		limit = st.sentLimit // nothing more to come
	}
	switch {
	case limit >= st.sentLimit+window/4, st.recvd >= st.sentRecvd+min(window/2, maxAckLag):
		s.pushCredit(st)
	case st.flags&flagOwed == 0 && (limit > st.sentLimit || st.recvd > st.sentRecvd || st.flags&flagUntold != 0):
		s.owe(st)
	}
}

// pushCredit has a CREDIT sent now.
func (s *Session) pushCredit(st *Stream) {
	if st.flags&flagCredit == 0 {
		st.flags |= flagCredit
		s.credits.push(st)
		s.wake()
	}
}

// owe has a CREDIT sent within lazyAck, unless one goes before.
func (s *Session) owe(st *Stream) {
	st.flags |= flagOwed
	s.owed = append(s.owed, st)
	if s.owedAt == 0 {
		s.owedAt = s.now + lazyAck
		s.wake() // Next has moved
	}
}

func (s *Session) payOwed() {
	s.owedAt = 0
	for i, st := range s.owed {
		s.owed[i] = nil
		st.flags &^= flagOwed
		if st.recvd > st.sentRecvd || st.s != nil && (st.flags&flagUntold != 0 || st.consumed+uint64(st.window) > st.sentLimit) {
			s.pushCredit(st)
		}
	}
	s.owed = s.owed[:0]
	s.wakeIfDraining()
}

// grow doubles the window of a stream that consumed a quarter of it within two
// round trips.
func (s *Session) grow(st *Stream) {
	if st.window >= uint32(s.cfg.MaxWindow) || st.flags&flagPaused != 0 {
		return
	}
	if uint32(st.consumed)-st.growOff < st.window/4 {
		return
	}
	elapsed := time.Duration(s.ms()-st.growAt) * time.Millisecond
	st.growAt, st.growOff = s.ms(), uint32(st.consumed)
	rtt := defaultRTT
	if s.rtt != 0 {
		rtt = max(s.rtt, minRTT)
	}
	more := min(int(st.window), s.cfg.MaxWindow-int(st.window))
	if elapsed < 2*rtt && s.mayGrow(st, more) {
		st.window += uint32(more)
		s.grown += more
		if st.account != nil {
			st.account.grown += more
		}
	}
}
