package public

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/forward"
	"culvert.dev/pkg/http1"
	"culvert.dev/pkg/http3"
)

const (
	// readSize3 is what is read at a time of what a visitor sends, and writeSize3 what is written
	// at a time of what it gets.
	readSize3, writeSize3 = 16 << 10, 16 << 10

	// highMark3 is how much of a response may wait here, beside what QUIC has on its way, until the
	// server has to; lowMark3 until it goes on.
	highMark3, lowMark3 = 64 << 10, 32 << 10

	// maxQueued3 is how much of all responses of a connection may wait, before whoever has something
	// that waits, has to. One that has nothing does not wait for the others, who may stand still.
	maxQueued3 = 512 << 10
)

// stream3 is one request over HTTP/3: the front of its exchange, and after an upgrade the end of a splice. The
// calls of quic-go block, so goroutines make them: one reads what the loop wants to have, and one exists
// while there is something to be written.
type stream3 struct {
	client  *client
	visitor *visitor3
	stream  *quic.Stream
	loop    atomic.Pointer[loop] // that it belongs to; changed by ask alone

	// Of the goroutine that reads, and from its post to its next look at more of the loop.
	in    http3.Reader
	parts http3.Head
	req   http1.Request
	ended bool   // everything of the request has come
	piece []byte // that was read, and the error behind it
	err   error
	more  chan bool // whether the loop wants more; takes one

	// Owned by the loop.
	ex      *exchange       // while there is one
	handler forward.Handler // after an upgrade
	timer   evloop.Timer
	unwatch func() bool // ends the look-out for the end of the stream
	key     string      // see addKey
	looks   uint8       // as in visitor
	isHead  bool        // it is HEAD
	grpc    bool
	connect bool // it is an extended CONNECT
	waits   bool // the goroutine that reads does, for more
	paused  bool
	closed  bool // our half is
	over    bool // nothing more comes of it

	mu      sync.Mutex
	out     []byte // to be written
	spare   []byte // its room, when it is being written
	writing int    // bytes of what is being written
	counted int    // of both, in visitor.queued
	busy    bool   // a goroutine writes
	high    bool   // the high mark was passed: drained is to come
	fin     bool   // there is an end behind out
	dead    bool   // it was reset
	retired bool   // the loop has no use for it any more
	left    bool   // it does not count any more
}

func newStream3(v *visitor3, q *quic.Stream) *stream3 {
	s := &stream3{client: v.who(), visitor: v, stream: q, more: make(chan bool, 1)}
	s.loop.Store(v.first)
	return s
}

// reads3 are buffers to read into.
var reads3 = sync.Pool{New: func() any { return new([readSize3]byte) }}

// read reads the head of the request, and then what the loop wants to have of the rest.
func (s *stream3) read(ctx context.Context) {
	var err error
	if s.piece, err = s.readHead(); s.ended {
		s.err = io.EOF
	}
	if !s.post(func() { s.start(err) }) {
		s.forsake()
		return
	}
	var buf *[readSize3]byte
	for {
		more := false
		select {
		case more = <-s.more:
		case <-ctx.Done(): // there is no loop any more
		}
		if buf != nil {
			reads3.Put(buf)
		}
		if !more {
			return
		}
		var one [1]byte
		s.stream.Peek(one[:]) // without a buffer; Read will tell the error
		buf = reads3.Get().(*[readSize3]byte)
		n, err := s.stream.Read(buf[:])
		s.piece, s.err = buf[:n], err
		if !s.post(s.take) {
			s.forsake()
			return
		}
	}
}

// readHead reads the head of the request. It returns what else has come, and sets ended.
func (s *stream3) readHead() (rest []byte, err error) {
	s.stream.SetReadDeadline(time.Now().Add(headTime))
	defer s.stream.SetReadDeadline(time.Time{})
	var got []byte
	for complete := false; ; {
		// Whoever is slow holds what has come, and no buffer.
		var one [1]byte
		s.stream.Peek(one[:]) // Read will tell the error
		buf := reads3.Get().(*[readSize3]byte)
		n, end := s.stream.Read(buf[:])
		got = append(got[:0], buf[:n]...)
		reads3.Put(buf)
		if end != nil && end != io.EOF {
			return nil, end
		}
		b := got
		for !complete && len(b) > 0 {
			event, section, used, err := s.in.Next(b)
			b = b[used:]
			if event == http3.EventHead {
				complete = true
				err = s.parts.Decode(section)
			}
			if err != nil {
				return nil, err
			}
		}
		if in := s.in; complete && len(b) > 0 { // frames of unknown types are no body
			if event, _, _, err := in.Next(b); event == http3.EventNone && err == nil {
				s.in, b = in, nil
			}
		}
		if len(b) == 0 && end != nil {
			if err := s.in.EOF(); err != nil {
				return nil, err
			}
		}
		// The end of a request that has no body, as a rule, may come a packet later. It
		// is not sent on as one that may have a body.
		if complete && (len(b) > 0 || end != nil || hasBody(s.parts.Method())) {
			s.ended = end != nil
			if err := s.parts.Request(&s.req, s.ended && len(b) == 0); err != nil {
				return nil, err
			}
			s.in.Expect(s.req.ContentLength)
			return b, nil
		}
	}
}

// hasBody reports whether requests of a method have a body as a rule.
func hasBody(method []byte) bool {
	switch string(method) {
	case "GET", "HEAD", "OPTIONS", "DELETE", "TRACE":
		return false
	}
	return true
}

// post runs f on the loop. It reports false if there is none any more.
func (s *stream3) post(f func()) bool { return s.loop.Load().Post(f) }

// forsake ends a stream whose loop has ended.
func (s *stream3) forsake() {
	s.stream.CancelRead(quic.StreamErrorCode(http3.RequestCancelled))
	s.stream.CancelWrite(quic.StreamErrorCode(http3.RequestCancelled))
}

// start begins with the request, or says what is wrong with it. On the loop.
func (s *stream3) start(err error) {
	s.waits = true
	s.unwatch = context.AfterFunc(s.stream.Context(), s.watch)
	if err != nil {
		s.refuse(err)
		return
	}
	s.isHead = string(s.req.Method) == "HEAD"
	s.connect = s.req.Upgrade != nil
	s.grpc = bytes.HasPrefix(http1.Get(s.req.Fields, "content-type"), grpcType)
	s.key = addKey(&s.req)
	if p := http1.Get(s.req.Fields, "priority"); p != nil {
		s.stream.SetPriority(http3.Priority(p))
	}
	s.ask()
}

// refuse ends a request whose head is not what it should be.
func (s *stream3) refuse(err error) {
	l := s.loop.Load()
	if t := s.rejection(err); t != nil {
		l.counters.Rejected++
		l.logAnswer(s.client, nil, t)
		s.answer(t)
	}
}

// rejection is the answer to what a visitor has sent. It is nil, and the stream is over, if there can be none.
func (s *stream3) rejection(err error) *trouble {
	s.visitor.spoil()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return troubleSlow
	}
	if e, ok := errors.AsType[*http3.Error](err); ok {
		if !e.Connection {
			return &trouble{400, "The request was not accepted: " + e.Reason + "."}
		}
		s.loop.Load().Spawn(func(context.Context) { s.visitor.close(e.Code, e.Reason) })
	} else if _, ok := errors.AsType[*http1.Error](err); ok {
		return rejection(err)
	}
	s.cancel()
	return nil
}

// ask decides what becomes of the request. On the loop.
func (s *stream3) ask() {
	if s.over {
		return
	}
	l := s.loop.Load()
	switch d := l.decide(s.client, &s.req); d.action {
	case doServe:
		if s.ex = l.serve(s, d.service, &s.req); s.ex != nil {
			s.check()
			if !s.connect { // or else what has come may be for the splice
				s.take()
			}
		}
	case doMove:
		to := d.service.session.loop
		s.timer.Stop()
		s.loop.Store(to)
		if !to.Post(s.ask) {
			s.cancel()
		}
	case doHold:
		if !d.hold(s.ask) {
			s.look()
		}
	case doLook:
		s.look()
	case doOwn: // what there is, is upgrades of HTTP/1.1
		l.logAnswer(s.client, &s.req, troubleElsewhere)
		s.answer(troubleElsewhere)
	case doAnswer:
		l.logDecision(s.client, &s.req, d)
		s.answer(d.trouble, d.fields...)
	}
}

// look asks again soon, and then later and later.
func (s *stream3) look() {
	s.loop.Load().Arm(&s.timer, holdTime<<s.looks, s.ask)
	s.looks = min(s.looks+1, 3)
}

// check has the exchange checked from time to time.
func (s *stream3) check() {
	s.loop.Load().Arm(&s.timer, busyCheck, func() {
		s.check()
		s.ex.check()
	})
}

// take takes what was read, and lets the goroutine that reads go on. On the loop.
func (s *stream3) take() {
	s.waits = true
	b, err, n := s.piece, s.err, len(s.piece)
	s.piece, s.err = nil, nil
	for len(b) > 0 && !s.over {
		event, payload, used, err := s.in.Next(b)
		b = b[used:]
		switch event {
		case http3.EventData:
			if s.handler != nil {
				s.handler.OnData(payload)
			} else {
				s.ex.body(payload)
			}
		case http3.EventTrailers:
			var fields []http1.Field
			switch fields, err = s.parts.Trailers(payload); {
			case err != nil:
			case s.handler != nil: // rfc9114#section-4.4
				err = &http3.Error{Code: http3.FrameUnexpected, Connection: true, Reason: "trailers behind a CONNECT"}
			case !s.ex.sent:
				s.ex.end(fields)
			}
		}
		if err != nil {
			s.malformed(err)
		}
	}
	switch {
	case s.over:
	case err == nil:
	case err == io.EOF:
		s.ended = true
		switch err := s.in.EOF(); {
		case err != nil:
			s.malformed(err)
		case s.handler != nil:
			s.handler.OnEOF()
			s.closeBoth()
		case !s.ex.sent:
			s.ex.end(nil)
		}
	default: // the visitor has reset it, or the connection is over
		s.visitor.spoil()
		s.cancel()
	}
	if s.ex != nil {
		s.ex.pushed(n)
	}
	s.proceed()
}

// malformed ends what has begun, because of how it goes on.
func (s *stream3) malformed(err error) {
	t := s.rejection(err)
	switch {
	case t == nil:
	case s.handler != nil:
		s.Abort(err)
	default:
		s.ex.reject(t)
	}
}

// proceed lets the goroutine that reads go on, or end, if it waits.
func (s *stream3) proceed() {
	if !s.waits {
		return
	}
	untaken := s.piece != nil || s.err != nil
	if done := s.over || s.ended && !untaken; done || !s.paused && !untaken {
		s.waits = false
		s.more <- !done
	}
}

// watch has the loop hear of the end of the stream: the visitor wants no answer, or the connection is over.
func (s *stream3) watch() {
	l := s.loop.Load()
	l.Post(func() {
		switch {
		case s.loop.Load() != l: // it has moved meanwhile
			s.watch()
		case s.over:
		case s.closed && s.visitor.conn.Context().Err() == nil: // it was us, and the visitor may have more to say
			s.unwatch = context.AfterFunc(s.visitor.conn.Context(), s.watch)
		default:
			s.visitor.spoil()
			s.cancel()
		}
	})
}

// cancel ends the stream and what it is used for.
func (s *stream3) cancel() {
	ex, h := s.ex, s.handler
	s.reset(http3.RequestCancelled)
	switch {
	case ex != nil:
		ex.cancel()
	case h != nil:
		h.OnClose(errCancelled)
	}
}

var errCancelled = errors.New("the visitor has ended the stream")

// retire is the end of what the loop does with the stream.
func (s *stream3) retire() {
	s.over = true
	s.ex, s.handler = nil, nil
	s.timer.Stop()
	s.unwatch()
	s.proceed()
}

// finish ends the stream behind what is to be written.
func (s *stream3) finish() {
	s.retire()
	s.stream.CancelRead(quic.StreamErrorCode(http3.NoError)) // if there is more of the request
	s.mu.Lock()
	s.fin, s.retired = true, true
	s.kick()
}

// reset ends the stream at once.
func (s *stream3) reset(code http3.Code) {
	s.retire()
	s.stream.CancelRead(quic.StreamErrorCode(code))
	s.stream.CancelWrite(quic.StreamErrorCode(code))
	s.mu.Lock()
	s.dead, s.out, s.retired = true, nil, true
	s.count()
	s.kick()
}

// kick sees to it that a goroutine writes. s.mu is held, and released.
func (s *stream3) kick() {
	idle := !s.busy
	s.busy = true
	s.mu.Unlock()
	if idle {
		s.loop.Load().Spawn(s.write)
	}
}

// write writes until there is nothing more to be written.
func (s *stream3) write(context.Context) {
	for {
		s.mu.Lock()
		out := s.out
		if len(out) == 0 {
			s.busy, s.out, s.spare = false, nil, nil
			left := s.retired && !s.left
			s.left = s.left || left
			fin := s.fin
			s.mu.Unlock()
			if fin {
				s.stream.Close() // nothing, if it was reset
			}
			if left {
				s.visitor.left(s.stream)
			}
			return
		}
		s.out, s.spare = s.spare, nil
		s.writing = len(out)
		s.mu.Unlock()
		for rest := out; len(rest) > 0; {
			n := min(len(rest), writeSize3)
			s.stream.SetWriteDeadline(time.Now().Add(stuckTime)) // when nothing else looks at it any more
			_, err := s.stream.Write(rest[:n])
			rest = rest[n:]
			s.mu.Lock()
			s.writing -= n
			if err != nil {
				s.dead, s.out, s.writing, rest = true, nil, 0, nil
			}
			s.count()
			drained := s.high && !s.dead && s.relaxed()
			s.high = s.high && !drained
			s.mu.Unlock()
			if drained {
				s.post(s.drained)
			}
			if err != nil {
				s.stream.CancelWrite(quic.StreamErrorCode(http3.RequestCancelled))
			}
		}
		s.mu.Lock()
		s.spare = out[:0]
		s.mu.Unlock()
	}
}

// drained is the news that there is room. On the loop.
func (s *stream3) drained() {
	switch {
	case s.ex != nil:
		s.ex.drained()
	case s.handler != nil:
		s.handler.OnDrain()
	}
}

// put adds to what is to be written: a frame that f appends, and a payload behind it.
func (s *stream3) put(f func(dst []byte) []byte, payload []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead {
		return
	}
	s.out = append(f(s.out), payload...)
	s.count()
	s.high = s.high || s.counted > highMark3
}

// count tells the visitor how much waits. s.mu is held, here and below.
func (s *stream3) count() {
	n := len(s.out) + s.writing
	s.visitor.queued.Add(int64(n - s.counted))
	s.counted = n
}

// crowded reports whether something waits, and too much does on the whole connection.
func (s *stream3) crowded() bool { return s.counted > 0 && s.visitor.queued.Load() > maxQueued3 }

// relaxed reports whether there is room again.
func (s *stream3) relaxed() bool { return s.counted <= lowMark3 && !s.crowded() }

// putHead adds a head.
func (s *stream3) putHead(res *http1.Response) {
	h := &s.loop.Load().heads
	h.section.Status(res.Status)
	h.fields, h.text = http1.AppendForwardedResponseFields(h.fields[:0], h.text[:0], res)
	for _, f := range h.fields {
		h.section.Field(f.Name, f.Value)
	}
	s.put(h.section.Append, nil)
}

// heads3 is what a loop needs to write heads.
type heads3 struct {
	section http3.Section
	fields  []http1.Field
	text    []byte
}

func (s *stream3) who() *client { return s.client }

func (s *stream3) interim(res *http1.Response) { s.putHead(res) }

func (s *stream3) head(res *http1.Response, end bool) bool {
	if s.connect && res.Status < 300 { // it would mean that the server has switched
		bad := *res
		bad.Status = 502
		res = &bad
	}
	s.putHead(res)
	if end {
		s.putEnd()
	}
	// A server that turns a request down before it is complete seldom reads the rest.
	return !s.ended && res.Status >= 300
}

func (s *stream3) body(p []byte) {
	s.put(func(dst []byte) []byte { return http3.AppendData(dst, len(p)) }, p)
}

func (s *stream3) end(trailers []http1.Field) {
	if len(trailers) > 0 {
		section := &s.loop.Load().heads.section
		for _, f := range trailers {
			section.Field(f.Name, f.Value)
		}
		s.put(section.Append, nil)
	}
	s.putEnd()
}

// putEnd adds the end of the response. The visitor waits for it, even if it has not sent all of its request.
func (s *stream3) putEnd() {
	s.closed = true
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fin = true
}

func (s *stream3) flush() {
	s.mu.Lock()
	if len(s.out) == 0 && !s.fin {
		s.mu.Unlock()
		return
	}
	s.kick()
}

func (s *stream3) full() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.high = s.high || s.crowded()
	return s.high
}

func (s *stream3) waiting() bool { return s.Pending() > 0 }
func (s *stream3) pause()        { s.Pause() }
func (s *stream3) resume()       { s.Resume() }
func (s *stream3) done()         { s.finish() }
func (s *stream3) cut()          { s.reset(http3.InternalError) }
func (s *stream3) abort()        { s.reset(http3.RequestCancelled) }

func (s *stream3) answer(t *trouble, fields ...http1.Field) {
	s.loop.Load().counters.Answered++
	var res http1.Response
	body := compose(&res, t, s.grpc, time.Now(), fields)
	s.putHead(&res)
	if !s.isHead && len(body) > 0 {
		s.body(body)
	}
	s.finish()
}

func (s *stream3) upgrade(res *http1.Response, st stream, svc *service) *trouble {
	if !accepts(res, s.key) {
		return troubleAnswer
	}
	s.ex = nil
	s.timer.Stop()
	res.Status, res.Fields = 200, http1.Remove(res.Fields, acceptNames) // rfc8441#section-5
	s.putHead(res)
	res.Status = 101
	s.flush()
	join(s, st, s.client.addr, uncounted, svc, s.client.upgraded(res))
	s.post(func() {
		if !s.over && s.waits {
			s.take()
		}
	})
	return nil
}

var acceptNames = []string{"sec-websocket-accept"}

// The rest is what a splice needs.

func (s *stream3) SetHandler(h forward.Handler) { s.handler = h }

func (s *stream3) Write(b []byte) {
	if len(b) > 0 && !s.closed {
		s.body(b)
		s.flush()
	}
}

func (s *stream3) Pending() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counted
}

// HighMark is 0 while the connection is crowded, which is decided anew each time that something waits here: whoever
// asks has seen at least as much of it, and is told when it is written.
func (s *stream3) HighMark() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.crowded() {
		s.high = true
		return 0
	}
	return highMark3
}

func (s *stream3) Pause() { s.paused = true }

func (s *stream3) Resume() {
	s.paused = false
	s.proceed()
}

func (s *stream3) CloseWrite() {
	if s.closed || s.over {
		return
	}
	s.putEnd()
	s.flush()
	s.closeBoth()
}

func (s *stream3) Close() {
	if s.over {
		return
	}
	s.ended = true
	s.CloseWrite()
	s.closeBoth()
}

// closeBoth is the end when both halves have one.
func (s *stream3) closeBoth() {
	if h := s.handler; h != nil && s.closed && s.ended {
		s.finish()
		s.post(func() { h.OnClose(nil) })
	}
}

func (s *stream3) Abort(err error) {
	if h := s.handler; h != nil {
		s.reset(http3.ConnectError)
		s.post(func() { h.OnClose(err) })
	}
}
