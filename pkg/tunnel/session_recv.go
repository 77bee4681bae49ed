package tunnel

import (
	"encoding/binary"
	"fmt"
	"time"
)

// A decoder takes a link's bytes in any fragments.
type decoder struct {
	err error // what the link broke; it gets no further
	buf [maxSmall]byte
	n   int // bytes of an incomplete frame in buf; never those of DATA's payload

	skip int // bytes of an unknown frame to come

	left int     // bytes of a DATA frame to come
	st   *Stream // that they belong to; nil if they are late
	off  uint64  // their offset
	fin  bool
}

// Receive takes bytes of l as they come. b is lent and may be modified. An error
// is a violation of the protocol: the owner closes the link.
func (s *Session) Receive(l Link, b []byte, now time.Time) error {
	s.enter(now)
	if l != s.link || l == nil {
		return nil
	}
	if s.busy {
		panic("BUG: Receive inside a callback")
	}
	s.heard = s.now
	s.busy = true
	for len(b) > 0 && s.link == l && s.rx.err == nil {
		var n int
		n, s.rx.err = s.receive(b)
		b = b[n:]
	}
	err := s.rx.err
	s.runEvents()
	s.busy = false
	s.wakeIfDraining()
	if s.link != l {
		return nil
	}
	return err
}

// receive takes one frame, or a part of one, and returns its length.
func (s *Session) receive(b []byte) (int, error) {
	rx := &s.rx
	switch {
	case rx.left > 0:
		n := min(rx.left, len(b))
		rx.left -= n
		off := rx.off
		rx.off += uint64(n)
		if rx.st == nil || rx.st.s == nil {
			return n, nil
		}
		return n, s.receiveData(rx.st, off, b[:n], rx.fin && rx.left == 0)
	case rx.skip > 0:
		n := min(rx.skip, len(b))
		rx.skip -= n
		return n, nil
	case rx.n == 0 && len(b) >= headerSize:
		need, err := frameNeeds(b)
		if err != nil || len(b) >= need {
			if err == nil {
				err = s.receiveFrame(b[:need])
			}
			return need, err
		}
	}
	// The frame came in pieces: gather the fixed part of it.
	need := headerSize
	if rx.n >= headerSize {
		need, _ = frameNeeds(rx.buf[:])
	}
	n := copy(rx.buf[rx.n:need], b)
	rx.n += n
	if rx.n < need {
		return n, nil
	}
	more, err := frameNeeds(rx.buf[:])
	if err != nil || rx.n < more {
		return n, err
	}
	rx.n = 0
	return n, s.receiveFrame(rx.buf[:need])
}

// frameNeeds returns how much of the frame that begins with b must be together: all
// of it, but for the data of DATA and the payload of an unknown type.
func frameNeeds(b []byte) (int, error) {
	typ, size := frameType(b[0])&typeMask, int(binary.BigEndian.Uint32(b[4:8])&0xffffff)
	least, most, known := payloadBounds(typ)
	switch {
	case size < least || size > most:
		return 0, fmt.Errorf("frame type %d: %d bytes of payload: %w", typ, size, ErrProtocol)
	case typ == frameData:
		return dataHeaderSize, nil
	case !known:
		return headerSize, nil
	}
	return headerSize + size, nil
}

// receiveFrame takes what frameNeeds asked for.
func (s *Session) receiveFrame(b []byte) error {
	typ, id, size := frameType(b[0]), binary.BigEndian.Uint32(b[1:5]), int(binary.BigEndian.Uint32(b[4:8])&0xffffff)
	p := b[headerSize:]
	switch typ & typeMask {
	case frameData:
		return s.receiveDataHeader(id, binary.BigEndian.Uint64(p), size-8, typ&flagFIN != 0)
	case frameOpen:
		return s.receiveOpen(id, p)
	case frameCredit:
		return s.receiveCredit(id, binary.BigEndian.Uint64(p), binary.BigEndian.Uint64(p[8:]))
	case frameReset:
		return s.receiveReset(id, Code(binary.BigEndian.Uint16(p)))
	case frameResetAck:
		delete(s.tombs, id)
	case framePing:
		s.pong, s.wantPong = binary.BigEndian.Uint64(p), true
		s.wake()
	case framePong:
		s.receivePong(binary.BigEndian.Uint64(p))
	case frameState:
		return s.receiveState(id, binary.BigEndian.Uint64(p), binary.BigEndian.Uint64(p[8:]))
	case frameEnd:
		return s.receiveEnd(binary.BigEndian.Uint32(p))
	case frameGoAway:
		if !s.peerGoaway { // it comes again on each link
			s.peerGoaway = true
			s.events = append(s.events, event{})
			s.wake()
		}
	default:
		s.rx.skip = size
	}
	return nil
}

// find returns the open stream id, nil if it is over, or an error if it never was.
func (s *Session) find(id uint32) (*Stream, error) {
	st := s.lookup(id)
	switch {
	case !s.ready():
		return nil, fmt.Errorf("stream %d: frame before the end of the resume: %w", id, ErrProtocol)
	case st == nil && (id == 0 || after(id, s.lastSeen(id))):
		return nil, fmt.Errorf("stream %d: never opened: %w", id, ErrProtocol)
	case st == nil:
		return nil, nil
	case st.flags&flagEmitted == 0:
		return nil, fmt.Errorf("stream %d: frame before its OPEN was sent: %w", id, ErrProtocol)
	}
	st.confirm()
	return st, nil
}

// lastSeen returns the newest id of the side that opens id.
func (s *Session) lastSeen(id uint32) uint32 {
	if s.local(id) {
		return s.nextID - 1 // never given out: the other side's parity
	}
	return s.highest
}

// confirm notes that the peer has the stream: it will not be opened again.
func (st *Stream) confirm() {
	if st.flags&flagConfirmed == 0 {
		st.flags |= flagConfirmed
		st.header = ""
	}
}

func (s *Session) receiveDataHeader(id uint32, off uint64, size int, fin bool) error {
	st, err := s.find(id)
	if err != nil {
		return err
	}
	rx := &s.rx
	rx.st, rx.off, rx.left, rx.fin = st, off, size, fin
	if size == 0 && fin && st != nil {
		return s.receiveData(st, off, nil, true)
	}
	return nil
}

// receiveData takes the bytes b at off, in whatever pieces they come; fin says that
// the stream ends behind them.
func (s *Session) receiveData(st *Stream, off uint64, b []byte, fin bool) error {
	have := st.recvd
	if st.flags&flagPeerFin != 0 {
		have-- // of data
	}
	last := off + uint64(len(b))
	switch {
	case last < off || off > have:
		return fmt.Errorf("stream %d: data at %d, expected %d: %w", st.id, off, have, ErrProtocol)
	case last > st.sentLimit:
		return fmt.Errorf("stream %d: data up to %d, allowed %d: %w", st.id, last, st.sentLimit, ErrProtocol)
	case st.flags&flagPeerFin != 0 && (last > have || fin && last < have):
		return fmt.Errorf("stream %d: data behind its end at %d: %w", st.id, have, ErrProtocol)
	case st.flags&flagPeerFin != 0:
		return nil
	case fin && last < have:
		return fmt.Errorf("stream %d: ends at %d, received %d: %w", st.id, last, have, ErrProtocol)
	case last <= have:
		b = nil
	default:
		b = b[have-off:]
	}
	st.recvd += uint64(len(b))
	s.stats.Received += uint64(len(b))
	if fin {
		st.recvd++
		st.flags |= flagPeerFin
	}
	if len(b) > 0 {
		s.deliver(st, b)
	}
	if st.s == nil {
		return nil
	}
	s.credit(st)
	if fin {
		st.pump()
	}
	return nil
}

// deliver lends b to the handler if that is possible, and keeps what is not used.
func (s *Session) deliver(st *Stream, b []byte) {
	if st.flags&flagDiscard != 0 {
		st.consumed += uint64(len(b))
		return
	}
	if st.in.head != nil || !st.deliverable() {
		s.keep(st, b)
		if st.s != nil {
			st.flags |= flagFresh
			st.pump()
		}
		return
	}
	used := st.present(b)
	if st.s == nil {
		return
	}
	if st.flags&flagDiscard != 0 { // Close in OnData
		st.consumed += uint64(len(b))
		return
	}
	if used == len(b) {
		return
	}
	s.keep(st, b[used:])
	if st.s != nil {
		st.in.head.seen = true // until SetHandler, Resume, or more comes
	}
}

// keep queues a copy of b until the handler wants it.
func (s *Session) keep(st *Stream, b []byte) {
	st.kept += uint32(len(b))
	for len(b) > 0 {
		room := st.in.room()
		if room == 0 {
			c := s.pool.get(len(b), st.in.head == nil)
			if s.pool.used > s.cfg.Budget {
				s.pool.put(c)
				st.Reset(CodeMemory)
				return
			}
			st.in.push(c)
			room = cap(c.b)
		}
		c := st.in.tail
		n := min(room, len(b))
		c.b = append(c.b, b[:n]...)
		b = b[n:]
	}
}

func (s *Session) receiveOpen(id uint32, header []byte) error {
	switch {
	case !s.ready():
		return fmt.Errorf("stream %d: opened before the end of the resume: %w", id, ErrProtocol)
	case id == 0 || s.local(id) || !after(id, s.highest) || s.taken(id):
		return fmt.Errorf("stream %d: opened out of order: %w", id, ErrProtocol)
	case len(s.tombs) > s.cfg.MaxStreams+maxTombs:
		return fmt.Errorf("stream %d: too many resets without RESET_ACK: %w", id, ErrProtocol)
	}
	s.highest = id
	switch {
	case s.goaway:
		s.bury(id, CodeDraining)
		return nil
	case len(s.streams) >= s.cfg.MaxStreams:
		s.bury(id, CodeOverload)
		return nil
	case s.cfg.Accept == nil:
		s.bury(id, CodeRefused)
		return nil
	}
	st := s.newStream(id, flagEmitted|flagConfirmed|flagUntold)
	s.cfg.Accept(st, header)
	if st.s == nil {
		return nil
	}
	if st.h == nil {
		st.Reset(CodeInternal)
		return nil
	}
	s.credit(st)
	return nil
}

func (s *Session) receiveCredit(id uint32, received, limit uint64) error {
	st, err := s.find(id)
	if st == nil {
		return err
	}
	if !s.acknowledge(st, received) {
		return fmt.Errorf("stream %d: %d acknowledged, %d sent: %w", id, received, st.next, ErrProtocol)
	}
	st.limit = max(st.limit, limit)
	s.schedule(st)
	if s.fresh.head != nil || s.bulk.head != nil {
		s.wake() // it may have waited for the budget
	}
	s.finish(st)
	return nil
}

func (s *Session) receiveReset(id uint32, code Code) error {
	if s.resetAcks.len() > s.cfg.MaxStreams+maxResetAcks {
		return fmt.Errorf("stream %d: too many resets: %w", id, ErrProtocol)
	}
	s.resetAcks.push(id)
	if st := s.lookup(id); st != nil {
		s.end(st, &StreamError{Code: code, Remote: true})
	}
	s.wake()
	return nil
}

func (s *Session) receivePong(id uint64) {
	if !s.pingSent || id != s.pingID {
		return
	}
	s.pingSent = false
	sample := max(s.now-s.pingAt, 1)
	if s.rtt == 0 {
		s.rtt = sample
	} else {
		s.rtt += (sample - s.rtt) / 4
	}
}
