package httpd

import (
	"io"
	"net/http"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/http1"
	"culvert.dev/pkg/http2"
)

// askTime is how long a client of HTTP/2 that has requests under way may be silent until it is asked for a sign of life,
// and how long it has for that.
const askTime = 30 * time.Second

// conn2 is one connection of HTTP/2. It is owned by the loop. Each request is a stream2.
type conn2 struct {
	session // of the register
	end     End
	loop    *evloop.Loop
	h2      *http2.Conn
	clock   clock
	heard   int64 // Unix time in ns when something came
	pending int   // end.Pending() when the clock was set
	asked   int64 // when it was asked for a sign of life; 0: it was not
	began   int64 // when the first part of a head came whose rest is missing; 0: there is none
	woken   bool  // flush comes at the end of the turn
	ready   bool  // its settings have come
	closing bool
	gone    bool
}

func newConn2(s *Server, end End, loop *evloop.Loop, peer Peer) *conn2 {
	c := &conn2{end: end, loop: loop}
	c.session = session{srv: s, peer: peer, minor: 2}
	return c
}

func (c *conn2) start() {
	c.heard = time.Now().UnixNano()
	c.h2 = c.srv.endpoint(c.loop).Server(c, c, time.Now())
	c.wait(time.Now(), orDefault(c.srv.HeadTimeout, 10*time.Second))
	c.end.SetHandler(c)
}

// endpoint returns what connections of a loop share.
func (s *Server) endpoint(l *evloop.Loop) *http2.Endpoint {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.endpoints[l]
	if e == nil {
		if s.endpoints == nil {
			s.endpoints = make(map[*evloop.Loop]*http2.Endpoint)
		}
		e = new(http2.Endpoint)
		s.endpoints[l] = e
	}
	return e
}

// The transport of h2.

func (c *conn2) Write(b []byte) { add(&c.sent, len(b)); c.end.Write(b) }
func (c *conn2) Pending() int   { return c.end.Pending() }
func (c *conn2) HighMark() int  { return c.end.HighMark() }

func (c *conn2) OnData(b []byte) int {
	if c.closing {
		return len(b)
	}
	c.heard, c.asked = c.loop.Now().UnixNano(), 0
	used, err := c.h2.Receive(b, c.loop.Now())
	add(&c.received, used)
	switch {
	case err != nil:
		c.finish(err)
		return len(b)
	case c.closing:
		return len(b)
	case used == len(b):
		c.began = 0
	case used > 0 || c.began == 0: // a frame without data, or a head, the rest of which has HeadTimeout
		c.began = c.heard
	}
	if !c.ready && c.h2.Ready() {
		c.ready = true
	}
	c.await()
	return used
}

func (c *conn2) OnEOF() { c.finish(io.ErrUnexpectedEOF) }

func (c *conn2) OnDrain() {
	if !c.closing {
		c.flush()
	}
}

func (c *conn2) OnClose(err error) {
	c.gone, c.closing = true, true
	if err == nil {
		err = io.ErrClosedPipe
	}
	c.h2.Close(err)
	c.clock.timer.Stop()
	c.leave()
}

// finish closes the connection after what is queued.
func (c *conn2) finish(err error) {
	if c.closing {
		return
	}
	c.h2.Flush()
	c.closing = true
	c.h2.Close(err)
	c.wait(c.loop.Now(), orDefault(c.srv.StallTimeout, time.Minute))
	c.end.Close()
}

func (c *conn2) wait(now time.Time, d time.Duration) {
	if c.clock.set(now, d) {
		c.clock.arm(c.loop, now, c.expired)
	}
}

// OnOutput has flush called at the end of the turn.
func (c *conn2) OnOutput() {
	if !c.woken {
		c.woken = true
		c.loop.AfterTurn(c.flush)
	}
}

// flush sends what there is, and closes a connection that is done.
func (c *conn2) flush() {
	c.woken = false
	if c.closing {
		return
	}
	c.h2.Flush()
	if c.closing { // by a callback
		return
	}
	if e, ok := c.end.(*evloop.Conn); ok {
		e.NotifyDrain()
	}
	if c.h2.Done() {
		c.finish(ErrServerClosed)
	}
}

// await sets the time at which the connection is looked at. When streams are open that is often, since it costs little.
func (c *conn2) await() {
	d := orDefault(c.srv.IdleTimeout, 75*time.Second)
	switch {
	case !c.ready || c.began != 0:
		d = orDefault(c.srv.HeadTimeout, 10*time.Second)
	case c.h2.Streams() > 0:
		d = askTime / 4
	}
	c.pending = c.end.Pending()
	c.wait(c.loop.Now(), d)
}

// expired is called by the clock.
func (c *conn2) expired() {
	if !c.clock.rang(c.loop, c.expired) {
		return
	}
	now := c.loop.Now().UnixNano()
	since := func(t int64) time.Duration { return time.Duration(now - t) }
	head := orDefault(c.srv.HeadTimeout, 10*time.Second)
	switch {
	case c.closing:
		c.end.Abort(errStalled)
		return
	case c.end.Pending() > 0:
		if c.end.Pending() == c.pending && since(c.heard) >= orDefault(c.srv.StallTimeout, time.Minute) {
			c.end.Abort(errStalled)
			return
		}
	case !c.ready && since(c.heard) >= head:
		c.h2.GoAway(http2.CodeSettingsTimeout)
		c.finish(errStalled)
		return
	case c.began != 0 && since(c.began) >= head:
		c.h2.GoAway(http2.CodeEnhanceYourCalm)
		c.finish(errSlow)
		return
	case c.h2.Streams() == 0 && since(c.heard) >= orDefault(c.srv.IdleTimeout, 75*time.Second):
		c.h2.GoAway(http2.CodeNone)
		c.finish(errStalled)
		return
	case c.h2.Streams() > 0 && c.asked != 0 && since(c.asked) >= askTime:
		c.end.Abort(errStalled)
		return
	case c.h2.Streams() > 0 && c.asked == 0 && since(c.heard) >= askTime:
		c.asked = now
		c.h2.Ping()
	}
	c.await()
}

// drain implements connection.
func (c *conn2) drain() {
	c.loop.Post(func() {
		if !c.closing {
			c.h2.Drain()
		}
	})
}

// cut implements connection.
func (c *conn2) cut(err error) {
	c.loop.Post(func() {
		if !c.gone {
			c.end.Abort(err)
		}
	})
}

// OnRequest begins with a request.
func (c *conn2) OnRequest(s *http2.Stream, r *http1.Request, end bool) {
	st := &stream2{Stream: s, c: c}
	x, err := newExchange(st, c.loop, &c.session, r, true)
	if err != nil {
		c.OnReject(s, &http1.Error{Status: http.StatusBadRequest, Reason: "invalid request target"})
		return
	}
	st.x = x
	if r.Upgrade != nil {
		x.req.Header.Set("Connection", "Upgrade") // as handlers of HTTP/1.1 see it
		x.req.Header.Set("Upgrade", string(r.Upgrade))
		x.req.Body = http.NoBody
		s.Pause() // until it is taken
	} else if end {
		x.req.Body = http.NoBody
		x.inErr = io.EOF
	} else { // until the handler reads: what comes waits in the windows, which are the connection's
		x.stuffed = true
		s.Pause()
	}
	s.SetHandler(st)
	st.progress()
	c.await()
	c.srv.dispatch(x)
}

// OnReject answers a request that is too large or not supported.
func (c *conn2) OnReject(s *http2.Stream, err *http1.Error) {
	s.SetHandler(deaf{})
	s.Respond(&http1.Response{Status: err.Status, ContentLength: -1, Framing: http1.UntilClose,
		Fields: []http1.Field{{Name: []byte("content-type"), Value: []byte("text/plain; charset=utf-8")}}}, false)
	s.Write([]byte(err.Reason + "\n"))
	s.Close()
}

// stream2 is one request of a connection of HTTP/2: the handler of its stream, and the carrier of its exchange.
type stream2 struct {
	*http2.Stream
	c       *conn2
	x       *exchange // nil when it is answered
	clock   clock
	pending int
}

func (st *stream2) OnData(b []byte) int {
	x := st.x
	if x == nil {
		return len(b)
	}
	st.progress()
	x.mu.Lock()
	if !x.bodyClosed && x.inErr == nil {
		x.in = append(x.in, b...)
	}
	x.stuffed = len(x.in)-x.inOff > maxUnread
	stuffed := x.stuffed
	x.mu.Unlock()
	x.cond.Broadcast()
	if stuffed {
		st.Pause()
	}
	return len(b)
}

func (st *stream2) OnEOF() {
	x := st.x
	if x == nil {
		return
	}
	x.mu.Lock()
	if x.inErr == nil {
		x.whole(st.Trailers())
	}
	x.mu.Unlock()
	x.cond.Broadcast()
}

func (st *stream2) OnDrain() {
	if x := st.x; x != nil && x.blocked {
		x.blocked = false
		x.sentOut()
		st.progress()
	}
}

func (st *stream2) OnClose(err error) {
	st.clock.timer.Stop()
	if err == nil {
		err = io.ErrClosedPipe
	}
	if x := st.x; x != nil {
		st.x = nil
		x.fail(err)
	}
}

// expired is called by the clock.
func (st *stream2) expired() {
	if !st.clock.rang(st.c.loop, st.expired) {
		return
	}
	switch n := st.Pending(); {
	case n > 0 && n != st.pending:
	case n > 0 || st.x == nil: // it does not take what we have sent, or not send what nobody wants
		st.Reset(http2.CodeCancel)
		return
	default:
		st.x.starve()
	}
	st.progress()
}

// The carrier of the exchange.

func (st *stream2) register() *session       { return &st.c.session }
func (st *stream2) carries(x *exchange) bool { return st.x == x }
func (st *stream2) crowded() bool            { return st.Pending() > st.HighMark() }
func (st *stream2) resume(*exchange)         { st.Resume() }

func (st *stream2) progress() {
	st.pending = st.Pending()
	if now := st.c.loop.Now(); st.clock.set(now, orDefault(st.c.srv.StallTimeout, time.Minute)) {
		st.clock.arm(st.c.loop, now, st.expired)
	}
}

func (st *stream2) put(x *exchange, head *http1.Response, pieces *[3][]byte) {
	if head != nil {
		st.Respond(head, false)
	}
	for _, b := range pieces {
		st.Write(b)
	}
}

func (st *stream2) conclude(x *exchange, p *part, keep bool) {
	st.x = nil
	if p.head != nil && len(p.pieces[0]) == 0 && len(p.trailers) == 0 {
		st.Respond(p.head, true)
	} else {
		st.put(x, p.head, &p.pieces)
		if x.w.short {
			st.Reset(http2.CodeInternal)
			return
		}
		st.WriteTrailers(p.trailers)
	}
	st.Stream.Close() // the rest of the request is not needed
}

func (st *stream2) refuse(x *exchange) {
	st.x = nil
	x.fail(io.ErrClosedPipe)
	st.c.OnReject(st.Stream, &http1.Error{Status: http.StatusInternalServerError, Reason: "internal server error"})
}

func (st *stream2) abort(x *exchange, err error) {
	st.x = nil
	x.fail(err)
	st.Reset(http2.CodeInternal)
}

func (st *stream2) goOn(*exchange) {
	st.Respond(&http1.Response{Status: http.StatusContinue, ContentLength: -1, Framing: http1.NoBody}, false)
}

func (st *stream2) give(*exchange) End {
	st.x = nil
	st.clock.timer.Stop()
	st.Resume()
	return st.Stream
}
