package tunnel

import (
	"fmt"
	"slices"
	"time"
)

// A Session is one side of a session. Everything in it is owned by the loop that
// calls its methods.
//
// It has no state of its own beside closed: it has links or not, and each of them is
// ready once the END of both sides has crossed (see carrier).
type Session struct {
	cfg   Config        // immutable
	start time.Time     // immutable; all times below count from it
	now   time.Duration // of the last call
	pool  pool          // chunks of all streams
	rtt   time.Duration // smoothed; 0 until a ping was answered
	stats Stats         // counters only
	batch []byte        // nil while idle
	used  bool          // batch was used since the last trim
	trim  time.Duration // when to trim
	woken bool          // Wake was called since the last Flush
	busy  bool          // inside Receive, Flush or runEvents: events wait for its end

	streams map[uint32]*Stream
	last    *Stream // of the last look-up
	nextID  uint32  // of Open
	highest uint32  // opened by the peer
	unacked int     // bytes sent and not acknowledged, all streams
	grown   int     // window beyond Config.Window, all streams
	events  []event // callbacks to come

	accounts  map[Owner]*account // of the streams that have one
	relieveAt time.Duration      // when Flush may look again for streams that hold memory for too long
	hopeless  time.Duration      // until when there is no use in looking for any

	tombs map[uint32]Code // streams that were reset here, until RESET_ACK

	carriers []*carrier     // the links, the oldest first
	serial   uint32         // of the last one
	control  *carrier       // the control path; nil while no link is ready
	direct   *carrier       // whose SendDatagram is used, or nil
	ready    int            // links
	choice   bool           // there is more than one path for a stream
	full     map[Lane]*path // those that wait for LaneDrained; nil until there is one
	lostAt   time.Duration  // since when there is no control path
	sweeps   time.Duration  // until when lost acknowledgements are asked for
	dgrams   datagrams      // that wait for the control path

	// Frames of the control path, in this order. OPENs go in the order of the ids,
	// and no RESET or CREDIT before an OPEN that waits.
	opens      queue[*Stream] // flagOpening
	resets     queue[uint32]  // ids in tombs
	sentGoaway bool
	credits    queue[*Stream] // CREDIT is to be sent now (flagCredit)
	owed       []*Stream      // CREDIT is to be sent soon (flagOwed)
	owedAt     time.Duration  // when the owed ones go; 0: none

	goaway     bool // GoAway was called
	peerGoaway bool // GOAWAY came
	closed     bool
	over       bool // OnClose was called
	closeErr   error
}

// An event is a callback to come: of st, which has ended if over, or call if st is nil.
type event struct {
	st   *Stream
	over bool
	err  error
	call func()
}

// New returns a session that waits for its first link.
func New(cfg Config, now time.Time) *Session {
	cfg.setDefaults()
	s := &Session{
		cfg:     cfg,
		start:   now,
		streams: make(map[uint32]*Stream),
		tombs:   make(map[uint32]Code),

		accounts: make(map[Owner]*account),

		nextID: 2,
		trim:   trimInterval,
	}
	if cfg.Client {
		s.nextID = 1
	}
	return s
}

// Room is how many more streams Open opens, and of how many. When the session keeps more bytes than
// its budget there is less and less of it, and none at twice that.
func (s *Session) Room() (free, of int) {
	of = s.cfg.MaxStreams
	free = of - len(s.streams)
	if over := s.pool.used - s.cfg.Budget; over > 0 {
		free = min(free, int(int64(of)*int64(max(0, s.cfg.Budget-over))/int64(s.cfg.Budget)))
	}
	return max(0, free), of
}

// Open opens a stream. header is copied. Without a link the stream waits for one.
// The caller sets a handler before the next Receive or Flush.
func (s *Session) Open(header []byte) (*Stream, error) {
	switch {
	case s.closed:
		return nil, ErrClosed
	case s.goaway || s.peerGoaway:
		return nil, ErrDraining
	case len(header) > MaxHeader:
		return nil, ErrHeaderTooLong
	case len(s.streams) >= s.cfg.MaxStreams, s.pool.used >= 2*s.cfg.Budget,
		len(s.tombs) > s.cfg.MaxStreams+maxTombs, s.opens.len() > s.cfg.MaxStreams+maxTombs:
		return nil, ErrTooManyStreams
	}
	for s.taken(s.nextID) { // only after two thousand million streams
		s.skipID()
	}
	st := s.newStream(s.nextID, flagLocal)
	s.skipID()
	st.header = string(header)
	if s.control != nil { // or else reopen does it
		st.flags |= flagOpening
		s.opens.push(st)
		s.wake()
	}
	return st, nil
}

func (s *Session) skipID() {
	s.nextID += 2
	if s.nextID == 0 { // 0 is the session's own
		s.nextID = 2
	}
}

func (s *Session) taken(id uint32) bool {
	_, tomb := s.tombs[id]
	return tomb || s.streams[id] != nil
}

func (s *Session) newStream(id uint32, flags streamFlags) *Stream {
	st := &Stream{
		s:         s,
		id:        id,
		flags:     flags,
		limit:     initialWindow,
		deficit:   quantum,
		window:    uint32(s.cfg.Window),
		sentLimit: initialWindow,
		growAt:    s.ms(),
		movedAt:   s.ms(),
	}
	s.streams[id] = st
	return st
}

// lookup returns an open stream, or nil.
func (s *Session) lookup(id uint32) *Stream {
	if st := s.last; st != nil && st.id == id && st.s != nil {
		return st
	}
	st := s.streams[id]
	if st != nil {
		s.last = st
	}
	return st
}

// local reports whether id is one that this side opens.
func (s *Session) local(id uint32) bool { return id&1 == 1 == s.cfg.Client }

// end takes a stream out of the session. Its OnClose follows.
func (s *Session) end(st *Stream, err error) {
	delete(s.streams, st.id)
	if s.last == st {
		s.last = nil
	}
	s.unacked -= int(st.next - st.acked)
	s.unbind(st)
	s.dropLane(st)
	s.dgrams.drop(s, st)
	s.grown -= int(st.window) - s.cfg.Window
	s.uncharge(st)
	s.pool.putAll(&st.out)
	s.pool.putAll(&st.in)
	st.cur = nil
	st.next = st.end
	st.header = ""
	st.s = nil
	s.events = append(s.events, event{st: st, over: true, err: err})
	s.wake()
}

// finish ends a stream whose two directions are finished.
func (s *Session) finish(st *Stream) {
	if st.flags&flagFin != 0 && st.acked == st.end+1 &&
		st.flags&flagPeerFin != 0 && st.flags&(flagEOF|flagDiscard) != 0 {
		s.end(st, nil)
	}
}

// bury remembers a reset until the peer acknowledges it.
func (s *Session) bury(id uint32, code Code) {
	s.tombs[id] = code
	if s.control != nil { // or else reopen does it
		s.resets.push(id)
		s.wake()
	}
}

func (s *Session) queuePump(st *Stream) {
	if st.flags&flagPump == 0 {
		st.flags |= flagPump
		s.events = append(s.events, event{st: st})
		s.wake()
	}
}

// runEvents makes the callbacks that are due, in the order of their causes.
func (s *Session) runEvents() {
	for i := 0; i < len(s.events); i++ {
		e := s.events[i]
		s.events[i] = event{}
		st := e.st
		if st == nil {
			if !s.closed {
				e.call()
			}
			continue
		}
		if e.over {
			if st.h != nil {
				st.h.OnClose(e.err)
			}
			continue
		}
		st.flags &^= flagPump
		if st.s == nil {
			continue
		}
		if st.drainDue() {
			st.flags &^= flagHigh | flagNotify
			if st.h != nil {
				st.h.OnDrain()
			}
		}
		if st.s != nil {
			st.pump()
		}
	}
	s.events = s.events[:0]
	if s.closed && !s.over {
		s.over = true
		if s.cfg.OnClose != nil {
			s.cfg.OnClose(s.closeErr)
		}
	}
}

// wake asks the owner for a Flush. Inside of one there is no need to: it goes on
// until there is nothing left.
func (s *Session) wake() {
	if s.woken || s.closed {
		return
	}
	s.woken = true
	if s.cfg.Wake != nil {
		s.cfg.Wake()
	}
}

// enter notes the time. Times before an earlier call's count as that one's.
func (s *Session) enter(now time.Time) { s.now = max(s.now, now.Sub(s.start)) }

// ms is the session's time in milliseconds. It wraps around.
func (s *Session) ms() uint32 { return uint32(s.now / time.Millisecond) }

// mark is the high mark. It shrinks as the memory budget runs out, and earlier where more would
// not make anything faster.
func (st *Stream) mark() int {
	used, budget := st.s.pool.used, st.s.cfg.Budget
	switch {
	case used >= budget, used >= budget/2 && st.blocked():
		return 0
	case used >= budget*3/4, used >= budget/8 && st.blocked():
		return quantum
	}
	return highMark
}

// GoAway ends the session in good order: neither side opens streams any more, and
// OnClose(nil) comes, on both sides, after the last one has ended.
func (s *Session) GoAway() {
	if !s.closed && !s.goaway {
		s.goaway = true
		s.wake()
	}
}

// wakeIfDraining asks for a Flush, which ends the session when there is nothing left.
func (s *Session) wakeIfDraining() {
	if (s.goaway || s.peerGoaway) && !s.closed {
		s.wake()
	}
}

// drained reports whether a GoAway is finished.
func (s *Session) drained() bool {
	if !(s.goaway && s.sentGoaway || s.peerGoaway) || s.control == nil || len(s.streams) > 0 ||
		len(s.tombs) > 0 || !s.credits.empty() || len(s.owed) > 0 {
		return false
	}
	for _, c := range s.carriers {
		if !c.resetAcks.empty() || !c.acks.empty() {
			return false
		}
	}
	return true
}

// Close ends the session now. Every stream gets OnClose with CodeSessionLost, then
// the session gets OnClose(err). The links are closed.
func (s *Session) Close(err error) {
	if s.closed {
		return
	}
	s.closed = true
	s.closeErr = err
	for _, st := range s.sorted(nil) {
		s.end(st, &StreamError{Code: CodeSessionLost})
	}
	for len(s.carriers) > 0 {
		s.drop(s.carriers[0], err)
	}
	clear(s.tombs)
	s.batch = nil
	s.pool.free = [2]chunkList{}
	if !s.busy {
		s.busy = true
		s.runEvents()
		s.busy = false
	}
}

// Closed reports whether the session is over.
func (s *Session) Closed() bool { return s.closed }

// sorted returns the open streams that is reports, nil meaning all, in the order of
// their ids.
func (s *Session) sorted(is func(*Stream) bool) []*Stream {
	var all []*Stream
	var keys []uint64 // id and index: plain numbers sort fast
	for id, st := range s.streams {
		if is == nil || is(st) {
			keys = append(keys, uint64(id)<<32|uint64(len(all)))
			all = append(all, st)
		}
	}
	slices.Sort(keys)
	sorted := make([]*Stream, len(all))
	for i, k := range keys {
		sorted[i] = all[uint32(k)]
	}
	return sorted
}

// Next returns when Advance is to be called, or the zero time if the session is over.
func (s *Session) Next() time.Time {
	if s.closed {
		return time.Time{}
	}
	at := s.trim
	if len(s.carriers) == 0 {
		at = min(at, s.lostAt+s.cfg.ResumeTimeout)
	}
	if s.owedAt != 0 {
		at = min(at, s.owedAt)
	}
	for _, c := range s.carriers {
		at = min(at, s.deadline(c))
		if c.drainAt != 0 {
			at = min(at, c.drainAt)
		}
	}
	return s.start.Add(at)
}

// Advance does what is due: pings, acknowledgements, the resume timeout. It returns
// Next. What is to be sent waits for Flush.
func (s *Session) Advance(now time.Time) (next time.Time) {
	s.enter(now)
	if s.closed {
		return time.Time{}
	}
	if s.now >= s.trim {
		s.trimBuffers()
	}
	if s.owedAt != 0 && s.now >= s.owedAt {
		s.payOwed()
	}
	for i := len(s.carriers) - 1; i >= 0; i-- { // it may be dropped
		s.watch(s.carriers[i])
	}
	if len(s.carriers) == 0 && s.now >= s.lostAt+s.cfg.ResumeTimeout {
		s.Close(fmt.Errorf("%w of %v", ErrResumeTimeout, s.cfg.ResumeTimeout))
	}
	return s.Next()
}

func (s *Session) trimBuffers() {
	s.trim = s.now + trimInterval
	s.pool.trim()
	if !s.used {
		s.batch = nil
	}
	s.used = false
	for _, c := range s.carriers {
		c.trim(s)
	}
	if s.now < s.sweeps {
		s.sweep()
	}
	if len(s.events) == 0 && cap(s.events) > 1024 && !s.busy {
		s.events = nil
	}
}

// Stats is a snapshot of a session.
type Stats struct {
	Streams  int           // open now
	Sent     uint64        // bytes of data put into frames, re-sent ones included
	Received uint64        // bytes of data that were new
	Buffered int           // memory that the streams' data takes
	Links    int           // attached so far
	Attached bool          // a link is attached
	RTT      time.Duration // of the control path, smoothed; 0 until a ping was answered
	Stalled  uint64        // streams that were ended for the memory they held

	// Datagrams. Those that a link has lost are in none of them.
	DatagramsSent, DatagramsReceived, DatagramsDropped uint64
}

// Stats returns a snapshot.
func (s *Session) Stats() Stats {
	v := s.stats
	v.Streams = len(s.streams)
	v.Buffered = s.pool.used
	v.Attached = len(s.carriers) > 0
	v.RTT = s.rtt
	return v
}

// A queue is a FIFO whose array is reused.
type queue[T any] struct {
	items []T
	head  int
}

func (q *queue[T]) push(v T)    { q.items = append(q.items, v) }
func (q *queue[T]) empty() bool { return q.head == len(q.items) }
func (q *queue[T]) len() int    { return len(q.items) - q.head }
func (q *queue[T]) peek() T     { return q.items[q.head] }

func (q *queue[T]) pop() T {
	var zero T
	v := q.items[q.head]
	q.items[q.head] = zero
	q.head++
	if q.head == len(q.items) {
		q.items, q.head = q.items[:0], 0
	} else if q.head > 1024 && q.head > len(q.items)/2 {
		n := copy(q.items, q.items[q.head:])
		clear(q.items[n:])
		q.items, q.head = q.items[:n], 0
	}
	return v
}

// A list is a FIFO of streams through Stream.link.
type list struct{ head, tail *Stream }

func (l *list) push(st *Stream) {
	st.link = nil
	if l.tail == nil {
		l.head = st
	} else {
		l.tail.link = st
	}
	l.tail = st
}

func (l *list) pop() *Stream {
	st := l.head
	l.head = st.link
	if l.head == nil {
		l.tail = nil
	}
	st.link = nil
	return st
}
