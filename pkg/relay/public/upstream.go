package public

import (
	"net/netip"
	"slices"
	"time"

	"culvert.dev/pkg/http1"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

// Idle streams of HTTP services are kept for the next request. Many servers
// close a silent connection after five seconds; ours must be gone before that.
const (
	minStock  = 64   // streams are kept in any case
	maxStock  = 1024 // if as many were in use at once
	keepTime  = 4 * time.Second
	freshTime = time.Second // an idle stream younger than that may carry what cannot be sent twice
	maxLook   = 64          // streams that are looked at for one of a certain visitor
)

// upstream is a stream that carries HTTP, one exchange after the other. It is
// the stream's handler.
type upstream struct {
	*tunnel.Stream
	service  *service
	exchange *exchange      // nil while there is none
	visitor  netip.AddrPort // that it was opened for
	since    int64          // when it was put into stock or dismissed
	used     bool           // it has carried an exchange
	eof      bool           // the server has finished sending

	list          *upstreams // that it is in, or nil
	before, after *upstream
}

// upstreams is a list of streams, the one that was pushed last at its end.
type upstreams struct {
	first, last *upstream
	n           int
}

func (l *upstreams) push(u *upstream) {
	u.list, u.before = l, l.last
	if u.before != nil {
		u.before.after = u
	} else {
		l.first = u
	}
	l.last = u
	l.n++
}

// unlist takes u out of the list that it is in, if any.
func (u *upstream) unlist() {
	l := u.list
	if l == nil {
		return
	}
	if u.before != nil {
		u.before.after = u.after
	} else {
		l.first = u.after
	}
	if u.after != nil {
		u.after.before = u.before
	} else {
		l.last = u.before
	}
	l.n--
	u.list, u.before, u.after = nil, nil, nil
}

// open opens a stream for HTTP.
func (s *service) open(addr netip.AddrPort, scheme string, host []byte) (*upstream, error) {
	st, err := s.openStream(addr, scheme, string(appendHost(nil, host)))
	if err != nil {
		return nil, err
	}
	u := &upstream{Stream: st, service: s, visitor: addr}
	st.SetHandler(u)
	return u, nil
}

// take returns an idle stream for a visitor, or nil. Unless again is set, which says that the
// request may be sent twice, it is one that the server can hardly be closing.
func (s *service) take(again bool, visitor netip.AddrPort) *upstream {
	u := s.stock.last
	if relay.PerVisitor(s.target) {
		for n := 0; u != nil && u.visitor != visitor; u = u.before {
			if n++; n == maxLook {
				return nil
			}
		}
	}
	if u == nil || !again && time.Duration(s.session.loop.since()-u.since) > freshTime {
		return nil
	}
	u.unlist()
	return u
}

// put takes a stream into stock.
func (s *service) put(u *upstream) {
	if s.removed || s.session.leaving || s.stock.n >= max(minStock, min(s.peak, maxStock)) || s.session.relay.draining.Load() {
		s.dismiss(u)
		return
	}
	u.since = s.session.loop.since()
	u.Resume()
	s.stock.push(u)
	s.sweepLater()
}

// dismiss ends a stream in good order: the server gets an end of stream, and
// some time to answer with its own.
func (s *service) dismiss(u *upstream) {
	u.unlist()
	u.since = s.session.loop.since()
	u.Close()
	s.leaving.push(u)
	s.sweepLater()
}

func (s *service) sweepLater() {
	if !s.sweeping {
		s.sweeping = true
		s.session.loop.Arm(&s.sweeper, keepTime/4, s.sweep)
	}
}

// sweep dismisses the streams that were idle for keepTime, and resets those that
// were dismissed as long ago.
func (s *service) sweep() {
	s.sweeping = false
	s.peak = max(s.active, s.peak*3/4)
	limit := s.session.loop.since() - int64(keepTime)
	for u := s.leaving.first; u != nil && u.since <= limit; u = s.leaving.first {
		u.unlist()
		u.Reset(tunnel.CodeCancelled)
	}
	for u := s.stock.first; u != nil && u.since <= limit; u = s.stock.first {
		s.dismiss(u)
	}
	s.kept = 0
	for _, u := range slices.Clone(s.conns) {
		s.kept += u.h2.Held()
		u.sweep()
	}
	if s.stock.n+s.leaving.n+len(s.conns) > 0 {
		s.sweepLater()
	}
}

// remove ends what belongs to the service and to no visitor.
func (s *service) remove() {
	s.removed = true
	s.empty()
	if s.hub != nil {
		s.hub.withdraw()
	}
	s.closeLibrary()
	if len(s.session.links) == 0 {
		s.askAgain()
	}
}

// finish ends what nobody uses, and flows as soon as nobody does: the session has
// not long to live.
func (s *service) finish() {
	s.empty()
	if s.flows != nil {
		s.flows.finish(s)
	}
}

// empty dismisses the idle streams, that of a camera which nobody watches included.
func (s *service) empty() {
	if s.hub != nil && len(s.hub.watchers) == 0 {
		s.hub.end()
	}
	for s.stock.first != nil {
		s.dismiss(s.stock.first)
	}
	for _, u := range s.conns {
		u.retire()
	}
}

// send1 begins an exchange with a target that speaks HTTP/1.1.
func (s *service) send1(ex *exchange, req *http1.Request) error {
	c := ex.client
	again := ex.sent && idempotent(req.Method)
	u := s.take(again, c.addr)
	if u == nil {
		var err error
		if u, err = s.open(c.addr, c.scheme(), req.Host); err != nil {
			return err
		}
	} else {
		charge(u.Stream, c.addr.Addr())
	}
	ex.back, u.exchange = u, ex
	l := ex.loop
	l.up = http1.AppendForwardedRequest(l.up[:0], req, ex.forward())
	if ex.again = again && u.used; ex.again {
		ex.replay = append(ex.replay[:0], l.up...)
	}
	u.Write(l.up)
	l.up = l.up[:0]
	return nil
}

func (u *upstream) body(p []byte) {
	l := u.exchange.loop
	switch {
	case !u.exchange.chunked:
		u.Write(p)
	case len(p) > maxGather:
		u.Write(http1.AppendChunkSize(l.up, len(p)))
		u.Write(p)
		l.up = append(l.up[:0], "\r\n"...)
	default:
		if l.up = http1.AppendChunk(l.up, p); len(l.up) > maxGather {
			u.flush()
		}
	}
}

func (u *upstream) end(trailers []http1.Field) {
	if u.exchange.chunked {
		l := u.exchange.loop
		l.up = http1.AppendLastChunk(l.up, trailers)
	}
}

func (u *upstream) flush() {
	l := u.exchange.loop
	u.Write(l.up)
	l.up = l.up[:0]
}

func (u *upstream) full() bool    { return u.Pending() > u.HighMark() }
func (u *upstream) waiting() bool { return u.Pending() > 0 }
func (u *upstream) pause()        { u.Pause() }
func (u *upstream) resume()       { u.Resume() }
func (u *upstream) patient() bool { return false }

// reusable reports whether the server may be asked again.
func (u *upstream) reusable() bool {
	return u.exchange.clean && !u.exchange.response.Close && !u.eof
}

func (u *upstream) reads() bool { return u.reusable() }

func (u *upstream) release() {
	reuse := u.reusable() && !u.exchange.bound
	u.exchange = nil
	if reuse {
		u.used = true
		u.service.put(u)
	} else {
		u.service.dismiss(u)
	}
}

func (u *upstream) via() *tunnel.Stream { return u.Stream }

func (u *upstream) cancel() {
	u.exchange = nil
	u.Reset(tunnel.CodeCancelled)
}

// OnData takes the response, or bytes that nobody asked for.
func (u *upstream) OnData(b []byte) (used int) {
	ex := u.exchange
	if ex == nil {
		u.unlist()
		u.Reset(tunnel.CodeCancelled)
		return len(b)
	}
	ex.started = true
	for used < len(b) && !ex.received {
		if !ex.answered {
			n, over := u.readHead(b[used:])
			used += n
			if over {
				return used
			}
			if n == 0 {
				break
			}
			continue
		}
		payload, n, done, err := ex.resBody.Next(b[used:])
		if err != nil {
			ex.loop.counters.Malformed++
			ex.cut(wordBadAnswer)
			return len(b)
		}
		used += n
		ex.payload(payload)
		if done {
			ex.complete(ex.resBody.Trailers)
		}
		if n == 0 {
			break
		}
	}
	if ex.received {
		ex.clean = used == len(b)
		ex.pulled(used)
		return len(b)
	}
	ex.pulled(used)
	return used
}

// readHead takes one response head from b, an interim or the final one. It returns
// the bytes used, 0 if the head is not complete, and whether the exchange is over
// by it.
func (u *upstream) readHead(b []byte) (n int, over bool) {
	ex := u.exchange
	res := &ex.response
	method := methodGet
	if ex.head {
		method = methodHead
	}
	n, err := http1.ParseResponse(b, method, res)
	switch {
	case err != nil, res.Status == 101 && !ex.upgrade:
		ex.loop.counters.Malformed++
		ex.fail(troubleAnswer)
		return len(b), true
	case n == 0:
		return 0, false
	case res.Status == 101:
		if !ex.switched(res, u.Stream) {
			return len(b), true
		}
		return n, true
	case res.Status < 200:
		ex.interim(res)
		return n, false
	}
	ex.resBody.Reset(res.Framing, res.ContentLength)
	ex.respond(res, ex.resBody.Done())
	return n, false
}

func (u *upstream) OnEOF() {
	u.eof = true
	ex := u.exchange
	switch {
	case ex == nil:
		u.service.dismiss(u)
	case !ex.answered && u.retry():
	case ex.received: // and the request is not complete
		ex.done()
	case ex.answered && ex.resBody.EOF() == nil:
		ex.complete(nil)
		ex.pulled(0)
	default:
		ex.lost(troubleAnswer)
	}
}

func (u *upstream) OnDrain() {
	if u.exchange != nil {
		u.exchange.backDrained()
	}
}

func (u *upstream) OnClose(err error) {
	ex := u.exchange
	switch {
	case ex == nil:
		u.unlist()
	case !ex.answered && u.retry():
	default:
		ex.lost(streamTrouble(err))
	}
}

// retry sends the request again, once, if the server may be supposed not to have
// seen it: it closed a kept connection at the moment when we used it again.
func (u *upstream) retry() bool {
	ex := u.exchange
	if !ex.again || ex.started {
		return false
	}
	ex.again = false
	n, err := ex.service.open(ex.client.addr, ex.client.scheme(), nil)
	if err != nil {
		return false
	}
	u.cancel()
	ex.back, n.exchange = n, ex
	n.Write(ex.replay)
	return true
}
