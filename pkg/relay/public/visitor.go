package public

import (
	"errors"
	"net/netip"
	"strings"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/http1"
)

// Deadlines of a visitor. They bound what somebody who has not been routed yet,
// or who does not move, may hold.
const (
	tlsTime   = 10 * time.Second      // from accept to the end of the handshake
	headTime  = 10 * time.Second      // from the first to the last byte of a request head
	idleTime  = 75 * time.Second      // between requests
	bodyTime  = 60 * time.Second      // without a byte of a request body, or of a last response
	stuckTime = 5 * time.Minute       // without a byte taken of a response that waits to be read
	farewell  = 10 * time.Second      // for the peer's end of stream after ours
	halfTime  = 10 * time.Second      // for the next byte of a response to somebody who has sent the end of stream
	waitTime  = 10 * time.Second      // in a session that has lost its link
	busyCheck = 10 * time.Second      // how often the above are looked at during a request
	holdTime  = 50 * time.Millisecond // until the first look for the service of a request that is held; doubles thrice
)

// retryAfter is what Retry-After says: seconds in which a site comes back after
// a cut, as a rule.
const retryAfter = "5"

// maxFree is how many exchanges that are over a loop keeps for the next ones.
const maxFree = 256

// phase is where a visitor is. It goes down the list, and from busy back to
// idle; closing and gone can follow any other.
type phase uint8

const (
	shaking phase = iota // before the end of the TLS handshake
	idle                 // no byte of the next request has come
	reading              // part of a request head has come
	held                 // a request waits for its site to come back, see Relay.Grace, or for a takeover
	moving               // on the way to the loop of the session that its request belongs to
	asking               // the relay's own domain answers, or a link is made
	busy                 // an exchange is under way
	closing              // our end of stream is on its way; input is discarded
	gone                 // handed over or closed
)

var (
	errDraining  = errors.New("the relay is shutting down")
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
	out  []byte

	free     []*exchange
	first    *visitor // of those that are here
	counters Counters
}

// add and remove keep the list of the loop's visitors.
func (l *loop) add(v *visitor) {
	if v.after = l.first; v.after != nil {
		v.after.before = v
	}
	l.first = v
}

func (l *loop) remove(v *visitor) {
	if v.before != nil {
		v.before.after = v.after
	} else {
		l.first = v.after
	}
	if v.after != nil {
		v.after.before = v.before
	}
	v.before, v.after = nil, nil
}

// drain closes the visitors that wait for nothing. Those that have come and wait
// for their first answer are let be, unless all is set; it returns how many.
func (l *loop) drain(all bool) (newcomers int) {
	for v := l.first; v != nil; v = v.after {
		switch {
		case v.phase == shaking && all:
			v.conn.Abort(errDraining)
		case v.phase == idle && v.asked, (v.phase == idle || v.phase == reading || v.phase == held) && all:
			v.close()
		case v.phase == shaking, v.phase == idle, v.phase == reading, v.phase == held:
			newcomers++
		}
	}
	return newcomers
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

	before, after *visitor // in the loop's list

	timer    evloop.Timer
	fires    int64 // when timer does; 0: it is stopped
	deadline int64 // of the phase

	addr    netip.AddrPort
	port    uint16 // that the visitor came in by; 0 until the first exchange
	verdict verdict
	secure  bool // https
	phase   phase
	looks   uint8 // that have found no service, of a request that is held
	asked   bool  // a request has come
	eof     bool  // the visitor has sent its end of stream
	pending int   // of the connection, when it was last looked at
}

// accept takes a new connection of an HTTP listener. It runs on the
// connection's loop.
func (r *Relay) accept(c *evloop.Conn, secure bool) {
	l := r.loopOf(c.Loop())
	r.meet(c, l, func(addr netip.AddrPort) { l.receive(c, addr, secure) })
}

// receive takes the connection of a visitor whose address is known.
func (l *loop) receive(c *evloop.Conn, addr netip.AddrPort, secure bool) {
	r := l.relay
	v := &visitor{relay: r, loop: l, conn: c, addr: addr, secure: secure}
	switch v.verdict = r.admission.enter(addr.Addr()); v.verdict {
	case turnedAway:
		l.counters.TurnedAway++
		c.Abort(errFull)
		return
	case sayFull:
		l.counters.TurnedAway++
	}
	l.add(v)
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
	v.loop.host = appendHost(v.loop.host[:0], []byte(sni))
	if s := v.relay.routes.Load().any(v.loop.host, true); s != nil && s.session.loop != v.loop {
		v.move(s.session.loop, v.startTLS)
		return
	}
	v.startTLS()
}

func (v *visitor) startTLS() {
	v.phase = shaking
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

// move hands v to another loop and runs f there, unless the connection ends
// before.
func (v *visitor) move(to *loop, f func()) {
	v.phase = moving
	v.stop()
	v.loop.remove(v)
	v.conn.Pause()
	v.conn.Move(to.Loop, func() {
		v.loop = to
		to.add(v)
		v.conn.Resume()
		f()
	})
}

// leave ends the visitor: its connection is closed.
func (v *visitor) leave() {
	if v.phase == gone {
		return
	}
	if v.phase != moving { // or else v.loop is not the one that runs this
		v.stop()
		v.loop.remove(v)
	}
	v.phase = gone
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
		v.answer(troubleSlow, false, true)
	case held:
		v.release()
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
	v.pending = 0
	v.conn.CloseWrite()
	v.conn.Resume()
	v.await(farewell)
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
		case closing:
			return len(b)
		default:
			// The rest is kept: for the joiner, for the splice, or for the other loop.
			return used
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

func (v *visitor) OnClose(error) {
	if v.ex != nil {
		v.ex.cancel()
	}
	v.leave()
}

// readHead takes a request head from b, which has at least one byte, and begins
// what it asks for. It returns the bytes used: 0 if the head is not complete, or
// if it is to be read again on another loop.
func (v *visitor) readHead(b []byte) int {
	l, r := v.loop, v.relay
	req := &l.req
	n, err := http1.ParseRequest(b, req)
	if err != nil {
		l.counters.Rejected++
		v.answer(rejection(err), false, true)
		return len(b)
	}
	if n == 0 {
		if v.phase == idle {
			v.phase = reading
			v.await(headTime)
		}
		return 0
	}
	v.asked = true
	// An answer of our own leaves the body of the request unread.
	head, close := string(req.Method) == "HEAD", req.Close || req.Framing != http1.NoBody && req.ContentLength != 0
	if v.verdict != admitted {
		v.answer(troubleFull, head, true)
		return n
	}
	if req.Path == nil { // CONNECT
		v.answer(troubleMethod, head, true)
		return n
	}
	l.host = appendHost(l.host[:0], req.Host)
	if v.secure && r.own(l.host, req.Path) {
		if !v.ownDomain(head, close) {
			return 0
		}
		return n
	}
	routes := r.routes.Load()
	if ambiguous(req.Path) && routes.divided(l.host, v.secure) {
		l.counters.Rejected++
		v.answer(troublePath, head, close)
		return n
	}
	if s := routes.find(l.host, req.Path, v.secure); s != nil {
		if s.session.loop != l {
			v.move(s.session.loop, v.serve)
			return 0
		}
		if v.hold(s.session.group) {
			return 0
		}
		v.looks = 0
		v.begin(s)
		return n
	}
	host, path := string(l.host), string(req.Path)
	switch {
	case !v.secure && (host == r.Domain || routes.find(l.host, req.Path, true) != nil || routes.allowed(host, path, true)) && v.redirect(head, close):
	case routes.allowed(host, path, v.secure) && r.hasJustBegun():
		v.look()
		return 0
	case routes.allowed(host, path, v.secure):
		v.answer(troubleAway, head, close)
	default:
		v.answer(troubleService, head, close)
	}
	return n
}

// hold keeps a request if it is not decided yet who serves it. It is read again then.
func (v *visitor) hold(g *group) bool {
	switch {
	case !g.undecided:
		return false
	case g.hold(v.release):
		v.phase = held
		v.conn.Pause()
		v.stop() // the decision has a deadline of its own
	default:
		v.look()
	}
	return true
}

// look keeps a request, which is read again soon, and then later and later.
func (v *visitor) look() {
	v.phase = held
	v.conn.Pause()
	v.await(holdTime << v.looks)
	v.looks = min(v.looks+1, 3)
}

// release has a request that was held read again, if it still is.
func (v *visitor) release() {
	if v.phase == held {
		v.phase = reading
		v.await(headTime)
		v.conn.Resume()
	}
}

// redirect answers a request in the clear for something that is served by https,
// if there is an https listener.
func (v *visitor) redirect(head, close bool) bool {
	port, ok := v.relay.httpsPort()
	if !ok {
		return false
	}
	req := &v.loop.req
	status := 308 // keeps the method
	if m := string(req.Method); m == "GET" || m == "HEAD" {
		status = 301
	}
	location := append([]byte("https://"), v.loop.host...)
	if strings.IndexByte(string(v.loop.host), ':') >= 0 {
		location = append(append([]byte("https://["), v.loop.host...), ']')
	}
	location = append(location, port...)
	location = append(location, req.Path...)
	if req.Query != nil {
		location = append(append(location, '?'), req.Query...)
	}
	v.reply(status, "This service is reached by https.", head, close, http1.Field{Name: []byte("Location"), Value: location})
	return true
}

// answer says what is wrong with a request.
func (v *visitor) answer(t *trouble, head, close bool) {
	if t.status == 503 {
		v.reply(t.status, t.text, head, close, http1.Field{Name: []byte("Retry-After"), Value: []byte(retryAfter)})
		return
	}
	v.reply(t.status, t.text, head, close)
}

// reply answers a request with a text and goes on with the next, or closes.
func (v *visitor) reply(status int, text string, head, close bool, fields ...http1.Field) {
	close = close || v.eof || v.relay.draining.Load()
	v.loop.counters.Answered++
	v.loop.out = http1.AppendError(v.loop.out[:0], time.Now(), status, text, !close, head, fields...)
	v.conn.Write(v.loop.out)
	v.next(close)
}

func (v *visitor) scheme() string {
	if v.secure {
		return "https"
	}
	return "http"
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
