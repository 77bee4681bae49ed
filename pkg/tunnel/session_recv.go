package tunnel

import (
	"encoding/binary"
	"fmt"
	"time"
)

// A decoder takes the bytes of a channel in any fragments.
type decoder struct {
	err error  // what was broken on it; it gets no further
	buf []byte // for a frame that comes in pieces, but for DATA's payload, and DGRAM's
	n   int    // bytes in it

	skip int // bytes of an unknown frame to come

	left int     // bytes of a DATA frame to come
	st   *Stream // that they belong to; nil if they are late
	off  uint64  // their offset
	fin  bool

	lane   bool   // a lane: only DATA of one stream
	laneID uint32 // that stream, or 0 before the first frame

	dgramLeft int    // bytes of a DGRAM to come
	dgramID   uint32 // whose it is
	dgram     []byte // what has come of it; nil while idle
}

// Receive takes bytes of l as they come. b is lent and may be modified. An error
// is a violation of the protocol: the owner closes the link.
func (s *Session) Receive(l Link, b []byte, now time.Time) error {
	s.enter(now)
	c := s.carrier(l)
	if c == nil {
		return nil
	}
	return s.take(c, &c.rx, b)
}

// A LaneReceiver takes what comes on a lane that the peer has opened.
type LaneReceiver struct {
	c   *carrier // nil: the link was not attached
	rx  decoder
	buf [dataHeaderSize]byte // of rx
}

// NewLaneReceiver returns a receiver for a lane that the peer has opened on l.
func (s *Session) NewLaneReceiver(l Link) *LaneReceiver {
	r := &LaneReceiver{c: s.carrier(l)}
	r.rx.lane, r.rx.buf = true, r.buf[:]
	return r
}

// ReceiveLane takes bytes of a lane as they come. b is lent and may be modified. An
// error is a violation of the protocol: the owner closes the link.
func (s *Session) ReceiveLane(r *LaneReceiver, b []byte, now time.Time) error {
	s.enter(now)
	if r.c == nil {
		return nil
	}
	return s.take(r.c, &r.rx, b)
}

// ReceiveDatagram takes a datagram of stream id that came on l outside of its order. b
// is lent and may be modified.
func (s *Session) ReceiveDatagram(l Link, id uint32, b []byte, now time.Time) {
	s.enter(now)
	if c := s.carrier(l); c != nil {
		s.begin(c, len(b))
		s.receiveDatagram(id, b)
		s.done()
	}
}

// take takes bytes of c, on the channel that rx is for.
func (s *Session) take(c *carrier, rx *decoder, b []byte) error {
	if c.gone {
		return nil
	}
	s.begin(c, len(b))
	for len(b) > 0 && !c.gone && rx.err == nil {
		var n int
		n, rx.err = s.receive(c, rx, b)
		b = b[n:]
	}
	s.done()
	if c.gone {
		return nil
	}
	return rx.err
}

func (s *Session) begin(c *carrier, n int) {
	if s.busy {
		panic("BUG: Receive inside a callback")
	}
	s.busy = true
	c.rcvd += uint64(n)
	s.hear(c)
}

func (s *Session) done() {
	s.runEvents()
	s.busy = false
	s.wakeIfDraining()
}

// receive takes one frame, or a part of one, and returns its length.
func (s *Session) receive(c *carrier, rx *decoder, b []byte) (int, error) {
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
	case rx.dgramLeft > 0:
		if rx.dgram == nil {
			rx.dgram = make([]byte, 0, rx.dgramLeft)
		}
		n := min(rx.dgramLeft, len(b))
		rx.dgramLeft -= n
		rx.dgram = append(rx.dgram, b[:n]...)
		if rx.dgramLeft == 0 {
			s.receiveDatagram(rx.dgramID, rx.dgram)
			rx.dgram = rx.dgram[:0]
		}
		return n, nil
	case rx.skip > 0:
		n := min(rx.skip, len(b))
		rx.skip -= n
		return n, nil
	case rx.n == 0 && len(b) >= headerSize:
		need, err := rx.needs(b)
		if err != nil || len(b) >= need {
			if err == nil {
				err = s.receiveFrame(c, rx, b[:need])
			}
			if err == nil && len(b) >= need+rx.dgramLeft && rx.dgramLeft > 0 { // whole: no copy
				n := rx.dgramLeft
				rx.dgramLeft = 0
				s.receiveDatagram(rx.dgramID, b[need:need+n])
				need += n
			}
			return need, err
		}
	}
	// The frame came in pieces: gather the fixed part of it.
	need := headerSize
	if rx.n >= headerSize {
		need, _ = rx.needs(rx.buf)
	}
	n := copy(rx.buf[rx.n:need], b)
	rx.n += n
	if rx.n < need {
		return n, nil
	}
	more, err := rx.needs(rx.buf)
	if err != nil || rx.n < more {
		return n, err
	}
	rx.n = 0
	return n, s.receiveFrame(c, rx, rx.buf[:need])
}

// needs returns how much of the frame that begins with b must be together: all of it,
// but for the data of DATA, and the payload of DGRAM and of an unknown type.
func (rx *decoder) needs(b []byte) (int, error) {
	typ, size := frameType(b[0])&typeMask, int(binary.BigEndian.Uint32(b[4:8])&0xffffff)
	least, most, known := payloadBounds(typ)
	switch {
	case size < least || size > most:
		return 0, fmt.Errorf("frame type %d: %d bytes of payload: %w", typ, size, ErrProtocol)
	case typ == frameData:
		return dataHeaderSize, nil
	case rx.lane:
		return 0, fmt.Errorf("frame type %d on a lane: %w", typ, ErrProtocol)
	case !known, typ == frameDatagram:
		return headerSize, nil
	}
	return headerSize + size, nil
}

// receiveFrame takes what needs asked for.
func (s *Session) receiveFrame(c *carrier, rx *decoder, b []byte) error {
	typ, id, size := frameType(b[0]), binary.BigEndian.Uint32(b[1:5]), int(binary.BigEndian.Uint32(b[4:8])&0xffffff)
	p := b[headerSize:]
	switch typ & typeMask {
	case frameData:
		return s.receiveDataHeader(c, rx, id, binary.BigEndian.Uint64(p), size-8, typ&flagFIN != 0)
	case frameOpen:
		return s.receiveOpen(c, id, p)
	case frameCredit:
		return s.receiveCredit(id, binary.BigEndian.Uint64(p), binary.BigEndian.Uint64(p[8:]))
	case frameReset:
		return s.receiveReset(c, id, Code(binary.BigEndian.Uint16(p)))
	case frameResetAck:
		delete(s.tombs, id)
	case framePing:
		c.pong, c.wantPong = binary.BigEndian.Uint64(p), true
		s.wake()
	case framePong:
		s.receivePong(c, binary.BigEndian.Uint64(p))
	case frameRole:
		return s.receiveRole(c, p[0])
	case frameEnd:
		if c.gotEnd {
			return fmt.Errorf("END twice: %w", ErrProtocol)
		}
		c.gotEnd = true
		s.started(c)
	case frameGoAway:
		if !s.peerGoaway { // it may come again
			s.peerGoaway = true
			if s.cfg.OnGoAway != nil {
				s.events = append(s.events, event{call: s.cfg.OnGoAway})
			}
			s.wake()
		}
	case frameDatagram:
		rx.dgramID, rx.dgramLeft = id, size
		switch {
		case size == 0:
			s.receiveDatagram(id, nil)
		case cap(rx.dgram) < size:
			rx.dgram = nil
		}
	default:
		rx.skip = size
	}
	return nil
}

// find returns the open stream id, nil if it is over, or an error if it never was.
func (s *Session) find(id uint32) (*Stream, error) {
	st := s.lookup(id)
	switch {
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

// early returns an error if c is not ready for frames of streams.
func early(c *carrier, id uint32) error {
	if !c.ready() {
		return fmt.Errorf("stream %d: frame before END: %w", id, ErrProtocol)
	}
	return nil
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

func (s *Session) receiveDataHeader(c *carrier, rx *decoder, id uint32, off uint64, size int, fin bool) error {
	switch {
	case !rx.lane: // the END before it may come later than what is on a lane
		if err := early(c, id); err != nil {
			return err
		}
	case rx.laneID == 0:
		rx.laneID = id
	case rx.laneID != id:
		return fmt.Errorf("stream %d: data on a lane of stream %d: %w", id, rx.laneID, ErrProtocol)
	}
	st, err := s.find(id)
	if err != nil {
		return err
	}
	rx.st, rx.off, rx.left, rx.fin = st, off, size, fin
	switch {
	case st == nil:
		if fin {
			size++
		}
		return s.receiveLate(c, id, off+uint64(size))
	case size == 0 && fin:
		return s.receiveData(st, off, nil, true)
	}
	return nil
}

// receiveLate answers data up to an offset of a stream that has ended here. If it was not
// reset, all of it was received, and the acknowledgement was lost: its peer may wait.
func (s *Session) receiveLate(c *carrier, id uint32, received uint64) error {
	if _, tomb := s.tombs[id]; tomb {
		return nil
	}
	if last := len(c.acks.items) - 1; last >= 0 && !c.acks.empty() && c.acks.items[last].id == id {
		c.acks.items[last].received = max(c.acks.items[last].received, received)
		return nil
	}
	if c.acks.len() > s.cfg.MaxStreams+maxAnswers {
		return fmt.Errorf("stream %d: too much for streams that have ended: %w", id, ErrProtocol)
	}
	c.acks.push(ack{id, received})
	s.wake()
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
	if st.kept == 0 {
		st.moved()
	}
	st.kept += uint32(len(b))
	for len(b) > 0 {
		room := st.in.room()
		if room == 0 {
			c := s.pool.get(len(b), st.in.head == nil)
			if s.pool.used > s.cfg.Budget {
				s.relieveNow()
			}
			if st.s == nil || s.pool.used > s.cfg.Budget && (st.kept > quantum || s.pool.used > 2*s.cfg.Budget) {
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

func (s *Session) receiveOpen(c *carrier, id uint32, header []byte) error {
	if err := early(c, id); err != nil {
		return err
	}
	switch {
	case id == 0 || s.local(id):
		return fmt.Errorf("stream %d: opened by the wrong side: %w", id, ErrProtocol)
	case !after(id, s.highest): // it comes again on each new control path
		return nil
	case s.taken(id):
		return fmt.Errorf("stream %d: opened while it is in use: %w", id, ErrProtocol)
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
		return fmt.Errorf("stream %d: %d acknowledged, %d sent: %w", id, received, st.sent, ErrProtocol)
	}
	if limit > st.limit {
		st.limit = limit
		st.moved()
	}
	s.schedule(st)
	if s.waiting() {
		s.wake() // for the budget
	}
	s.finish(st)
	return nil
}

// waiting reports whether streams wait for their turn.
func (s *Session) waiting() bool {
	for _, c := range s.carriers {
		if c.fresh.head != nil || c.bulk.head != nil || c.laned.head != nil {
			return true
		}
	}
	return false
}

// receiveReset ends a stream. If it was never seen its OPEN was lost, and may be late:
// it is not to be taken any more.
func (s *Session) receiveReset(c *carrier, id uint32, code Code) error {
	if c.resetAcks.len() > s.cfg.MaxStreams+maxAnswers {
		return fmt.Errorf("stream %d: too many resets: %w", id, ErrProtocol)
	}
	c.resetAcks.push(id)
	if id != 0 && !s.local(id) && after(id, s.highest) {
		s.highest = id
	}
	if st := s.lookup(id); st != nil {
		s.end(st, &StreamError{Code: code, Remote: true})
	}
	s.wake()
	return nil
}

func (s *Session) receivePong(c *carrier, id uint64) {
	if !c.pingSent || id != c.pingID {
		return
	}
	c.pingSent = false
	sample := max(s.now-c.pingAt, 1)
	if c.rtt == 0 {
		c.rtt = sample
	} else {
		c.rtt += (sample - c.rtt) / 4
	}
	if c == s.control {
		s.rtt = c.rtt
	}
}
