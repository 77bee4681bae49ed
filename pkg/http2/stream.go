package http2

import (
	"errors"
	"slices"

	"culvert.dev/pkg/http1"
)

type streamFlags uint32

const (
	recvHead    streamFlags = 1 << iota // the request, or the final response, has come
	recvEnd                             // END_STREAM has come
	saidEOF                             // OnEOF was called
	sentHead                            // the request, or the final response, was sent
	ending                              // END_STREAM goes out when the queue is empty
	sentEnd                             // it has
	headRequest                         // the method is HEAD
	connect                             // the request is an extended CONNECT
	paused                              // by the handler
	discard                             // input is dropped
	lent                                // in OnData
	fresh                               // in has bytes that the handler has not seen
	high                                // a writer waits for OnDrain
	drain                               // OnDrain is due
	inReady                             // in the list of streams to send
	inDue                               // in the list of callbacks to make
)

// Stream is one request and its response. It acts like a connection. Once it has ended, which OnClose tells, its methods
// do nothing.
type Stream struct {
	c     *Conn // nil once it has ended
	h     Handler
	id    uint32
	flags streamFlags

	sendWindow int32
	window     int32 // what the peer may send before the handler has used any of it
	recvWindow int32 // what of it the peer may still send
	used       int32 // what the handler has used of it and the peer was not told
	grownAt    int32 // when window was last looked at: see Conn.now
	expect     int64 // bytes of content still to come; -1: not known
	in, out    queue

	received, written uint64 // payload

	trailers []http1.Field // received
	fields   []http1.Field // trailers to be sent behind out
	protocol []byte        // of an extended CONNECT of ours
	err      error         // for OnClose

	chain   *Stream // in Conn.streams
	next    *Stream // in Conn.ready
	nextDue *Stream // in Conn.due
}

// streamList is a queue of streams, linked by next; Conn.due is linked by nextDue.
type streamList struct{ head, tail *Stream }

func (l *streamList) push(s *Stream) {
	s.next = nil
	if l.tail == nil {
		l.head = s
	} else {
		l.tail.next = s
	}
	l.tail = s
}

func (l *streamList) pop() *Stream {
	s := l.head
	if l.head = s.next; l.head == nil {
		l.tail = nil
	}
	s.next = nil
	return s
}

func (l *streamList) remove(s *Stream) {
	var before *Stream
	for p := &l.head; *p != s; p = &(*p).next {
		before = *p
	}
	if before == nil {
		l.head = s.next
	} else {
		before.next = s.next
	}
	if l.tail == s {
		l.tail = before
	}
	s.next = nil
}

const minBuckets = 4

// open makes stream id.
func (c *Conn) open(id uint32) *Stream {
	if c.n == len(c.streams) {
		old := c.streams
		c.streams = make([]*Stream, max(2*c.n, minBuckets))
		for _, s := range old {
			for s != nil {
				next := s.chain
				c.link(s)
				s = next
			}
		}
	}
	s := &Stream{c: c, id: id, sendWindow: c.peerWindow, window: streamWindow, recvWindow: streamWindow, grownAt: c.now, expect: -1}
	c.link(s)
	c.n++
	return s
}

func (c *Conn) bucket(id uint32) **Stream { return &c.streams[int(id>>1)&(len(c.streams)-1)] }

func (c *Conn) link(s *Stream) {
	p := c.bucket(s.id)
	s.chain = *p
	*p = s
}

func (c *Conn) lookup(id uint32) *Stream {
	if c.n == 0 {
		return nil
	}
	s := *c.bucket(id)
	for s != nil && s.id != id {
		s = s.chain
	}
	return s
}

// all goes through the streams. The one that is shown may be ended.
func (c *Conn) all(yield func(*Stream) bool) {
	for _, s := range c.streams {
		for s != nil {
			next := s.chain
			if !yield(s) {
				return
			}
			s = next
		}
	}
}

// end takes s out of service. OnClose(err) comes with the callbacks that are due.
func (c *Conn) end(s *Stream, err error) {
	p := c.bucket(s.id)
	for *p != s {
		p = &(*p).chain
	}
	*p = s.chain
	s.chain = nil
	if c.n--; c.n == 0 && len(c.streams) > minBuckets {
		c.streams = nil
	}
	c.unqueue(s.out.len())
	s.out.drop(&c.e.buffers)
	c.give(s.in.len())
	s.in.drop(&c.e.buffers)
	s.shrink(s.window - streamWindow)
	if c.n == 0 {
		c.excess += c.shared
		c.shared = 0
		c.give(0)
	}
	if c.tail == s {
		c.tail = nil
	}
	if s.flags&inReady != 0 {
		c.ready.remove(s)
	}
	s.c, s.err = nil, err
	c.queueDue(s)
}

func (c *Conn) queueDue(s *Stream) {
	if s.flags&inDue != 0 {
		return
	}
	s.flags |= inDue
	s.nextDue = nil
	if c.due.tail == nil {
		c.due.head = s
	} else {
		c.due.tail.nextDue = s
	}
	c.due.tail = s
	if c.flags&connBusy == 0 {
		c.ask()
	}
}

// callBack makes the callbacks that are due now. Those that come up meanwhile wait for Flush, unless the connection is
// closed: then there is none.
func (c *Conn) callBack() {
	if c.flags&connBusy != 0 {
		return
	}
	c.flags |= connBusy
	for {
		list := c.due
		c.due = streamList{}
		for s := list.head; s != nil; {
			next := s.nextDue
			s.nextDue = nil
			s.flags &^= inDue
			s.callBack(c)
			s = next
		}
		if c.client != nil {
			c.tellRoom()
		}
		if c.due.head == nil || c.state != stateClosed {
			break
		}
	}
	c.flags &^= connBusy
	if c.due.head != nil {
		c.ask()
	}
}

func (s *Stream) callBack(c *Conn) {
	if s.c != nil && s.flags&drain != 0 {
		s.flags &^= drain
		if s.h != nil {
			s.h.OnDrain()
		}
	}
	s.pump()
	if s.c != nil && s.flags&recvEnd != 0 {
		s.sayEOF()
	}
	if s.c == nil && s.flags&inDue == 0 && s.h != nil {
		h := s.h
		s.h = nil
		h.OnClose(s.err)
	}
}

// ID returns the number of the stream.
func (s *Stream) ID() uint32 { return s.id }

// SetHandler sets who receives the stream's events from now on. Kept bytes are presented to h, and so is an end, even if
// an earlier handler was told of it.
func (s *Stream) SetHandler(h Handler) {
	if s.c == nil && s.flags&inDue == 0 {
		return
	}
	s.h = h
	s.flags &^= saidEOF
	s.again()
}

// Bytes returns how many bytes of payload were received, and how many were written, sent or not. It stays what it is
// when the stream has ended.
func (s *Stream) Bytes() (received, written uint64) { return s.received, s.written }

// Pause holds OnData and OnEOF back. What comes is kept, within the window.
func (s *Stream) Pause() { s.flags |= paused }

// Resume undoes Pause. Kept bytes are presented in the next Flush, or earlier.
func (s *Stream) Resume() {
	if s.flags&paused != 0 {
		s.flags &^= paused
		s.again()
	}
}

// again has kept bytes presented soon, and the end of them.
func (s *Stream) again() {
	if s.c == nil {
		return
	}
	if s.in.len() > 0 || s.flags&lent != 0 {
		s.flags |= fresh
	} else if s.flags&(recvEnd|saidEOF) != recvEnd {
		return
	}
	s.c.queueDue(s)
}

func (s *Stream) deliverable() bool {
	return s.c != nil && s.h != nil && s.flags&(paused|lent|discard) == 0
}

// receive takes payload from the peer.
func (s *Stream) receive(b []byte) {
	c := s.c
	s.received += uint64(len(b))
	switch {
	case s.flags&discard != 0:
		s.give(len(b))
		return
	case s.in.len() == 0 && s.deliverable():
		n := s.present(b)
		if s.c == nil {
			c.give(len(b) - n)
			return
		}
		if b = b[n:]; len(b) == 0 {
			return
		}
		if s.flags&discard != 0 {
			s.give(len(b))
			return
		}
		s.in.push(&c.e.buffers, b)
		if s.flags&fresh != 0 { // resumed while the bytes were lent
			s.again()
		}
		return
	}
	s.in.push(&c.e.buffers, b)
	s.flags |= fresh
	s.pump()
}

// present lends b to the handler and accounts for what it used.
func (s *Stream) present(b []byte) int {
	s.flags |= lent
	s.flags &^= fresh
	n := s.h.OnData(b)
	s.flags &^= lent
	if n < 0 || n > len(b) {
		panic("BUG: OnData used more than it was given")
	}
	if s.c != nil {
		s.give(n)
	}
	return n
}

// maxPiece is how much of what was kept is presented at once, so that a handler can pause in between.
const maxPiece = 32 << 10

// pump presents kept bytes.
func (s *Stream) pump() {
	for s.in.len() > 0 && s.flags&fresh != 0 && s.deliverable() {
		c, q := s.c, s.in
		s.in = queue{} // nobody touches it while it is lent
		b := q.bytes()
		piece := b[:min(len(b), maxPiece)]
		n := s.present(piece)
		if n == 0 && len(piece) < len(b) && s.deliverable() {
			n, piece = s.present(b), b
		}
		if s.c == nil {
			c.give(len(b) - n)
			q.drop(&c.e.buffers)
			return
		}
		if s.flags&discard != 0 {
			s.give(len(b) - n)
			q.drop(&c.e.buffers)
			return
		}
		q.use(&c.e.buffers, n)
		s.in = q
		if n > 0 && len(piece) < len(b) {
			s.flags |= fresh
		}
	}
}

// end takes the peer's END_STREAM.
func (s *Stream) end() *Error {
	if s.expect > 0 { // less than Content-Length said
		return s.c.refuse(s, CodeProtocol)
	}
	s.flags |= recvEnd
	if s.c.isServer() { // what a client has kept is in no other window
		s.shrink(s.window - streamWindow)
	}
	s.sayEOF()
	return nil
}

// sayEOF tells the handler of the peer's END_STREAM, when there is nothing before it that it has not seen.
func (s *Stream) sayEOF() {
	if s.flags&saidEOF == 0 && s.deliverable() && (s.in.len() == 0 || s.flags&fresh == 0) {
		s.flags |= saidEOF
		s.h.OnEOF()
	}
	if s.c != nil {
		s.settle()
	}
}

// settle ends s when both sides have finished, or when ours has and the rest does not matter.
func (s *Stream) settle() {
	c := s.c
	switch {
	case s.flags&sentEnd == 0:
	case s.flags&recvEnd != 0 && s.flags&(saidEOF|discard) != 0:
		c.end(s, nil)
	case s.flags&recvEnd == 0 && s.flags&discard != 0 && c.isServer() && s.expect >= 0 && (s.expect == 0 || s.recvWindow > 0):
		// The rest, or a window of it, is under way, or about to be. curl takes a reset which comes while it
		// sends for an error, and does not show the answer.
	case s.flags&recvEnd == 0 && s.flags&discard != 0:
		code := CodeNone // rfc9113#section-8.1: the response is complete, the rest of the request is not needed
		if !c.isServer() {
			code = CodeCancel
		}
		c.sendReset(s.id, code)
		c.end(s, nil)
	}
}

// Trailers returns the trailer section that was received. It is lent to OnEOF.
func (s *Stream) Trailers() []http1.Field { return s.trailers }

// Write sends b, or queues a copy of what cannot be sent yet. A writer waits for OnDrain when Pending is above HighMark.
// After CloseWrite, and before Respond, it does nothing.
func (s *Stream) Write(b []byte) {
	c := s.c
	if c == nil || s.flags&(sentHead|ending) != sentHead || len(b) == 0 {
		return
	}
	s.written += uint64(len(b))
	if s.out.len() == 0 && c.ready.head == nil {
		b = b[c.sendData(s, b):]
	}
	if len(b) > 0 {
		s.out.push(&c.e.buffers, b)
		c.queued += len(b)
		if s.out.len() > highMark || c.queued > maxQueued {
			s.wait()
		}
		s.schedule()
	}
}

func (s *Stream) wait() {
	s.flags |= high
	if s.c.queued > maxQueued {
		s.c.flags |= connHigh
	}
}

// schedule puts s among the streams to send, if it can be sent.
func (s *Stream) schedule() {
	if s.flags&inReady == 0 && s.out.len() > 0 && s.sendWindow > 0 {
		s.flags |= inReady
		s.c.ready.push(s)
		s.c.ask()
	}
}

// drained has OnDrain called if somebody waits for it and the queue is short.
func (s *Stream) drained() {
	c := s.c
	switch {
	case c == nil || s.flags&high == 0 || s.out.len() > highMark/4:
	case c.queued > maxQueued/2 && s.out.len() > 0:
		c.flags |= connHigh // it waits for the others now
	default:
		s.flags = s.flags&^high | drain
		c.queueDue(s)
	}
}

// Pending returns the number of bytes that are not sent yet.
func (s *Stream) Pending() int { return s.out.len() }

// HighMark is the Pending above which a writer waits for OnDrain: 64 KiB, and 0 while all streams of the connection
// together have more than 512 KiB queued: so whoever has no room is no reason for others, who have, to wait. OnDrain
// comes at a quarter of it.
func (s *Stream) HighMark() int {
	if s.c == nil || s.c.queued <= maxQueued {
		return highMark
	}
	if s.out.len() > 0 {
		s.wait()
	}
	return 0
}

// CloseWrite finishes our side when everything written is sent.
func (s *Stream) CloseWrite() { s.WriteTrailers(nil) }

// WriteTrailers is CloseWrite with a trailer section, of which hop-by-hop fields are no part.
func (s *Stream) WriteTrailers(fields []http1.Field) {
	if s.c == nil || s.flags&ending != 0 {
		return
	}
	if s.flags&sentHead == 0 { // a response that was never begun
		s.Reset(CodeInternal)
		return
	}
	s.flags |= ending
	s.fields = fields
	if s.out.len() == 0 {
		s.sendEnd()
	} else {
		s.fields = cloneFields(fields)
	}
}

// sendEnd sends END_STREAM, on the last frame if that is still here.
func (s *Stream) sendEnd() {
	c := s.c
	switch {
	case len(s.fields) > 0:
		block := c.appendFields(c.enc.begin(c.e.block[:0]), s.fields, false)
		c.e.block = block
		c.sendBlock(s.id, block, true)
		s.fields = nil
	case c.tail == s:
		c.out[c.tailAt+4] |= flagEndStream
		c.tail = nil
	default:
		c.frame(0, typeData, flagEndStream, s.id)
	}
	s.flags |= sentEnd
	s.settle()
}

// Close finishes our side and drops further input. The stream is over when everything written is sent and the
// rest of a request whose length is known has come, or as much of it as the window takes. How long that may take is for the caller to
// say, by Reset.
func (s *Stream) Close() {
	c := s.c
	if c == nil {
		return
	}
	s.flags |= discard
	n := s.in.len()
	s.in.drop(&c.e.buffers)
	c.give(n)
	s.CloseWrite()
	if s.c != nil {
		s.settle()
	}
}

// Reset ends the stream at once and drops what is queued. OnClose gets a *StreamError.
func (s *Stream) Reset(code Code) { s.abort(code, &StreamError{Code: code}) }

// Abort is Reset with the code of err if that is a *StreamError, or else with CodeInternal. OnClose gets err.
func (s *Stream) Abort(err error) {
	e, ok := errors.AsType[*StreamError](err)
	if !ok {
		e = &StreamError{Code: CodeInternal}
	}
	if err == nil {
		err = e
	}
	s.abort(e.Code, err)
}

func (s *Stream) abort(code Code, err error) {
	if c := s.c; c != nil {
		c.sendReset(s.id, code)
		c.end(s, err)
	}
}

func cloneFields(fields []http1.Field) []http1.Field {
	n := 0
	for _, f := range fields {
		n += len(f.Name) + len(f.Value)
	}
	text := make([]byte, 0, n)
	fields = slices.Clone(fields)
	for i, f := range fields {
		start := len(text)
		text = append(text, f.Name...)
		middle := len(text)
		text = append(text, f.Value...)
		fields[i] = http1.Field{Name: text[start:middle:middle], Value: text[middle:len(text):len(text)]}
	}
	return fields
}
