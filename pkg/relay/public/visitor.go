package public

import (
	"errors"
	"net/netip"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/http1"
	"culvert.dev/pkg/http2"
	"culvert.dev/pkg/rtsp"
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
	many                 // the connection speaks HTTP/2: see visitor2
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
	relay    *Relay
	start    time.Time
	index    int    // in relay.loops
	numbers  uint64 // see number
	endpoint http2.Endpoint

	// Scratch of the callback that is running.
	req  http1.Request
	host []byte
	out  []byte // what an HTTP/1.1 visitor is about to get; empty between callbacks
	up   []byte // and what an HTTP/1.1 server is

	extra []http1.Field // what a server is told of a visitor besides

	heads heads3

	free  []*exchange
	first *visitor // of those that are here

	players          *player // that are here
	tunnels          rtspTunnels
	rtspIn, rtspBack rtsp.Message
	rtspOut          []rtsp.Field
	frames           []byte   // for one player, see fanViewer
	pieces           [][]byte // for the logs of hubs

	access accessLog

	slots   int       // of all that is recent
	strays  recent    // requests for no service
	news    []Request // of this turn, for those who follow
	unsaid  uint64    // those that are too many
	tellAll func()    // tellFollowers, made once

	counters   Counters
	handshakes Handshakes
	refused    Troubles // answers of our own for which there is no service
}

// add and remove keep the list of the loop's visitors.
func (l *loop) add(v *visitor)    { push(&l.first, v) }
func (l *loop) remove(v *visitor) { take(&l.first, v) }

// drain closes the visitors that wait for nothing. Those that have come and wait
// for their first answer are let be, unless all is set; it returns how many.
func (l *loop) drain(all bool) (newcomers int) {
	for v := l.first; v != nil; v = v.after {
		switch {
		case v.phase == shaking && all:
			v.conn.Abort(errDraining)
		case v.phase == many:
			if v.two.drain(all) {
				newcomers++
			}
		case v.phase == idle && v.asked, (v.phase == idle || v.phase == reading || v.phase == held) && all:
			v.close()
		case v.phase == shaking, v.phase == idle, v.phase == reading, v.phase == held:
			newcomers++
		}
	}
	return newcomers + l.drainPlayers(all) + l.tunnels.drain(all)
}

// since is the time of the current turn in nanoseconds since the loop's start.
func (l *loop) since() int64 { return int64(l.Now().Sub(l.start)) }

// visitor is one HTTP/1.1 connection to the relay, from accept until it is closed
// or spliced, and the front of its exchanges. It is owned by the loop of its
// connection.
type visitor struct {
	client
	relay *Relay
	loop  *loop
	conn  *evloop.Conn
	ex    *exchange // while busy
	two   *visitor2 // while many

	place[*visitor] // in the loop's list

	due     deadline // of the phase
	pending int      // of the connection, when it was last looked at
	phase   phase
	looks   uint8 // that have found no service, of a request that is held
	asked   bool  // a request has come
	eof     bool  // the visitor has sent its end of stream
	player  bool  // it speaks RTSP, and is on its own once TLS is done

	// Of the request that is under way.
	rest    http1.Body    // what is left of it
	framing http1.Framing // of the response
	minor   uint8         // version
	isHead  bool          // it is HEAD
	last    bool          // no other one on this connection
}

// accept takes a new connection of a listener of HTTP or RTSP. It runs on the
// connection's loop.
func (r *Relay) accept(c *evloop.Conn, secure, player bool) {
	l := r.loopOf(c.Loop())
	r.meet(c, l, func(addr netip.AddrPort) { l.receive(c, addr, secure, player) })
}

// receive takes the connection of a visitor whose address is known.
func (l *loop) receive(c *evloop.Conn, addr netip.AddrPort, secure, player bool) {
	r := l.relay
	v := &visitor{relay: r, loop: l, conn: c, player: player, client: client{addr: addr, secure: secure}}
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
			v.refuseHello(err)
		default:
			v.meetHello(sni)
		}
	})
}

// shake does the TLS handshake, on the loop where the visitor will most likely
// have to be: the one of the session that serves the server name. Or the connection
// is passed through, and the handshake is somebody else's.
func (v *visitor) shake() {
	switch {
	case v.player && v.isElsewhere():
		v.refuseTLS(alertInternalError)
		return
	case !v.player && v.passThrough():
		return
	}
	v.loop.host = appendHost(v.loop.host[:0], []byte(v.sni))
	if s := v.relay.routes.Load().any(v.loop.host, true); s != nil && s.session.loop != v.loop {
		v.move(s.session.loop, v.startTLS)
		return
	}
	v.startTLS()
}

func (v *visitor) startTLS() {
	if !v.relay.mayShake(v.addr.Addr(), v.sni == v.relay.Domain) {
		v.loop.counters.HandshakesLimited++
		v.conn.Abort(errHandshakes)
		return
	}
	v.phase = shaking
	v.await(tlsTime)
	cfg := v.relay.tls
	if v.player {
		cfg = v.relay.tlsRTSP
	}
	v.conn.StartTLS(cfg, false, tlsTime, func(err error) {
		if err != nil {
			v.loop.handshake(0, err)
			return
		}
		if v.phase == gone {
			return
		}
		state := v.conn.TLS()
		v.tls = state.Version
		v.loop.handshake(v.tls, nil)
		v.certs = state.PeerCertificates
		if state.NegotiatedProtocol == "h2" {
			v.serve2()
			return
		}
		v.serve()
	})
}

// serve begins to read requests.
func (v *visitor) serve() {
	if v.player {
		v.play()
		return
	}
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
	v.due.stop()
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
		v.due.stop()
		v.loop.remove(v)
	}
	v.phase = gone
	v.relay.admission.leave(v.addr.Addr(), v.verdict)
}

// await gives the current phase d of time.
func (v *visitor) await(d time.Duration) { v.due.set(v.loop, d, v) }

func (v *visitor) onTimer() {
	if !v.due.reached(v.loop, v) {
		return
	}
	switch v.phase {
	case shaking, asking:
		v.conn.Abort(errDeadline)
	case idle:
		v.close()
	case reading:
		v.loop.counters.Rejected++
		v.refuse(troubleSlow)
	case held:
		v.release()
	case busy:
		v.await(busyCheck)
		if v.eof && v.conn.Pending() == 0 && v.ex.quiet() >= halfTime {
			v.conn.Abort(errDeadline)
			return
		}
		v.ex.check()
	case many:
		v.two.tick()
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
				n = v.readBody(b[used:])
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
		// Behind a complete request it is most likely the visitor's end, but may
		// be that of a simple client which still wants its answer: halfTime.
		v.last = true
		if !v.ex.sent {
			v.forget()
			v.close()
		}
	}
}

func (v *visitor) OnDrain() {
	if v.phase == busy {
		v.ex.drained()
	}
}

func (v *visitor) OnClose(error) {
	if v.ex != nil {
		v.forget()
	}
	v.leave()
}

// forget cancels the exchange.
func (v *visitor) forget() {
	ex := v.ex
	v.ex = nil
	ex.cancel()
}

// readHead takes a request head from b, which has at least one byte, and begins
// what it asks for. It returns the bytes used: 0 if the head is not complete, or
// if it is to be read again, perhaps on another loop.
func (v *visitor) readHead(b []byte) int {
	l := v.loop
	req := &l.req
	n, err := http1.ParseRequest(b, req)
	if req.Host == nil {
		n, err = v.hostless(b, n, err)
	}
	if err != nil {
		l.counters.Rejected++
		v.refuse(rejection(err))
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
	if v.port == 0 {
		v.port = v.conn.LocalAddr().Port()
	}
	v.minor, v.proto = uint8(req.Minor), "HTTP/1.1"
	if req.Minor == 0 {
		v.proto = "HTTP/1.0"
	}
	v.isHead = string(req.Method) == "HEAD"
	v.last = req.Close || req.Path == nil || v.verdict != admitted
	v.rest.Reset(req.Framing, req.ContentLength)
	switch d := l.decide(&v.client, req); d.action {
	case doServe:
		v.looks = 0
		v.phase = busy
		if v.ex = l.serve(v, d.service, req); v.ex != nil {
			v.await(busyCheck)
		}
	case doMove:
		v.move(d.service.session.loop, v.serve)
		return 0
	case doHold:
		v.wait(d.hold(v.release))
		return 0
	case doLook:
		v.look()
		return 0
	case doProve:
		v.prove(string(l.host), string(req.Path))
		return 0
	case doOwn:
		if !v.ownDomain() {
			return 0
		}
	case doPlay:
		v.socket(nil, req)
	case doAnswer:
		l.logDecision(&v.client, req, d)
		v.last = v.last || d.trouble == troubleNoCert || // another handshake asks again
			opensTunnel(req) // and what follows may be no HTTP
		v.answer(d.trouble, d.fields...)
	}
	return n
}

// readBody passes on what b holds of the request's body.
func (v *visitor) readBody(b []byte) (used int) {
	ex := v.ex
	for used < len(b) && !ex.sent {
		payload, n, done, err := v.rest.Next(b[used:])
		if err != nil {
			v.last = true
			ex.reject(rejection(err))
			return used
		}
		used += n
		if len(payload) > 0 {
			ex.body(payload)
		}
		if done {
			ex.end(v.rest.Trailers)
		}
		if n == 0 {
			break
		}
	}
	ex.pushed(used)
	return used
}

// hold keeps a request if it is not decided yet who serves it. It is read again
// then. It reports whether it does.
func (v *visitor) hold(g *group) bool {
	if !g.undecided {
		return false
	}
	v.wait(g.hold(v.release))
	return true
}

// wait keeps a request until release is called, as whoever has it queued will do,
// or else until the next look.
func (v *visitor) wait(queued bool) {
	if !queued {
		v.look()
		return
	}
	v.phase = held
	v.conn.Pause()
	v.due.stop() // the decision has a deadline of its own
}

// look keeps a request, which is read again soon, and then later and later.
func (v *visitor) look() {
	v.phase = held
	v.conn.Pause()
	v.await(holdTime << v.looks)
	v.looks = min(v.looks+1, 3)
}

// release has a request that was held read again, or a ClientHello be decided about,
// if it still is.
func (v *visitor) release() {
	switch {
	case v.phase != held:
	case v.secure && v.conn.TLS() == nil:
		v.phase = shaking
		v.await(tlsTime)
		v.conn.Resume()
		v.shake()
	default:
		v.phase = reading
		v.await(headTime)
		v.conn.Resume()
	}
}

// refuse answers a request and closes.
func (v *visitor) refuse(t *trouble) {
	v.last = true
	if v.proto == "" {
		v.proto = "HTTP/1.1"
	}
	v.loop.logAnswer(&v.client, nil, t)
	v.answer(t)
}

// turnDown answers a request for the relay itself, the one in loop.req.
func (v *visitor) turnDown(t *trouble) {
	v.loop.logAnswer(&v.client, &v.loop.req, t)
	v.answer(t)
}

// answer says what is wrong with a request, and goes on with the next one, or closes
// if some of this one is unread.
func (v *visitor) answer(t *trouble, fields ...http1.Field) {
	v.ex = nil
	v.last = v.last || !v.rest.Done() || v.eof || v.relay.draining.Load()
	v.loop.counters.Answered++
	if t.status == 503 {
		fields = append(fields, http1.Field{Name: []byte("Retry-After"), Value: []byte(retryAfter)})
	}
	v.loop.out = http1.AppendError(v.loop.out, time.Now(), t.status, t.text, !v.last, v.isHead, fields...)
	v.flush()
	v.next()
}

func (v *visitor) who() *client { return &v.client }

func (v *visitor) interim(res *http1.Response) {
	if v.minor == 1 { // rfc9110#section-15.2: HTTP/1.0 has none
		v.loop.out, _ = http1.AppendForwardedResponse(v.loop.out, res, 1, true)
	}
}

func (v *visitor) head(res *http1.Response, _ bool) bool {
	// A server that turns a request down before it is complete seldom reads
	// the rest.
	v.last = v.last || !v.rest.Done() && res.Status >= 300 || v.eof || v.relay.draining.Load()
	v.loop.out, v.framing = http1.AppendForwardedResponse(v.loop.out, res, int(v.minor), !v.last)
	v.last = v.last || v.framing == http1.UntilClose
	return v.last
}

// body gathers small pieces.
func (v *visitor) body(p []byte) {
	l, c := v.loop, v.conn
	switch chunked := v.framing == http1.Chunked; {
	case len(l.out)+len(p) <= maxGather && chunked:
		l.out = http1.AppendChunk(l.out, p)
	case len(l.out)+len(p) <= maxGather:
		l.out = append(l.out, p...)
	case chunked:
		c.Write(http1.AppendChunkSize(l.out, len(p)))
		c.Write(p)
		l.out = append(l.out[:0], "\r\n"...)
	default:
		v.flush()
		c.Write(p)
	}
}

func (v *visitor) end(trailers []http1.Field) {
	if v.framing == http1.Chunked {
		v.loop.out = http1.AppendLastChunk(v.loop.out, trailers)
	}
}

func (v *visitor) flush() {
	v.conn.Write(v.loop.out)
	v.loop.out = v.loop.out[:0]
}

func (v *visitor) full() bool    { return v.conn.Pending() > v.conn.HighMark() }
func (v *visitor) waiting() bool { return v.conn.Pending() > 0 }
func (v *visitor) pause()        { v.conn.Pause() }
func (v *visitor) resume()       { v.conn.Resume() }

func (v *visitor) done() {
	v.ex = nil
	v.last = v.last || !v.rest.Done()
	v.next()
}

func (v *visitor) cut() {
	v.ex = nil
	if v.framing == http1.UntilClose {
		v.conn.Abort(errTruncated) // an end of stream would look like the end of the body
	} else {
		v.close()
	}
}

func (v *visitor) abort() {
	v.ex = nil
	v.conn.Abort(errDeadline)
}

func (v *visitor) upgrade(res *http1.Response, st stream, s *service) *trouble {
	v.ex = nil
	v.loop.out, _ = http1.AppendForwardedResponse(v.loop.out, res, int(v.minor), true)
	v.flush()
	v.spliced(st, s, v.upgraded(res))
	return nil
}

// spliced hands the visitor's connection over to a splice with st, a stream of
// s, and ends v. What is left is the count of the visitor.
func (v *visitor) spliced(st stream, s *service, scheme string) *splice {
	v.phase = gone
	v.due.stop()
	v.loop.remove(v)
	j := join(v.conn, st, v.addr, v.verdict, s, scheme)
	if v.eof {
		st.CloseWrite() // the splice has not seen it
	}
	return j
}

// next waits for the next request, or closes when there shall be none.
func (v *visitor) next() {
	if v.last || v.eof || v.relay.draining.Load() {
		v.close()
		return
	}
	v.phase, v.isHead = idle, false
	v.await(idleTime)
	v.conn.Resume()
}
