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

// conn is the HTTP side of one connection. It is owned by the loop.
type conn struct {
	srv  *Server
	end  End
	loop *evloop.Loop
	peer Peer

	state  connState
	paused bool
	eof    bool // the client has finished sending
	x      *exchange

	// One timer serves all timeouts. It is seldom re-armed: when it fires too early it is armed for
	// the rest.
	timer    evloop.Timer
	deadline time.Time
	armed    time.Time // when timer fires; zero: it is not armed
	pending  int       // end.Pending() when deadline was set
}

// scratch is what OnData needs while it runs.
type scratch struct {
	req http1.Request
	out []byte
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

func (c *conn) OnData(b []byte) (used int) {
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
	for c.state <= head && used < len(b) {
		n, err := c.srv.Limits.ParseRequest(b[used:], &s.req)
		if err != nil {
			e := err.(*http1.Error)
			out = http1.AppendError(out, c.loop.Now(), e.Status, e.Reason, false, false)
			c.end.Write(out)
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
				if len(out) >= fastBatch {
					c.end.Write(out)
					out = out[:0]
					if c.full() {
						return used
					}
				}
				continue
			}
		}
		if len(out) > 0 {
			c.end.Write(out)
			out = out[:0]
		}
		c.begin(&s.req)
		if c.state == busy {
			used += c.feed(b[used:])
		}
	}
	if len(out) > 0 {
		c.end.Write(out)
		c.full()
	}
	if used > 0 && c.state == idle {
		c.idle()
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
		c.end.Write(http1.AppendError(nil, c.loop.Now(), http.StatusNotImplemented, "CONNECT is not supported", false, false))
		c.close()
		return
	}
	x, err := newExchange(c, r)
	if err != nil { // net/url is stricter than http1 about something
		c.end.Write(http1.AppendError(nil, c.loop.Now(), http.StatusBadRequest, "invalid request target", false, false))
		c.close()
		return
	}
	c.x = x
	c.state = busy
	c.progress()
	c.srv.dispatch(x)
}

// feed passes the request's body on. Input behind the body stays unread until the answer is written.
func (c *conn) feed(b []byte) (used int) {
	x := c.x
	c.progress()
	if x.dec.Done() || x.lost {
		if len(b) > 0 {
			c.pause()
		}
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
			x.inErr = io.EOF
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
	case full || x.lost || done && used < len(b):
		c.pause()
	}
	return used
}

// answered is called when x's handler has returned and its answer is written.
func (c *conn) answered(x *exchange, keep bool) {
	switch {
	case c.x != x:
	case !keep || x.lost || c.eof:
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
	if c.eof {
		c.close()
	} else if c.end.Pending() > c.end.HighMark() {
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
	if c.state != busy {
		c.close()
		return
	}
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
		c.x.sent()
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
	c.timer.Stop()
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
	now := c.loop.Now()
	c.deadline = now.Add(d)
	c.pending = c.end.Pending()
	if c.armed.IsZero() || c.deadline.Before(c.armed) {
		c.arm(now)
	}
}

// progress gives the client StallTimeout for its next byte.
func (c *conn) progress() { c.await(orDefault(c.srv.StallTimeout, time.Minute)) }

func (c *conn) arm(now time.Time) {
	c.armed = c.deadline
	c.loop.Arm(&c.timer, c.deadline.Sub(now), c.expired)
}

var (
	errStalled = errors.New("http: client makes no progress")
	errSlow    = &http1.Error{Status: http.StatusRequestTimeout, Reason: "request took too long"}
)

// expired is called by the timer: at the deadline, or before it, if that has been put off.
func (c *conn) expired() {
	now := c.loop.Now()
	c.armed = time.Time{}
	if c.deadline.After(now) {
		c.arm(now)
		return
	}
	switch n := c.end.Pending(); {
	case n > 0 && n != c.pending: // the client still takes what we sent before
		c.progress()
		return
	case n > 0:
		c.end.Abort(errStalled)
		return
	}
	switch c.state {
	case head:
		c.end.Write(http1.AppendError(nil, now, errSlow.Status, errSlow.Reason, false, false))
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
