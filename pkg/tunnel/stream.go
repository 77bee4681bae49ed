package tunnel

import "errors"

// Handler receives the events of one Stream.
type Handler = interface {
	// OnData is lent b until it returns, and may modify it. What it does not
	// use is kept, and presented again with more data appended when more
	// arrives, or on Resume. A handler that is not paused and uses nothing of
	// 64 KiB has its stream reset.
	OnData(b []byte) (used int)
	// OnEOF tells that the peer finished sending, after all data. The other
	// direction stays open. Unused bytes do not delay it.
	OnEOF()
	// OnDrain tells that Pending fell to the low mark after it was above the high mark, or to what NotifySent waits for.
	OnDrain()
	// OnClose is called exactly once, last. nil is the orderly end.
	OnClose(err error)
}

type streamFlags uint32

const (
	flagLocal     streamFlags = 1 << iota // opened by this side
	flagEmitted                           // OPEN was sent on some link; set on accepted streams
	flagConfirmed                         // the peer is known to have the stream
	flagOpening                           // in the queue of OPENs
	flagPaused                            // by the handler
	flagDiscard                           // Close: input is dropped
	flagFin                               // CloseWrite: the stream ends at offset end
	flagPeerFin                           // the peer's FIN came: recvd counts it
	flagEOF                               // OnEOF was called
	flagLent                              // inside OnData: the outermost call looks again
	flagFresh                             // input has bytes that the handler has not seen
	flagPump                              // a pump event is queued
	flagHigh                              // Pending was above the high mark: OnDrain is due
	flagNotify                            // NotifySent was called: OnDrain is due when Pending is 0
	flagQueued                            // in a scheduler list
	flagBound                             // path counts it: it has something to send or in flight
	flagCredit                            // in the credit queue
	flagOwed                              // in the owed list
	flagUntold                            // no CREDIT tells the peer of the stream, or the last one may be lost
)

// A Stream is one bidirectional byte stream of a session. Its methods belong to
// the session's owner. After the stream has ended they do nothing.
//
// An idle stream is this struct and its map entry, and nothing else.
type Stream struct {
	s      *Session // nil once the stream is over
	h      Handler  // nil until SetHandler: input is kept
	id     uint32
	flags  streamFlags
	header string // of OPEN; empty once the peer is known to have it

	// Send side. acked <= next <= sent <= end+1; the FIN is the byte at end. sent is
	// the highest next there was.
	acked, next, sent, end uint64
	limit                  uint64  // the peer takes bytes below it
	out                    chunks  // bytes acked..end
	cur                    *chunk  // the one that holds next, while next < end
	path                   *path   // that the stream is bound to, or its silent lane
	link                   *Stream // next in the scheduler's list
	deficit                int32   // what is left of the quantum

	// Receive side. recvd counts the peer's FIN, consumed does not.
	account   *account // nil: nobody's
	window    uint32
	kept      uint32 // bytes in input
	growAt    uint32 // ms of session time, and low bits of consumed,
	growOff   uint32 // when growth was last looked at
	recvd     uint64
	consumed  uint64
	toldOn    uint32 // the serial of the link that the last CREDIT went on
	movedAt   uint32 // ms of session time: see moved
	sentRecvd uint64 // last CREDIT
	sentLimit uint64
	in        chunks
}

// ID returns the stream's number on the wire. It is unique among the open streams.
func (st *Stream) ID() uint32 { return st.id }

// Confirmed reports whether the peer has shown that it has the stream.
func (st *Stream) Confirmed() bool { return st.flags&flagConfirmed != 0 }

// Bytes returns how much has been received from the peer, and how much was written,
// sent or not. It stays what it is when the stream has ended.
func (st *Stream) Bytes() (received, written uint64) {
	received = st.recvd
	if st.flags&flagPeerFin != 0 {
		received--
	}
	return received, st.end
}

// SetHandler sets who receives the stream's events from now on. Kept bytes are
// presented to h at the end of the current callback, or on the next Flush, and so
// is an EOF, even if an earlier handler was told of it.
func (st *Stream) SetHandler(h Handler) {
	st.h = h
	st.flags &^= flagEOF
	st.again()
}

// Write queues a copy of b. It never blocks: a writer pauses its source when
// Pending is above HighMark, until OnDrain. After CloseWrite it does nothing.
func (st *Stream) Write(b []byte) {
	s := st.s
	if s == nil || st.flags&flagFin != 0 || len(b) == 0 {
		return
	}
	first := st.cur == nil
	if st.out.head == nil {
		st.moved()
	}
	for len(b) > 0 {
		room := st.out.room()
		if room == 0 {
			c := s.pool.get(len(b), st.out.head == nil)
			c.off = st.end
			st.out.push(c)
			room = cap(c.b)
		}
		c := st.out.tail
		n := min(room, len(b))
		c.b = append(c.b, b[:n]...)
		if first {
			st.cur, first = c, false
		}
		st.end += uint64(n)
		b = b[n:]
	}
	if st.Pending() > st.mark() {
		st.flags |= flagHigh
	}
	s.schedule(st)
}

// Pending returns how many bytes are not sent. Bytes that a cut lost count again.
func (st *Stream) Pending() int {
	if st.next >= st.end {
		return 0
	}
	return int(st.end - st.next)
}

// HighMark returns the Pending above which a writer pauses its source: 128 KiB,
// less when the session's memory budget runs short, first if the peer takes nothing. OnDrain comes at a quarter of it,
// also to a writer whose Pending was below it until the mark fell.
func (st *Stream) HighMark() int {
	if st.s == nil {
		return highMark
	}
	mark := st.mark()
	if st.Pending() > mark {
		st.flags |= flagHigh // who asks is about to wait
	}
	return mark
}

// NotifySent has OnDrain called when Pending is 0: for a writer that gives little at a time, so that it can still choose
// what comes next. It has no effect when Pending is 0.
func (st *Stream) NotifySent() {
	if st.s != nil && st.Pending() > 0 {
		st.flags |= flagNotify
	}
}

// drainDue reports whether OnDrain is.
func (st *Stream) drainDue() bool {
	return st.flags&flagHigh != 0 && st.Pending() <= st.mark()/4 || st.flags&flagNotify != 0 && st.Pending() == 0
}

// Pause holds OnData and OnEOF back. What arrives within the window is kept.
func (st *Stream) Pause() { st.flags |= flagPaused }

// Resume undoes Pause. Kept bytes are presented in the next Flush, or earlier.
func (st *Stream) Resume() {
	if st.flags&flagPaused == 0 {
		return
	}
	st.flags &^= flagPaused
	st.again()
}

// again has kept bytes presented soon, and the end of them.
func (st *Stream) again() {
	switch {
	case st.s == nil:
		return
	case st.in.head != nil, st.flags&flagLent != 0:
		st.flags |= flagFresh
	case st.flags&(flagPeerFin|flagEOF) != flagPeerFin:
		return
	}
	st.s.queuePump(st)
}

// CloseWrite ends this direction once everything written is sent. The other one
// stays open.
func (st *Stream) CloseWrite() {
	if st.s == nil || st.flags&flagFin != 0 {
		return
	}
	st.flags |= flagFin
	st.s.schedule(st)
}

// Close is CloseWrite, and drops all further input. OnClose(nil) comes when both
// directions are finished; Reset ends a stream whose peer does not finish.
func (st *Stream) Close() {
	s := st.s
	if s == nil {
		return
	}
	st.CloseWrite()
	if st.flags&flagDiscard == 0 {
		st.flags |= flagDiscard
		st.consumed += uint64(st.kept)
		st.kept = 0
		s.pool.putAll(&st.in)
		s.credit(st)
	}
	s.queuePump(st) // it may be finished already
}

// Reset ends both directions at once and tells the peer why. What is not sent, or
// not yet presented, is dropped. OnClose gets a *StreamError.
func (st *Stream) Reset(code Code) {
	st.reset(code, nil)
}

// ResetOpened resets every stream that this side has opened.
func (s *Session) ResetOpened(code Code) {
	for _, st := range s.sorted(nil) {
		if s.local(st.id) {
			st.Reset(code)
		}
	}
}

// Abort is Reset with the code of err if that is a *StreamError, or else with
// CodeInternal. OnClose gets err.
func (st *Stream) Abort(err error) {
	code := CodeInternal
	var e *StreamError
	if errors.As(err, &e) {
		code = e.Code
	}
	st.reset(code, err)
}

func (st *Stream) reset(code Code, err error) {
	s := st.s
	if s == nil {
		return
	}
	if err == nil {
		err = &StreamError{Code: code}
	}
	if st.flags&flagEmitted != 0 {
		s.bury(st.id, code)
	}
	s.end(st, err)
}

// deliverable reports whether the handler may be given input now.
func (st *Stream) deliverable() bool {
	return st.s != nil && st.h != nil && st.flags&(flagPaused|flagLent|flagDiscard) == 0
}

// pump presents kept input, then the end of it, then ends the stream if both
// directions are finished. Every callback may change everything.
func (st *Stream) pump() {
	for st.in.head != nil && st.flags&flagFresh != 0 && st.deliverable() {
		s := st.s
		c := st.in.pop() // nobody reuses it while it is lent
		if c.seen && st.in.head != nil {
			c = s.pool.join(c, st.in.pop())
		}
		if st.in.head == nil {
			st.flags &^= flagFresh
		}
		used := st.present(c.b[c.r:])
		if st.s == nil || st.flags&flagDiscard != 0 {
			s.pool.put(c)
			continue
		}
		c.r += used
		st.kept -= uint32(used)
		rest := len(c.b) - c.r
		if rest == 0 {
			s.pool.put(c)
			continue
		}
		c.seen = true
		st.in.pushFront(c)
		if used == 0 && rest >= maxUnused && st.flags&flagPaused == 0 {
			st.Abort(ErrInputTooLong)
		}
	}
	if st.s == nil {
		return
	}
	if st.in.head == nil {
		st.flags &^= flagFresh
	}
	if st.flags&(flagPeerFin|flagEOF|flagFresh) == flagPeerFin && st.deliverable() {
		st.flags |= flagEOF | flagLent
		st.h.OnEOF()
		st.flags &^= flagLent
	}
	if st.s != nil {
		st.s.finish(st)
	}
}

// present lends b to the handler and accounts for what it used.
func (st *Stream) present(b []byte) (used int) {
	s := st.s
	st.flags |= flagLent
	used = st.h.OnData(b)
	st.flags &^= flagLent
	if used < 0 || used > len(b) {
		panic("BUG: OnData used more than it was given")
	}
	if st.s == nil {
		return used
	}
	if st.flags&flagDiscard == 0 {
		st.consumed += uint64(used)
		if used > 0 {
			st.moved()
		}
		s.credit(st)
	}
	return used
}
