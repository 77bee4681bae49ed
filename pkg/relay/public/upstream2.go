package public

import (
	"errors"
	"net/netip"
	"slices"
	"time"

	"culvert.dev/pkg/http1"
	"culvert.dev/pkg/http2"
	"culvert.dev/pkg/tunnel"
	"culvert.dev/pkg/websocket"
)

// Connections to targets that speak HTTP/2.
const (
	maxCalls   = 100              // requests at a time on one
	keepTime2  = time.Minute      // without a request; the server says so when it closes one
	readyTime  = 30 * time.Second // from opening one to the server's settings, its look-up, connect and TLS handshake included
	maxTries2  = 4                // connections that a request is sent on, if they refuse it
	maxReplay2 = 16 << 10         // bytes of a request's body that are kept to send it again
	maxKept2   = 64 << 20         // bytes of responses that wait for visitors who do not read, until a service takes no more of them
)

// upstream2 is a stream of a service that carries an HTTP/2 connection, of which this
// is the client. It is the stream's handler. It is owned by the session's loop.
type upstream2 struct {
	*tunnel.Stream
	service *service
	h2      *http2.Conn
	calls   []*call // that wait for the server's settings

	opened, heard, free int64 // when it was opened, something came, and its last stream ended; in the loop's time
	served              bool  // it has answered a request
	retired             bool  // it takes no more requests
	closed              bool
	woken               bool // flush comes at the end of this turn
	flushFunc           func()
}

// open2 opens a connection to the target.
func (s *service) open2(addr netip.AddrPort, scheme string, host []byte) (*upstream2, error) {
	st, err := s.openStream(addr, scheme, string(appendHost(nil, host)))
	if err != nil {
		return nil, err
	}
	l := s.session.loop
	u := &upstream2{Stream: st, service: s, opened: l.since()}
	u.heard, u.free = u.opened, u.opened
	u.flushFunc = u.flush
	u.h2 = l.endpoint.Client(st, u, l.Now())
	st.SetHandler(u)
	s.conns = append(s.conns, u)
	s.sweepLater()
	return u, nil
}

// take2 returns a connection that has room for another request, and has not refused
// it: the oldest one, so that those which are not needed become idle.
func (s *service) take2(c *client, host []byte, refused []*upstream2) (*upstream2, error) {
	for _, u := range s.conns {
		if u.takes() && !slices.Contains(refused, u) {
			return u, nil
		}
	}
	return s.open2(c.addr, c.scheme(), host)
}

// takes reports whether u has room for another request. A connection whose settings have not
// come is supposed to have as much as the others.
func (u *upstream2) takes() bool {
	room := maxCalls
	if n := u.service.room; n > 0 && !u.h2.Ready() {
		room = min(room, n)
	}
	return !u.retired && u.h2.Room() > 0 && u.h2.Streams()+len(u.calls) < room
}

// learn notes how much room a connection has.
func (u *upstream2) learn() {
	if u.h2.Ready() {
		u.service.room = u.h2.MaxStreams()
	}
}

// call is one request on an upstream2: the back of an exchange, and the handler of the
// stream.
type call struct {
	*http2.Stream // nil while it waits for the server's settings
	u             *upstream2
	ex            *exchange      // until it is over
	req           *http1.Request // a copy, while it waits for the server's settings
	extra         []http1.Field  // what else the server is told of the visitor
	accept        string         // Sec-WebSocket-Accept of the answer, when it asks for a WebSocket
	replay        []byte         // the body so far, while it may be sent again
	long          bool           // it was too long for that
	seen          bool           // something of the response has come
	safe          bool           // it may be sent twice
	refused       []*upstream2   // it was sent on these before
}

// send2 begins an exchange with a target that speaks HTTP/2.
func (s *service) send2(ex *exchange, req *http1.Request) error {
	if s.kept > maxKept2 {
		return tunnel.ErrTooManyStreams
	}
	u, err := s.take2(ex.client, req.Host, nil)
	if err != nil {
		return err
	}
	// Written as HTTP/1.1, where the request takes no memory that is not there.
	ex.replay = http1.AppendForwardedRequest(ex.replay[:0], req, http1.Forward{})
	c := &call{u: u, ex: ex, extra: slices.Clone(ex.extra), safe: ex.sent && idempotent(req.Method)}
	ex.back = c
	return c.begin(req)
}

// begin sends the head.
func (c *call) begin(req *http1.Request) error {
	u, ex := c.u, c.ex
	switch {
	case req.Upgrade == nil:
	case !ex.sent || !http1.EqualFold(req.Upgrade, "websocket"): // there is no other in HTTP/2 (rfc9113#section-8.6), and a server may ignore it
		req.Upgrade = nil
		ex.upgrade = false
	case !u.h2.Ready():
		c.req = req.Clone()
		u.calls = append(u.calls, c)
		return nil
	case !u.h2.CanConnect():
		return errNoWebSocket
	default:
		c.accept = websocket.AcceptKey(string(http1.Get(req.Fields, "sec-websocket-key")))
		req.Fields = http1.Remove(req.Fields, keyNames)
	}
	fwd := ex.forward()
	fwd.Fields = c.extra
	var err error
	c.Stream, err = u.h2.Request(req, fwd, ex.sent && req.Upgrade == nil, c)
	return err
}

var errNoWebSocket = errors.New("the server takes no WebSockets over HTTP/2")

func (c *call) body(p []byte) {
	c.Write(p)
	switch {
	case c.seen || c.long:
	case len(c.replay)+len(p) > maxReplay2:
		c.long, c.replay = true, nil
	default:
		c.replay = append(c.replay, p...)
	}
}

func (c *call) end(trailers []http1.Field) {
	if len(trailers) > 0 {
		c.long = true // nor are these kept
		c.WriteTrailers(trailers)
	} else {
		c.CloseWrite()
	}
}

func (c *call) flush()        {} // at the end of the turn, all of the connection
func (c *call) full() bool    { return c.Stream != nil && c.Pending() > c.HighMark() }
func (c *call) waiting() bool { return c.Stream != nil && c.Pending() > 0 }
func (c *call) pause()        { c.Pause() }
func (c *call) patient() bool { return true }
func (c *call) reads() bool   { return true } // until it says otherwise
func (c *call) release()      { c.ex = nil }

func (c *call) via() *tunnel.Stream { return c.u.Stream }

func (c *call) resume() {
	if c.Stream != nil {
		c.Resume()
	}
}

func (c *call) cancel() {
	c.ex = nil
	if c.Stream != nil {
		c.Reset(http2.CodeCancel)
	}
}

func (c *call) OnResponse(res *http1.Response, end bool) {
	ex := c.ex
	c.seen, c.u.served = true, true
	c.replay = nil
	switch {
	case ex == nil:
	case res.Status == 101:
		if c.accept != "" {
			res.Fields = append(res.Fields, http1.Field{Name: nameAccept, Value: []byte(c.accept)})
		}
		ex.switched(res, &spliced2{c.Stream, c.u})
		c.ex = nil
	case res.Status < 200:
		ex.interim(res)
		ex.pulled(0)
	default:
		ex.respond(res, end)
		ex.pulled(0)
	}
}

var nameAccept = []byte("Sec-WebSocket-Accept")

func (c *call) OnData(b []byte) int {
	if ex := c.ex; ex != nil {
		ex.payload(b)
		ex.pulled(len(b))
	}
	return len(b)
}

func (c *call) OnEOF() {
	if ex := c.ex; ex != nil && !ex.received {
		ex.complete(c.Trailers())
		ex.pulled(0)
	}
}

func (c *call) OnDrain() {
	if c.ex != nil {
		c.ex.backDrained()
	}
}

func (c *call) OnClose(err error) {
	c.u.free = c.u.service.session.loop.since()
	if c.ex == nil || c.retry(err) {
		return
	}
	c.ex.lost(callTrouble(err))
}

// retry sends the request again, on another connection: if the server says that it has not
// seen it, or, once, if it may be supposed to have closed a silent connection at the moment
// when we used it again.
func (c *call) retry(err error) bool {
	ex := c.ex
	_, reset := errors.AsType[*http2.StreamError](err)
	unseen := errors.Is(err, http2.ErrUnseen) || c.u.served && c.safe && !reset
	if !unseen || len(c.refused)+1 >= maxTries2 || c.seen || c.long {
		return false
	}
	var req http1.Request
	if n, err := http1.ParseRequest(ex.replay, &req); n == 0 || err != nil {
		return false
	}
	c.u.learn() // what has come with the refusal
	refused := append(c.refused, c.u)
	u, err := ex.service.take2(ex.client, req.Host, refused)
	if err != nil {
		return false
	}
	n := &call{u: u, ex: ex, extra: c.extra, replay: c.replay, refused: refused}
	ex.back, c.ex = n, nil
	sent := ex.sent
	ex.sent = sent && len(c.replay) == 0
	err = n.begin(&req)
	ex.sent = sent
	if err != nil {
		ex.fail(openTrouble(err))
		return true
	}
	if len(c.replay) > 0 {
		n.Write(c.replay)
		if sent {
			n.CloseWrite()
		}
	}
	return true
}

// callTrouble is the answer when a request has ended before its response.
func callTrouble(err error) *trouble {
	if errors.Is(err, http2.ErrUnseen) {
		return troubleFull
	}
	if e, ok := errors.AsType[*http2.StreamError](err); ok && e.Code == http2.CodeEnhanceYourCalm {
		return troubleFull
	}
	return streamTrouble(err)
}

// spliced2 is a stream of an upstream2 that is spliced with a visitor.
type spliced2 struct {
	*http2.Stream
	u *upstream2
}

func (s *spliced2) Confirmed() bool { return s.u.Confirmed() }

// OnData takes what the server sends.
func (u *upstream2) OnData(b []byte) int {
	l := u.service.session.loop
	u.heard = l.since()
	used, err := u.h2.Receive(b, l.Now())
	if err != nil {
		l.counters.Malformed++
		u.h2.Flush()
		u.end(err)
		return len(b)
	}
	u.learn()
	if len(u.calls) > 0 && u.h2.Ready() {
		for _, c := range u.waiting() {
			err := c.begin(c.req)
			if errors.Is(err, http2.ErrNoRoom) && c.retry(http2.ErrUnseen) {
				continue
			}
			if err != nil {
				c.ex.fail(openTrouble(err))
			}
		}
	}
	if u.retired {
		u.OnOutput() // to look whether that was all
	}
	return used
}

func (u *upstream2) OnEOF() { u.end(errTruncated) }

func (u *upstream2) OnDrain() { u.flush() }

func (u *upstream2) OnClose(err error) {
	if err == nil {
		err = errTruncated
	}
	u.closed = true
	u.lost(err)
}

// OnRoom has nobody to tell: requests do not wait for room, they open another
// connection.
func (u *upstream2) OnRoom() {}

func (u *upstream2) OnGoAway(http2.Code) { u.retire() }

func (u *upstream2) OnOutput() {
	if !u.woken {
		u.woken = true
		u.service.session.loop.AfterTurn(u.flushFunc)
	}
}

func (u *upstream2) flush() {
	u.woken = false
	if u.closed {
		return
	}
	u.h2.Flush()
	if u.retired && u.h2.Streams() == 0 {
		u.end(errTruncated)
	}
}

// retire has no more requests use u, which is closed when those that do are over.
func (u *upstream2) retire() {
	if !u.retired {
		u.retired = true
		u.OnOutput() // to look
	}
}

// lost takes u out of service: there is no connection any more. Its requests end.
func (u *upstream2) lost(err error) {
	u.retired = true
	s := u.service
	if i := slices.Index(s.conns, u); i >= 0 {
		s.conns = slices.Delete(s.conns, i, i+1)
	}
	for _, c := range u.waiting() {
		c.ex.lost(callTrouble(err))
	}
	u.h2.Close(err)
}

// waiting returns the requests that have waited for the server's settings, and that
// nobody has given up meanwhile.
func (u *upstream2) waiting() []*call {
	calls := slices.DeleteFunc(u.calls, func(c *call) bool { return c.ex == nil })
	u.calls = nil
	return calls
}

// end closes the connection in good order.
func (u *upstream2) end(err error) {
	if u.closed {
		return
	}
	u.closed = true
	u.lost(err)
	last := &upstream{Stream: u.Stream, service: u.service}
	u.SetHandler(last)
	u.service.dismiss(last)
}

// sweep looks for what has missed its deadline.
func (u *upstream2) sweep() {
	s := u.service.session
	now := s.loop.since()
	since := func(t int64) time.Duration { return time.Duration(now - t) }
	if u.h2.Streams()+len(u.calls) > 0 { // those that were given up are few
		u.free = now
	}
	switch {
	case !s.lostAt.IsZero():
		u.heard = now // there is nobody to hear
	case !u.h2.Ready():
		if since(u.opened) >= readyTime {
			u.Reset(tunnel.CodeTimeout)
		}
	case since(u.free) >= keepTime2:
		u.h2.GoAway(http2.CodeNone)
		u.retire()
	case u.free < now: // idle
	case u.h2.Unanswered() > 0:
		if since(u.heard) >= pingTime+deafTime {
			u.Reset(tunnel.CodeTimeout)
		}
	case since(u.heard) >= pingTime:
		u.h2.Ping()
	}
}
