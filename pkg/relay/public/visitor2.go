package public

import (
	"bytes"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/http1"
	"culvert.dev/pkg/http2"
)

// maxWindows is how much more than they begin with, in all, the receive windows of visitors over HTTP/2 and HTTP/3 and of
// targets that speak HTTP/2 may have.
const maxWindows = 64 << 20

// Deadlines of a visitor that speaks HTTP/2, besides those of its requests.
const (
	pingTime = 30 * time.Second // without a byte from a visitor that has requests under way, until it is asked whether it lives
	deafTime = 20 * time.Second // until it is given up
)

// visitor2 is a visitor's connection that speaks HTTP/2, and the handler of the
// connection. Each request is a stream2. The deadlines that it shares with HTTP/1.1,
// the end of the connection and the count of admission are the visitor's, which is in
// phase many.
type visitor2 struct {
	v     *visitor
	h2    *http2.Conn
	first *stream2 // of those whose handler they are

	heard     int64 // when something came, in the loop's time
	free      int64 // since when there is no stream
	began     int64 // with partial: when the first part of a head came
	partial   bool  // whose rest is missing
	draining  bool  // the visitor was told to make no more requests
	woken     bool  // flush comes at the end of this turn
	flushFunc func()
}

// serve2 begins to read HTTP/2.
func (v *visitor) serve2() {
	v.proto = "HTTP/2"
	v.port = v.conn.LocalAddr().Port()
	w := &visitor2{v: v}
	w.flushFunc = w.flush
	w.heard = v.loop.since()
	w.free = w.heard
	v.two = w
	v.phase = many
	w.h2 = v.loop.endpoint.Server(v.conn, w, v.loop.Now())
	v.await(headTime) // for its settings
	v.conn.SetHandler(w)
}

func (w *visitor2) OnData(b []byte) int {
	if w.v.phase != many {
		return len(b)
	}
	l := w.v.loop
	w.heard = l.since()
	used, err := w.h2.Receive(b, l.Now())
	if err != nil {
		l.counters.Rejected++
		w.end(err)
		return len(b)
	}
	switch {
	case used == len(b):
		w.partial = false
	case used > 0 || !w.partial: // a frame without data, or a head, the rest of which has headTime
		w.partial, w.began = true, w.heard
		w.v.await(headTime)
	}
	return used
}

func (w *visitor2) OnEOF() {
	if w.v.phase == many {
		w.end(errTruncated)
	}
}

func (w *visitor2) OnDrain() {
	if w.v.phase == many {
		w.flush()
	}
}

func (w *visitor2) OnClose(err error) {
	if err == nil {
		err = errTruncated
	}
	w.h2.Close(err)
	w.v.leave()
}

// end closes the connection after what is queued.
func (w *visitor2) end(err error) {
	w.h2.Flush()
	w.h2.Close(err)
	w.v.close()
}

// OnOutput has flush called at the end of the turn.
func (w *visitor2) OnOutput() {
	if !w.woken {
		w.woken = true
		w.v.loop.AfterTurn(w.flushFunc)
	}
}

// flush sends what there is, and closes a connection that is done.
func (w *visitor2) flush() {
	w.woken = false
	if w.v.phase != many {
		return
	}
	w.h2.Flush()
	w.v.conn.NotifyDrain()
	if w.h2.Done() {
		w.end(errDraining)
	}
}

// drain takes no more requests. It reports whether the visitor is one that has come
// just now, which is let be unless all is set.
func (w *visitor2) drain(all bool) (newcomer bool) {
	if !w.v.asked && !all {
		return true
	}
	if !w.draining {
		w.draining = true
		w.h2.Drain()
		w.v.await(farewell)
	}
	return false
}

// tick looks for what has missed its deadline.
func (w *visitor2) tick() {
	v := w.v
	now := v.loop.since()
	since := func(t int64) time.Duration { return time.Duration(now - t) }
	switch {
	case !w.h2.Ready() && since(w.free) >= headTime:
		w.h2.GoAway(http2.CodeSettingsTimeout)
		w.end(errDeadline)
		return
	case w.partial && since(w.began) >= headTime:
		v.loop.counters.Rejected++
		w.h2.GoAway(http2.CodeEnhanceYourCalm)
		w.end(errDeadline)
		return
	case w.h2.Streams() == 0:
		if left := idleTime - since(w.free); left > 0 && !w.draining {
			v.await(left)
			return
		}
		w.h2.GoAway(http2.CodeNone)
		w.end(errDeadline)
		return
	}
	for st := w.first; st != nil; {
		next := st.after
		st.check()
		st = next
	}
	switch asked := w.h2.Unanswered() > 0; {
	case v.conn.Pending() > 0: // it does not read, which has other deadlines
	case asked && since(w.heard) >= pingTime+deafTime:
		v.conn.Abort(errDeadline)
		return
	case !asked && since(w.heard) >= pingTime:
		w.h2.Ping()
	}
	v.await(busyCheck)
}

// OnRequest takes a request.
func (w *visitor2) OnRequest(s *http2.Stream, req *http1.Request, end bool) {
	st := w.add(s, req)
	st.ended = end
	w.v.asked = true
	st.request(req)
}

// OnReject answers a request that cannot be taken.
func (w *visitor2) OnReject(s *http2.Stream, err *http1.Error) {
	w.v.loop.counters.Rejected++
	t := rejection(err)
	w.v.loop.logAnswer(&w.v.client, nil, t)
	w.add(s, nil).answer(t)
}

// stream2 is one request of a visitor that speaks HTTP/2, and the front of its
// exchange.
type stream2 struct {
	*http2.Stream
	w  *visitor2
	ex *exchange      // while there is one
	as *http1.Request // a copy, while it is held

	place[*stream2] // among those of w

	timer   evloop.Timer // of a request that is held
	since   int64        // when it was answered without an exchange
	key     string       // see addKey
	looks   uint8        // as in visitor
	isHead  bool         // it is HEAD
	grpc    bool
	connect bool // it is an extended CONNECT
	ended   bool // all of it has come
	over    bool // it is answered
}

// add makes the handler of a stream. req is nil if it is not known.
func (w *visitor2) add(s *http2.Stream, req *http1.Request) *stream2 {
	st := &stream2{Stream: s, w: w}
	if req != nil {
		st.isHead = string(req.Method) == "HEAD"
		st.grpc = bytes.HasPrefix(http1.Get(req.Fields, "content-type"), grpcType)
	}
	push(&w.first, st)
	s.SetHandler(st)
	w.v.await(busyCheck)
	return st
}

// leave takes st out of the list.
func (st *stream2) leave() {
	take(&st.w.first, st)
	st.timer.Stop()
	st.w.free = st.w.v.loop.since()
}

// request decides what becomes of a request, and begins with it.
func (st *stream2) request(req *http1.Request) {
	l := st.w.v.loop
	switch d := l.decide(&st.w.v.client, req); d.action {
	case doServe:
		st.connect = req.Upgrade != nil
		st.key = addKey(req)
		if st.connect {
			st.Pause() // until it is spliced
		}
		st.ex = l.serve(st, d.service, req)
	case doMove, doOwn:
		here := string(l.host) == st.w.v.sni
		l.logAnswer(&st.w.v.client, req, troubleElsewhere)
		st.answer(troubleElsewhere)
		if here { // its site has come since, on another loop; the next connection will be there
			st.w.drain(true)
		}
	case doHold:
		st.keep(req)
		if !d.hold(st.again) {
			st.look()
		}
	case doLook:
		st.keep(req)
		st.look()
	case doAnswer:
		l.logDecision(&st.w.v.client, req, d)
		st.answer(d.trouble, d.fields...)
	}
}

// keep has a request wait. Its body waits in the window.
func (st *stream2) keep(req *http1.Request) {
	st.Pause()
	if st.as != req {
		st.as = req.Clone()
	}
}

// look decides again soon, and then later and later.
func (st *stream2) look() {
	st.w.v.loop.Arm(&st.timer, holdTime<<st.looks, st.again)
	st.looks = min(st.looks+1, 3)
}

// again decides about a request that was kept, if it still is.
func (st *stream2) again() {
	req := st.as
	if req == nil {
		return
	}
	st.request(req)
	if st.ex != nil || st.over {
		st.as = nil
		if !st.connect {
			st.Resume()
		}
	}
}

// check ends what has missed its deadline.
func (st *stream2) check() {
	switch {
	case st.ex != nil:
		st.ex.check()
	case st.as != nil:
	case time.Duration(st.w.v.loop.since()-st.since) < bodyTime:
	case st.Pending() > 0:
		st.Reset(http2.CodeCancel)
	default: // the answer is complete, and the rest of the request does not come
		st.Reset(http2.CodeNone)
	}
}

func (st *stream2) OnData(b []byte) int {
	if ex := st.ex; ex != nil && !ex.sent {
		ex.body(b)
		ex.pushed(len(b))
	}
	return len(b)
}

func (st *stream2) OnEOF() {
	st.ended = true
	if ex := st.ex; ex != nil && !ex.sent {
		ex.end(st.Trailers())
		ex.pushed(0)
	}
}

func (st *stream2) OnDrain() {
	if st.ex != nil {
		st.ex.drained()
	}
}

func (st *stream2) OnClose(error) {
	st.leave()
	st.as = nil
	if ex := st.ex; ex != nil {
		st.ex = nil
		ex.cancel()
	}
}

func (st *stream2) who() *client { return &st.w.v.client }

func (st *stream2) interim(res *http1.Response) { st.Respond(res, false) }

func (st *stream2) head(res *http1.Response, end bool) (last bool) {
	last = !st.ended && res.Status >= 300
	if st.connect && res.Status < 300 { // it would mean that the server has switched
		bad := *res
		bad.Status = 502
		res = &bad
	}
	st.Respond(res, end)
	return last
}

func (st *stream2) body(p []byte) { st.Write(p) }

func (st *stream2) end(trailers []http1.Field) {
	if len(trailers) > 0 {
		st.WriteTrailers(trailers)
	} else {
		st.CloseWrite()
	}
}

func (st *stream2) flush()        {} // at the end of the turn, all of the connection
func (st *stream2) full() bool    { return st.Pending() > st.HighMark() }
func (st *stream2) waiting() bool { return st.Pending() > 0 }
func (st *stream2) pause()        { st.Pause() }
func (st *stream2) resume()       { st.Resume() }

// finish drops the exchange.
func (st *stream2) finish() {
	st.ex = nil
	st.over = true
	st.since = st.w.v.loop.since()
}

func (st *stream2) done() {
	st.finish()
	st.Close()
}

func (st *stream2) cut() {
	st.finish()
	st.Reset(http2.CodeInternal)
}

func (st *stream2) abort() {
	st.finish()
	st.Reset(http2.CodeCancel)
}

func (st *stream2) answer(t *trouble, fields ...http1.Field) {
	st.finish()
	v := st.w.v
	v.loop.counters.Answered++
	var res http1.Response
	body := compose(&res, t, st.grpc, time.Now(), fields)
	if st.isHead {
		body = nil
	}
	st.Respond(&res, body == nil)
	st.Write(body)
	st.Close()
	switch {
	case v.verdict != admitted: // it is none to wait for
		st.w.h2.GoAway(http2.CodeNone)
	case t == troubleNoCert: // another handshake asks for one again
		st.w.h2.Drain()
	}
}

func (st *stream2) upgrade(res *http1.Response, to stream, s *service) *trouble {
	if !accepts(res, st.key) {
		return troubleAnswer
	}
	st.finish()
	st.leave()
	st.Respond(res, false)
	join(st.Stream, to, st.w.v.addr, uncounted, s, st.w.v.upgraded(res))
	return nil
}
