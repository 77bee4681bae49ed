package tunnel

import (
	"encoding/binary"
	"time"
)

// Flush makes the callbacks that are due and sends what there is to send, in
// batches, while the link takes them.
func (s *Session) Flush(now time.Time) {
	s.enter(now)
	if s.busy {
		return // a callback called it: the outer call goes on anyway
	}
	s.busy, s.woken = true, true
	for {
		s.runEvents()
		if s.link == nil || s.link.Room() <= 0 {
			break
		}
		b := s.fill()
		if len(b) > Headroom {
			s.used = true
			s.link.Send(b)
		} else if len(s.events) == 0 {
			if s.drained() {
				s.Close(nil)
				continue // to its events
			}
			break
		}
	}
	s.busy, s.woken = false, false
}

// Drained tells that l takes batches again.
func (s *Session) Drained(l Link, now time.Time) {
	if l == s.link {
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

// schedule puts st into the scheduler if it has something to send.
func (s *Session) schedule(st *Stream) {
	if st.flags&(flagQueued|flagEmitted) != flagEmitted || !s.ready() || !st.sendable() {
		return
	}
	st.flags |= flagQueued
	if st.deficit > 0 {
		s.fresh.push(st)
	} else {
		s.bulk.push(st)
	}
	s.wake()
}

// pick returns the stream whose turn it is, or nil: first those that have not used
// up their quantum, then the others in turn, each with a new quantum (deficit round
// robin with the lists of RFC 8290 section 4.2). A stream keeps what is left of its
// quantum while it is silent, so that many small frames cannot starve bulk.
func (s *Session) pick() *Stream {
	for s.fresh.head != nil {
		st := s.fresh.head
		switch {
		case st.s == nil || !st.sendable():
			s.fresh.pop().flags &^= flagQueued
		case st.deficit <= 0:
			s.bulk.push(s.fresh.pop())
		default:
			return st
		}
	}
	for s.bulk.head != nil {
		st := s.bulk.head
		switch {
		case st.s == nil || !st.sendable():
			s.bulk.pop().flags &^= flagQueued
		case st.deficit <= 0:
			st.deficit += quantum
			s.bulk.push(s.bulk.pop())
		default:
			return st
		}
	}
	return nil
}

// fill makes the next batch: control frames first, then data. It returns the
// headroom alone if there is nothing to send.
func (s *Session) fill() []byte {
	if s.batch == nil {
		s.batch = make([]byte, batchSize)
	}
	b := s.batch[:Headroom]
	room := func(n int) bool { return len(b)+n <= batchSize }

	if s.wantPong {
		s.wantPong = false
		b = appendUint64(b, framePong, s.pong)
	}
	if s.wantPing {
		s.wantPing, s.pingSent = false, true
		s.pingID++
		s.pingAt = s.now
		b = appendUint64(b, framePing, s.pingID)
	}
	for !s.resetAcks.empty() && room(headerSize) {
		b = appendEmpty(b, frameResetAck, s.resetAcks.pop())
	}
	for !s.resets.empty() && room(headerSize+2) {
		id := s.resets.pop()
		if code, ok := s.tombs[id]; ok {
			b = appendReset(b, id, code)
		}
	}
	if !s.ready() {
		return s.fillState(b)
	}
	if s.goaway && !s.sentGoaway && room(headerSize) {
		s.sentGoaway = true
		b = appendEmpty(b, frameGoAway, 0)
	}
	for !s.opens.empty() && room(maxSmall) {
		st := s.opens.pop()
		if st.s == nil {
			continue
		}
		n := len(b)
		b = b[:n+headerSize]
		putHeader(b[n:], frameOpen, st.id, len(st.header))
		b = append(b, st.header...)
		st.flags |= flagEmitted
		s.credit(st)
		s.schedule(st)
	}
	for !s.credits.empty() && room(creditSize) {
		st := s.credits.pop()
		st.flags &^= flagCredit
		if st.s != nil || st.flags&flagPeerFin != 0 { // or else it was reset
			b = st.tell(b, frameCredit)
		}
	}
	return s.fillData(b)
}

// tell adds what st has received and what it allows.
func (st *Stream) tell(b []byte, typ frameType) []byte {
	st.flags &^= flagUntold
	st.sentRecvd = st.recvd
	st.sentLimit = max(st.sentLimit, st.consumed+uint64(st.window))
	return appendOffsets(b, typ, st.id, st.sentRecvd, st.sentLimit)
}

// minRoom is the least data worth a frame at the end of a batch.
const minRoom = 256

func (s *Session) fillData(b []byte) []byte {
	for s.unacked < s.cfg.Budget/2 {
		room := batchSize - len(b) - dataHeaderSize
		if room < minRoom {
			break
		}
		st := s.pick()
		if st == nil {
			break
		}
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
		st.deficit -= int32(n + dataHeaderSize)
		s.unacked += size
		s.stats.Sent += uint64(n)
		if st.flags&flagHigh != 0 && st.Pending() <= s.highMark()/4 {
			s.queuePump(st)
		}
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
func (s *Session) acknowledge(st *Stream, received uint64) bool {
	if received > st.next {
		return false
	}
	if received <= st.acked {
		return true
	}
	s.unacked -= int(received - st.acked)
	st.acked = received
	for c := st.out.head; c != nil && c.off+uint64(len(c.b)) <= received; c = st.out.head {
		s.pool.put(st.out.pop())
	}
	return true
}

// credit sees to it that the peer learns what st has received and consumed: now if
// that keeps the peer sending, or else soon.
func (s *Session) credit(st *Stream) {
	if st.flags&flagCredit != 0 || !s.ready() || st.flags&flagEmitted == 0 {
		return // STATE will tell
	}
	s.grow(st)
	window := uint64(st.window)
	limit := st.consumed + window
	if st.flags&flagPeerFin != 0 {
		limit = st.sentLimit // nothing more to come
	}
	switch {
	case limit >= st.sentLimit+window/4, st.recvd >= st.sentRecvd+min(window/2, maxAckLag):
		st.flags |= flagCredit
		s.credits.push(st)
		s.wake()
	case st.flags&flagOwed == 0 && (limit > st.sentLimit || st.recvd > st.sentRecvd || st.flags&flagUntold != 0):
		s.owe(st)
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
		owes := st.recvd > st.sentRecvd || st.s != nil && (st.flags&flagUntold != 0 || st.consumed+uint64(st.window) > st.sentLimit)
		if owes && st.flags&flagCredit == 0 {
			st.flags |= flagCredit
			s.credits.push(st)
			s.wake()
		}
	}
	s.owed = s.owed[:0]
	s.wakeIfDraining()
}

// grow doubles the window of a stream that consumed a quarter of it within two
// round trips, while the grown windows take less than half of the budget.
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
	if elapsed < 2*rtt && s.grown+more <= s.cfg.Budget/2 {
		st.window += uint32(more)
		s.grown += more
	}
}
