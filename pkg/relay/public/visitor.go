package public

import (
	"errors"
	"net/netip"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/http1"
)

// Deadlines of a visitor. They bound what somebody who has not been routed yet,
// or who does not move, may hold.
const (
	tlsTime    = 10 * time.Second // from accept to the end of the handshake
	headTime   = 10 * time.Second // from the first to the last byte of a request head
	idleTime   = 75 * time.Second // between requests
	bodyTime   = 60 * time.Second // without a byte of a request body
	stuckTime  = 5 * time.Minute  // without a byte taken of a response that waits to be read
	farewell   = 10 * time.Second // for the peer's end of stream after ours
	halfTime   = 10 * time.Second // for the next byte of a response to somebody who has sent the end of stream
	waitTime   = 10 * time.Second // in a session that has lost its link
	busyCheck  = 10 * time.Second // how often the above are looked at during a request
	retryAfter = 5                // seconds, in Retry-After
)

// phase is where a visitor is. It goes down the list, and from busy back to
// idle; closing and gone can follow any other.
type phase uint8

const (
	shaking phase = iota // before the end of the TLS handshake
	idle                 // no byte of the next request has come
	reading              // part of a request head has come
	moving               // on the way to the loop of the session that its request belongs to
	asking               // the relay's own domain answers
	busy                 // an exchange is under way
	closing              // our end of stream is on its way; input is discarded
	gone                 // handed over or closed
)

var (
	errFull      = errors.New("too many connections")
	errDeadline  = errors.New("deadline exceeded")
	errTruncated = errors.New("response ended early")
)

// loop is what the visitors of one event loop share. It is owned by that loop.
type loop struct {
	*evloop.Loop
	relay *Relay
	start time.Time

	// Scratch of the callback that is running.
	req  http1.Request
	host []byte
	head []byte
	out  []byte

	free     []*exchange
	counters Counters
}

// since is the time of the current turn in nanoseconds since the loop's start.
func (l *loop) since() int64 { return int64(l.Now().Sub(l.start)) }

// visitor is one HTTP connection to the relay, from accept until it is closed
// or spliced. It is owned by the loop of its connection.
type visitor struct {
	relay *Relay
	loop  *loop
	conn  *evloop.Conn
	ex    *exchange // while busy

	timer    evloop.Timer
	fires    int64 // when timer does; 0: it is stopped
	deadline int64 // of the phase

	addr    netip.AddrPort
	verdict verdict
	secure  bool // https
	phase   phase
	eof     bool // the visitor has sent its end of stream
	pending int  // of the connection, when it was last looked at
}

// accept takes a new connection of an HTTP listener. It runs on the
// connection's loop.
func (r *Relay) accept(c *evloop.Conn, secure bool) {
	addr := c.RemoteAddr()
	l := r.loopOf(c.Loop())
	v := &visitor{relay: r, loop: l, conn: c, addr: addr, secure: secure}
	switch v.verdict = r.admission.enter(addr.Addr()); v.verdict {
	case turnedAway:
		l.counters.TurnedAway++
		c.Abort(errFull)
		return
	case sayFull:
		l.counters.TurnedAway++
	}
	if !secure {
		v.serve()
		return
	}
	c.SetHandler(discard{v})
	v.await(tlsTime)
	c.PeekClientHello(func(sni string, _ []string, err error) {
		switch {
		case v.phase == gone:
		case err != nil:
			c.Abort(err)
		default:
			v.shake(sni)
		}
	})
}

// shake does the TLS handshake, on the loop where the visitor will most likely
// have to be: the one of the session that serves sni.
func (v *visitor) shake(sni string) {
	if s := v.relay.routes.Load().any(sni, true); s != nil && s.session.loop != v.loop {
		v.move(s.session.loop, v.startTLS)
		return
	}
	v.startTLS()
}

func (v *visitor) startTLS() {
	v.await(tlsTime)
	v.conn.StartTLS(v.relay.TLS, false, tlsTime, func(err error) {
		if err != nil {
			v.loop.counters.HandshakesFailed++
			return
		}
		if v.phase != gone {
			v.serve()
		}
	})
}

// serve begins to read requests.
func (v *visitor) serve() {
	v.phase = idle
	v.await(idleTime)
	v.conn.SetHandler(v)
}

// discard is the handler of a connection before its TLS handshake. It notices
// the end.
type discard struct{ v *visitor }

func (d discard) OnData(b []byte) int { return 0 }
func (d discard) OnEOF()              { d.v.conn.Abort(errTruncated) }
func (d discard) OnDrain()            {}
func (d discard) OnClose(error)       { d.v.leave() }

// move hands v to another loop, once the callbacks of this turn have returned,
// and runs f there.
func (v *visitor) move(to *loop, f func()) {
	v.phase = moving
	v.stop()
	v.conn.Pause()
	v.loop.AfterTurn(func() {
		if v.phase == gone {
			return
		}
		v.loop = to
		v.conn.Move(to.Loop, func() {
			if v.phase == gone || v.conn.Loop() != to.Loop {
				return
			}
			f()
			v.conn.Resume()
		})
	})
}

// leave ends the visitor: its connection is closed.
func (v *visitor) leave() {
	if v.phase == gone {
		return
	}
	v.phase = gone
	v.stop()
	v.relay.admission.leave(v.addr.Addr(), v.verdict)
}

// await gives the current phase d of time.
func (v *visitor) await(d time.Duration) {
	v.deadline = v.loop.since() + int64(d)
	if v.fires == 0 || v.fires > v.deadline {
		v.arm(d)
	}
}

// arm arms the timer. Most deadlines move on before they are reached, so it is
// left alone then, and armed for the rest when it fires.
func (v *visitor) arm(d time.Duration) {
	v.fires = v.loop.since() + int64(d)
	v.loop.Arm(&v.timer, d, v.onTimer)
}

func (v *visitor) stop() {
	v.timer.Stop()
	v.fires = 0
}

func (v *visitor) onTimer() {
	v.fires = 0
	if left := v.deadline - v.loop.since(); left > 0 {
		v.arm(time.Duration(left))
		return
	}
	switch v.phase {
	case shaking, asking:
		v.conn.Abort(errDeadline)
	case idle:
		v.close()
	case reading:
		v.loop.counters.Rejected++
		v.answer(408, true)
	case busy:
		v.await(busyCheck)
		v.ex.check()
	case closing:
		// Whoever still takes what we have sent gets the time for it.
		if p := v.conn.Pending(); p > 0 && p != v.pending {
			v.pending = p
			v.await(bodyTime)
			return
		}
		v.conn.Abort(errDeadline)
	}
}

// close ends the connection in good order: what is queued goes out, then the
// end of stream. Unlike Conn.Close it waits for a slow reader.
func (v *visitor) close() {
	if v.phase == closing || v.phase == gone {
		return
	}
	v.phase = closing
	v.pending = v.conn.Pending()
	v.conn.CloseWrite()
	v.conn.Resume()
	if v.pending > 0 {
		v.await(bodyTime)
	} else {
		v.await(farewell)
	}
}

// OnData takes requests and their bodies.
func (v *visitor) OnData(b []byte) (used int) {
	for used < len(b) {
		n := 0
		switch v.phase {
		case idle, reading:
			n = v.readHead(b[used:])
		case busy:
			if v.ex.sent {
				// The next request waits in the connection for its turn.
				v.conn.Pause()
			} else {
				n = v.ex.forwardBody(b[used:])
			}
		case asking, moving:
			v.conn.Pause()
		case shaking, closing, gone:
			return len(b)
		}
		if n == 0 {
			break
		}
		used += n
	}
	return used
}

func (v *visitor) OnEOF() {
	v.eof = true
	switch v.phase {
	case idle, reading:
		v.close()
	case busy:
		v.ex.visitorEOF()
	}
}

func (v *visitor) OnDrain() {
	if v.phase == busy {
		v.ex.visitorDrained()
	}
}

func (v *visitor) OnClose(err error) {
	if ex := v.ex; ex != nil {
		v.ex = nil
		ex.cancel()
	}
	v.leave()
}

// next waits for the next request, or closes when there shall be none.
func (v *visitor) next(close bool) {
	if close || v.eof || v.relay.draining.Load() {
		v.close()
		return
	}
	v.phase = idle
	v.await(idleTime)
	v.conn.Resume()
}
