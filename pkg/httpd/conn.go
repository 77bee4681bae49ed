package httpd

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/http1"
)

const (
	maxUnread  = 64 << 10  // body bytes that wait for the handler before the connection is paused
	maxAhead   = 32 << 10  // MaxAhead, at most: more would not fit into what the end keeps
	maxDiscard = 256 << 10 // body bytes that are read for nothing to keep a connection
	fastBatch  = 64 << 10  // answers of Fast that are gathered before they are written
)

// connState goes idle → head → busy → (discard →) idle, or to closing from anywhere.
type connState uint8

const (
	idle    connState = iota // between requests, no input
	head                     // part of a head has come
	busy                     // x is being answered
	discard                  // x is answered, the rest of its body is being read for nothing
	closing                  // nothing more is read
	gone                     // closed, or taken by an Upgrade
)

// conn is one connection of HTTP/1.1. It is owned by the loop.
type conn struct {
	session // of the register
	end     End
	loop    *evloop.Loop

	x       *exchange
	clock   clock
	pending int32 // end.Pending() when the clock was set

	state  connState
	paused bool
	eof    bool // the client has finished sending
	ahead  bool // there is input behind the request that is being answered
	last   bool // no further request is taken
}

// clock is one timer for many deadlines, of which the latest counts. It is seldom re-armed: when it fires too early it
// is armed for the rest.
type clock struct {
	timer    evloop.Timer
	deadline int64 // Unix time in ns
	armed    int64 // when timer fires; 0: it is not armed
}

// set sets the deadline to d from now, and reports whether arm has to be called for it. (To give it a func that it seldom needs
// would cost as much as all the rest.)
func (t *clock) set(now time.Time, d time.Duration) bool {
	t.deadline = now.UnixNano() + int64(d)
	return t.armed == 0 || t.deadline < t.armed
}

func (t *clock) arm(l *evloop.Loop, now time.Time, expired func()) {
	t.armed = t.deadline
	l.Arm(&t.timer, time.Duration(t.deadline-now.UnixNano()), expired)
}

// rang reports, when the timer has fired, whether it is time. If not, it is armed for the rest.
func (t *clock) rang(l *evloop.Loop, expired func()) bool {
	now := l.Now()
	t.armed = 0
	if t.deadline > now.UnixNano() {
		t.arm(l, now, expired)
		return false
	}
	return true
}

// start begins to read.
func (c *conn) start() {
	// Not loop.Now: a connection is accepted before the turn has begun for which the loop woke up.
	now := time.Now()
	if c.clock.set(now, orDefault(c.srv.IdleTimeout, 75*time.Second)) {
		c.clock.arm(c.loop, now, c.expired)
	}
	c.end.SetHandler(c)
}

// write writes b.
func (c *conn) write(b []byte) {
	if len(b) > 0 {
		add(&c.sent, len(b))
		c.end.Write(b)
	}
}

// scratch is what OnData needs while it runs.
type scratch struct {
	req http1.Request
	out []byte
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

func (c *conn) OnData(b []byte) (used int) {
	used = c.take(b)
	add(&c.received, used)
	return used
}

func (c *conn) take(b []byte) (used int) {
	switch c.state {
	case busy, discard:
		used = c.feed(b)
		if c.state != idle || c.paused {
			return used
		}
	case closing, gone:
		return len(b)
	}
	s := scratches.Get().(*scratch)
	used += c.requests(b[used:], s)
	if cap(s.out) <= 2*fastBatch {
		scratches.Put(s)
	}
	return used
}

// requests answers or starts the requests in b.
func (c *conn) requests(b []byte, s *scratch) (used int) {
	out := s.out[:0]
	var fast uint64
	for c.state <= head && used < len(b) {
		n, err := c.srv.Limits.ParseRequest(b[used:], &s.req)
		if err != nil {
			e := err.(*http1.Error)
			out = http1.AppendError(out, c.loop.Now(), e.Status, e.Reason, false, false)
			c.write(out)
			c.close()
			return len(b)
		}
		if n == 0 {
			if c.state == idle {
				c.state = head
				c.await(orDefault(c.srv.HeadTimeout, 10*time.Second))
			}
			break
		}
		used += n
		if c.srv.Fast != nil && s.req.Framing == http1.NoBody && !s.req.Close && s.req.Minor == 1 {
			var ok bool
			if out, ok = c.srv.Fast(&s.req, out); ok {
				c.state = idle
				fast++
				if c.last {
					break
				}
				if len(out) >= fastBatch {
					c.write(out)
					out = out[:0]
					if c.full() {
						break
					}
				}
				continue
			}
		}
		if len(out) > 0 {
			c.write(out)
			out = out[:0]
		}
		c.begin(&s.req)
		if c.state == busy {
			if used += c.feed(b[used:]); c.eof && c.state == busy && !c.ahead {
				c.gone()
			}
		}
	}
	if len(out) > 0 {
		c.write(out)
		c.full()
	}
	if fast > 0 {
		c.begun.Add(fast)
	}
	if used > 0 && c.state == idle {
		if c.idle(); c.last || c.eof {
			c.close()
		}
	} else if c.state == head && c.eof {
		c.close()
	}
	s.out = out
	return used
}

// full pauses the connection if the client does not take its answers; OnDrain goes on.
func (c *conn) full() bool {
	if c.state <= head && c.end.Pending() > c.end.HighMark() {
		c.pause()
	}
	return c.paused
}

// begin starts a handler for r.
func (c *conn) begin(r *http1.Request) {
	if string(r.Method) == "CONNECT" {
		c.write(http1.AppendError(nil, c.loop.Now(), http.StatusNotImplemented, "CONNECT is not supported", false, false))
		c.close()
		return
	}
	x, err := newExchange(c, c.loop, &c.session, r, false)
	if err != nil { // net/url is stricter than http1 about something
		c.write(http1.AppendError(nil, c.loop.Now(), http.StatusBadRequest, "invalid request target", false, false))
		c.close()
		return
	}
	c.x = x
	c.state = busy
	c.ahead = false
	c.progress()
	c.srv.dispatch(x)
}

// feed passes the request's body on. Input behind the body stays unread until the answer is written.
func (c *conn) feed(b []byte) (used int) {
	x := c.x
	c.progress()
	if x.dec.Done() || x.lost {
		c.behind(len(b))
		return 0
	}
	x.mu.Lock()
	var done bool
	for {
		payload, n, d, err := x.dec.Next(b[used:])
		used += n
		switch {
		case c.state == discard || x.bodyClosed:
			x.discarded += n
		default:
			x.in = append(x.in, payload...)
		}
		if done = d; done {
			x.whole(x.dec.Trailers)
		}
		if err != nil || x.discarded > maxDiscard {
			if x.inErr = err; err == nil {
				x.inErr = http.ErrBodyReadAfterClose
			}
			x.lost = true // we do not know where the next request starts
			used = len(b)
		}
		if done || n == 0 || x.lost {
			break
		}
	}
	full := c.state == busy && len(x.in)-x.inOff > maxUnread
	x.stuffed = full && !done
	x.mu.Unlock()
	x.cond.Broadcast()
	switch {
	case c.state == discard && x.lost:
		c.close()
	case c.state == discard && done:
		c.next()
	case full || x.lost:
		c.pause()
	case done:
		c.behind(len(b) - used)
	}
	return used
}

// behind knows of n bytes behind the request that is being answered. Some are kept, so that it is noticed if the client goes away;
// more wait in its socket.
func (c *conn) behind(n int) {
	if c.ahead = n > 0; n > min(orDefault(c.srv.MaxAhead, 16<<10), maxAhead) {
		c.pause()
	}
}

// answered is called when x's handler has returned and its answer is written.
func (c *conn) answered(x *exchange, keep bool) {
	switch {
	case c.x != x:
	case !keep || x.lost || c.last || c.eof && !c.ahead:
		c.close()
	case !x.dec.Done():
		c.state = discard
		c.unpause()
	default:
		c.next()
	}
}

// next makes the connection ready for another request.
func (c *conn) next() {
	c.x = nil
	c.idle()
	if c.last || c.eof && !c.ahead {
		c.close()
		return
	}
	if c.ahead { // have it shown again
		c.ahead = false
		c.pause()
	}
	if c.end.Pending() > c.end.HighMark() {
		c.pause()
	} else {
		c.unpause()
	}
}

func (c *conn) idle() {
	c.state = idle
	c.await(orDefault(c.srv.IdleTimeout, 75*time.Second))
}

func (c *conn) OnEOF() {
	c.eof = true
	switch {
	case c.state != busy:
		c.close()
		return
	case c.ahead: // it has asked for more before: that is answered, too
		return
	}
	c.gone()
}

// gone tells the handler that the client has finished sending.
func (c *conn) gone() {
	// As in net/http, a client that has finished sending is taken for gone, but gets its answer.
	x := c.x
	x.mu.Lock()
	if x.inErr == nil {
		x.inErr, x.lost = io.ErrUnexpectedEOF, true
	}
	x.mu.Unlock()
	x.cond.Broadcast()
	x.cancel()
}

func (c *conn) OnDrain() {
	if c.state == gone {
		return
	}
	if c.x != nil && c.x.blocked {
		c.x.blocked = false
		c.x.sentOut()
		c.progress()
	}
	if c.state <= head {
		c.unpause()
	}
}

func (c *conn) OnClose(err error) {
	if err == nil {
		err = io.ErrClosedPipe
	}
	if c.x != nil {
		c.x.fail(err)
	}
	c.x = nil
	c.state = gone
	c.clock.timer.Stop()
	c.leave()
}

// drain implements connection: what is under way is the last request. A connection that is new may have sent one that we have not seen.
func (c *conn) drain() {
	c.loop.Post(func() {
		switch {
		case c.state == gone:
		case c.state == idle && c.begun.Load() > 0:
			c.close()
		case c.state == idle:
			c.last = true
			c.await(newcomerTime)
		default:
			c.last = true
		}
	})
}

// newcomerTime is how long a connection without a request is let be by Shutdown.
const newcomerTime = time.Second

// cut implements connection.
func (c *conn) cut(err error) {
	c.loop.Post(func() {
		if c.state != gone {
			c.end.Abort(err)
		}
	})
}

// close ends the connection when what is written is out.
func (c *conn) close() {
	c.state = closing
	if c.x != nil {
		c.x.fail(io.ErrClosedPipe)
		c.x = nil
	}
	c.progress()
	c.end.Close()
}

func (c *conn) pause() {
	if !c.paused {
		c.paused = true
		c.end.Pause()
	}
}

func (c *conn) unpause() {
	if c.paused {
		c.paused = false
		c.end.Resume()
	}
}

// await sets the time until which something has to happen.
func (c *conn) await(d time.Duration) {
	c.pending = int32(c.end.Pending())
	if now := c.loop.Now(); c.clock.set(now, d) {
		c.clock.arm(c.loop, now, c.expired)
	}
}

// progress gives the client StallTimeout for its next byte.
func (c *conn) progress() { c.await(orDefault(c.srv.StallTimeout, time.Minute)) }

var (
	errStalled = errors.New("http: client makes no progress")
	errSlow    = &http1.Error{Status: http.StatusRequestTimeout, Reason: "request took too long"}
)

// expired is called by the timer: at the deadline, or before it, if that has been put off.
func (c *conn) expired() {
	if !c.clock.rang(c.loop, c.expired) {
		return
	}
	switch n := c.end.Pending(); {
	case n > 0 && n != int(c.pending): // the client still takes what we sent before
		c.progress()
		return
	case n > 0:
		c.end.Abort(errStalled)
		return
	}
	switch c.state {
	case head:
		c.write(http1.AppendError(nil, c.loop.Now(), errSlow.Status, errSlow.Reason, false, false))
		c.close()
	case busy:
		c.x.starve()
		c.progress()
	case closing:
		c.end.Abort(errStalled)
	default:
		c.close()
	}
}

// The carrier of an exchange.

func (c *conn) register() *session         { return &c.session }
func (c *conn) carries(x *exchange) bool   { return c.x == x }
func (c *conn) crowded() bool              { return c.end.Pending() > c.end.HighMark() }
func (c *conn) resume(*exchange)           { c.unpause() }
func (c *conn) abort(_ *exchange, e error) { c.end.Abort(e) }
func (c *conn) goOn(*exchange)             { c.write([]byte(http1.Continue)) }

func (c *conn) put(_ *exchange, _ *http1.Response, pieces *[3][]byte) {
	for _, b := range pieces {
		c.write(b)
	}
}

func (c *conn) conclude(x *exchange, p *part, keep bool) {
	c.put(x, nil, &p.pieces)
	c.answered(x, keep)
}

func (c *conn) refuse(x *exchange) {
	head := x.req.Method == http.MethodHead
	c.write(http1.AppendError(nil, c.loop.Now(), http.StatusInternalServerError, "internal server error", false, head))
	c.close()
}

// give hands the connection over.
func (c *conn) give(*exchange) End {
	c.x = nil
	c.state = gone
	c.clock.timer.Stop()
	c.leave()
	return c.end
}
