package public

import (
	"bytes"
	"errors"
	"time"

	"culvert.dev/pkg/http1"
	"culvert.dev/pkg/tunnel"
)

// exchange is one request of a visitor and its response. It belongs to the loop
// of its visitor and its stream, and goes back to that loop's stock when it is
// over: nothing may touch it after finish.
//
// Both directions run at once: the request goes from the visitor's OnData to
// the stream, the response from the stream's OnData to the visitor. The
// exchange is over when both are complete, or when one of them cannot be.
type exchange struct {
	visitor *visitor
	service *service
	stream  *upstream

	reqBody, resBody http1.Body
	response         http1.Response
	replay           []byte // the request, when it may be sent again
	began, progress  int64  // when the head came, and a byte last moved, in the loop's time
	framing          http1.Framing

	minor    int  // the visitor's HTTP version
	head     bool // the request is HEAD
	upgrade  bool // the request asks for one
	chunked  bool // the request body is
	again    bool // replay may be sent, on another stream
	close    bool // no other request on this connection
	sent     bool // all of the request has gone to the stream
	started  bool // a byte of the response has come
	answered bool // its final head has gone to the visitor
	received bool // all of it has
	clean    bool // and nothing came behind it
	bound    bool // the server may take whoever uses the stream next for this visitor
}

// maxGather is the largest piece of a message that is copied behind another one
// so that both leave in one write, and with TLS in one record.
const maxGather = 16 << 10

var (
	methodHead, methodGet = []byte("HEAD"), []byte("GET")
	comma, space          = []byte(","), []byte(" ")
)

// begin sends the request in l.req to a stream of s. It runs on the loop of s's
// session. The body follows by forwardBody.
func (v *visitor) begin(s *service) {
	l := v.loop
	req := &l.req
	var ex *exchange
	if n := len(l.free); n > 0 {
		ex, l.free = l.free[n-1], l.free[:n-1]
	} else {
		ex = new(exchange)
	}
	ex.visitor, ex.service = v, s
	ex.minor = req.Minor
	ex.head = string(req.Method) == "HEAD"
	ex.upgrade = req.Upgrade != nil
	ex.chunked = req.Framing == http1.Chunked
	ex.close = req.Close
	ex.bound = authenticatesConnections(req.Fields, "authorization")
	ex.reqBody.Reset(req.Framing, req.ContentLength)
	ex.sent = ex.reqBody.Done()
	ex.began = l.since()
	ex.progress = ex.began
	v.ex = ex
	v.phase = busy
	s.visitors++
	s.active++
	s.peak = max(s.peak, s.active)
	s.total++
	l.counters.Requests++

	again := ex.sent && idempotent(req.Method)
	if ex.stream = s.take(again); ex.stream == nil {
		var err error
		if ex.stream, err = s.open(v.addr, v.scheme(), req.Host); err != nil {
			ex.fail(openTrouble(err))
			return
		}
	}
	ex.stream.exchange = ex
	if v.port == 0 {
		v.port = v.conn.LocalAddr().Port()
	}
	l.out = http1.AppendForwardedRequest(l.out[:0], req, http1.Forward{
		Remote: v.addr.Addr(),
		Proto:  v.scheme(),
		Port:   v.port,
	})
	if ex.again = again && ex.stream.used; ex.again {
		ex.replay = append(ex.replay[:0], l.out...)
	}
	ex.stream.Write(l.out)
	v.await(busyCheck)
}

// idempotent reports whether a request may be sent twice (rfc9110#section-9.2.2).
func idempotent(method []byte) bool {
	switch string(method) {
	case "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE":
		return true
	}
	return false
}

// authenticatesConnections reports whether the fields of that name have a scheme
// that many servers remember for the connection and not for the request, against
// rfc9110#section-11.1: NTLM, and Negotiate and Kerberos, which may turn out as it
// (rfc4559#section-6).
func authenticatesConnections(fields []http1.Field, name string) bool {
	for i := range fields {
		if len(fields[i].Name) != len(name) || !http1.EqualFold(fields[i].Name, name) {
			continue
		}
		for c := range bytes.SplitSeq(fields[i].Value, comma) {
			scheme, _, _ := bytes.Cut(bytes.TrimLeft(c, " \t"), space)
			if http1.EqualFold(scheme, "ntlm") || http1.EqualFold(scheme, "negotiate") || http1.EqualFold(scheme, "kerberos") {
				return true
			}
		}
	}
	return false
}

// finish takes ex out of service. The stream has been dealt with.
func (ex *exchange) finish() {
	ex.service.visitors--
	ex.service.active--
	ex.visitor.ex = nil
	if ex.stream != nil {
		ex.stream.exchange = nil
	}
	l := ex.visitor.loop
	*ex = exchange{
		reqBody:  http1.Body{Trailers: ex.reqBody.Trailers[:0]},
		resBody:  http1.Body{Trailers: ex.resBody.Trailers[:0]},
		response: http1.Response{Fields: ex.response.Fields[:0]},
		replay:   ex.replay[:0],
	}
	if len(l.free) < maxFree {
		l.free = append(l.free, ex)
	}
}

// cancel ends ex and its stream.
func (ex *exchange) cancel() {
	if ex.stream != nil {
		ex.stream.Reset(tunnel.CodeCancelled)
	}
	ex.finish()
}

// fail ends ex with an answer of our own. The final head has not been sent.
func (ex *exchange) fail(t *trouble) {
	v, head, close := ex.visitor, ex.head, ex.close || !ex.sent
	ex.cancel()
	v.answer(t, head, close)
}

// cut ends ex in the middle of a response, so that the visitor notices.
func (ex *exchange) cut() {
	v, framing := ex.visitor, ex.framing
	ex.cancel()
	if framing == http1.UntilClose {
		v.conn.Abort(errTruncated) // an end of stream would look like the end of the body
	} else {
		v.close()
	}
}

// done ends ex if its response and its request are complete, or if the request
// will not be completed.
func (ex *exchange) done() {
	v, u := ex.visitor, ex.stream
	reusable := ex.clean && !ex.response.Close && !u.eof
	switch {
	case ex.sent:
		if reusable && !ex.bound {
			u.used = true
			ex.service.put(u)
		} else {
			ex.service.dismiss(u)
		}
		close := ex.close
		ex.finish()
		v.next(close)
	case ex.close || !reusable:
		ex.cancel()
		v.close()
	}
	// Otherwise the server has answered early and may still read the rest.
}

// forwardBody passes on what b holds of the request's body.
func (ex *exchange) forwardBody(b []byte) (used int) {
	v, l, u := ex.visitor, ex.visitor.loop, ex.stream
	out := l.out[:0]
	for used < len(b) && !ex.sent {
		payload, n, done, err := ex.reqBody.Next(b[used:])
		if err != nil {
			l.counters.Rejected++
			ex.close = true
			if ex.answered {
				ex.cut()
			} else {
				ex.fail(rejection(err))
			}
			return used
		}
		used += n
		ex.sent = done
		switch {
		case !ex.chunked:
			u.Write(payload)
		case len(payload) > maxGather:
			u.Write(http1.AppendChunkSize(out, len(payload)))
			u.Write(payload)
			out = append(out[:0], "\r\n"...)
		default:
			out = http1.AppendChunk(out, payload)
		}
		if done && ex.chunked {
			out = http1.AppendLastChunk(out, ex.reqBody.Trailers)
		}
		if len(out) > maxGather {
			u.Write(out)
			out = out[:0]
		}
		if n == 0 {
			break
		}
	}
	u.Write(out)
	l.out = out
	if used > 0 {
		ex.progress = l.since()
		ex.service.received += uint64(used)
	}
	switch {
	case ex.sent && ex.received:
		ex.done()
	case u.Pending() > u.HighMark():
		v.conn.Pause()
	}
	return used
}

// onData takes the response from the stream.
func (ex *exchange) onData(b []byte) (used int) {
	v, l := ex.visitor, ex.visitor.loop
	ex.started = true
	ex.progress = l.since()
	l.out = l.out[:0]
	for used < len(b) && !ex.received {
		if !ex.answered {
			n, over := ex.readHead(b[used:])
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
			v.conn.Write(l.out)
			l.counters.Malformed++
			ex.cut()
			return len(b)
		}
		used += n
		ex.received = done
		ex.appendBody(payload)
		if n == 0 {
			break
		}
	}
	v.conn.Write(l.out)
	ex.service.sent += uint64(used)
	switch {
	case ex.received:
		ex.clean = used == len(b)
		ex.done()
		return len(b)
	case v.conn.Pending() > v.conn.HighMark():
		ex.stream.Pause()
	}
	return used
}

// readHead takes one response head from b, an interim or the final one, and
// appends what the visitor gets to l.out. It returns the bytes used, 0 if the
// head is not complete, and whether ex is over by it.
func (ex *exchange) readHead(b []byte) (n int, over bool) {
	v, l, res := ex.visitor, ex.visitor.loop, &ex.response
	method := methodGet
	if ex.head {
		method = methodHead
	}
	n, err := http1.ParseResponse(b, method, res)
	switch {
	case err != nil, res.Status == 101 && !ex.upgrade:
		v.conn.Write(l.out)
		l.counters.Malformed++
		ex.fail(troubleAnswer)
		return len(b), true
	case n == 0:
		return 0, false
	case res.Status == 101:
		l.out, _ = http1.AppendForwardedResponse(l.out, res, ex.minor, true)
		v.conn.Write(l.out)
		ex.splice()
		return n, true
	case res.Status < 200:
		if ex.minor == 1 { // rfc9110#section-15.2: HTTP/1.0 has none
			l.out, _ = http1.AppendForwardedResponse(l.out, res, ex.minor, true)
		}
		return n, false
	}
	// A server that turns a request down before it is complete seldom reads
	// the rest.
	ex.close = ex.close || !ex.sent && res.Status >= 300 || v.eof || v.relay.draining.Load()
	l.out, ex.framing = http1.AppendForwardedResponse(l.out, res, ex.minor, !ex.close)
	ex.close = ex.close || ex.framing == http1.UntilClose
	ex.answered = true
	ex.bound = ex.bound || res.Status == 401 && authenticatesConnections(res.Fields, "www-authenticate")
	ex.resBody.Reset(res.Framing, res.ContentLength)
	ex.received = ex.resBody.Done()
	return n, false
}

// appendBody appends a piece of the response's body to l.out, in the visitor's
// framing, and the end of the body when it has been received.
func (ex *exchange) appendBody(payload []byte) {
	l, c := ex.visitor.loop, ex.visitor.conn
	if ex.framing != http1.Chunked {
		if len(l.out)+len(payload) <= maxGather {
			l.out = append(l.out, payload...)
			return
		}
		c.Write(l.out)
		c.Write(payload)
		l.out = l.out[:0]
		return
	}
	if len(l.out)+len(payload) <= maxGather {
		l.out = http1.AppendChunk(l.out, payload)
	} else if len(payload) > 0 {
		c.Write(http1.AppendChunkSize(l.out, len(payload)))
		c.Write(payload)
		l.out = append(l.out[:0], "\r\n"...)
	}
	if ex.received {
		l.out = http1.AppendLastChunk(l.out, ex.resBody.Trailers)
	}
}

// onEOF is the end of what the server sends.
func (ex *exchange) onEOF() {
	v, l := ex.visitor, ex.visitor.loop
	switch {
	case !ex.answered:
		if !ex.retry() {
			ex.fail(troubleAnswer)
		}
	case ex.received: // and the request is not complete
		ex.done()
	case ex.resBody.EOF() == nil:
		ex.received = true
		l.out = l.out[:0]
		ex.appendBody(nil)
		v.conn.Write(l.out)
		ex.done()
	default:
		ex.cut()
	}
}

// onReset is the loss of the stream.
func (ex *exchange) onReset(err error) {
	switch {
	case !ex.answered:
		if !ex.retry() {
			ex.fail(streamTrouble(err))
		}
	case ex.received:
		v := ex.visitor
		ex.cancel()
		v.close()
	default:
		ex.cut()
	}
}

// retry sends the request again, once, if the server may be supposed not to have
// seen it: it closed a kept connection at the moment when we used it again.
func (ex *exchange) retry() bool {
	if !ex.again || ex.started {
		return false
	}
	ex.again = false
	v := ex.visitor
	u, err := ex.service.open(v.addr, v.scheme(), nil)
	if err != nil {
		return false
	}
	ex.stream.exchange = nil
	ex.stream.Reset(tunnel.CodeCancelled)
	ex.stream = u
	u.exchange = ex
	u.Write(ex.replay)
	return true
}

// splice joins the visitor and the stream after 101 (Switching Protocols). HTTP
// is over for both.
func (ex *exchange) splice() {
	v, u, s := ex.visitor, ex.stream, ex.service
	ex.finish()
	v.spliced(u.Stream, s)
}

// spliced hands the visitor's connection over to a splice with st, a stream of
// s, and ends v. What is left is the count of the visitor.
func (v *visitor) spliced(st *tunnel.Stream, s *service) {
	v.phase = gone
	v.stop()
	v.loop.remove(v)
	join(v.conn, st, v.addr.Addr(), v.verdict, s)
	if v.eof {
		st.CloseWrite() // the splice has not seen it
	}
}

// visitorEOF is the end of what the visitor sends. Behind a complete request it
// is most likely the visitor's end, but may be that of a simple client which
// still wants its answer: check gives it some time.
func (ex *exchange) visitorEOF() {
	if !ex.sent {
		v := ex.visitor
		ex.cancel()
		v.close()
		return
	}
	ex.close = true
}

// visitorDrained goes on with the response.
func (ex *exchange) visitorDrained() {
	ex.progress = ex.visitor.loop.since()
	ex.stream.Resume()
}

// streamDrained goes on with the request.
func (ex *exchange) streamDrained() {
	ex.progress = ex.visitor.loop.since()
	if !ex.sent {
		ex.visitor.conn.Resume()
	}
}

// check ends ex if nothing has moved for too long. It is called every busyCheck.
func (ex *exchange) check() {
	v := ex.visitor
	quiet := time.Duration(v.loop.since() - ex.progress)
	waiting := v.conn.Pending() > 0 // for the visitor to read
	switch {
	case v.eof && !waiting && quiet >= halfTime, waiting && quiet >= stuckTime:
		v.conn.Abort(errDeadline)
	case !ex.answered && quiet >= waitTime && ex.forlorn():
		ex.fail(troubleAway)
	case !ex.sent && quiet >= bodyTime && ex.answered:
		v.conn.Abort(errDeadline)
	case !ex.sent && quiet >= bodyTime && ex.stream.Pending() == 0:
		ex.close = true
		ex.fail(troubleSlow)
	case !ex.answered && quiet >= v.relay.ResponseTimeout:
		ex.fail(troubleSilent)
	}
}

// forlorn reports whether nobody need wait for the session's next link any longer. What the site may
// have begun with waits for as long as the session does, or with a whole request, until another private
// relay has the visitors.
func (ex *exchange) forlorn() bool {
	s, age := ex.service.session, time.Duration(ex.visitor.loop.since()-ex.began)
	lost := s.lostFor()
	return lost >= waitTime && (age <= lost || ex.sent && s.group.active != s)
}

// trouble is an answer of the relay's own.
type trouble struct {
	status int
	text   string
}

// What goes wrong. The texts are for the visitor and tell nothing about the
// inside.
var (
	troubleMethod  = &trouble{405, "This method is not supported."}
	troublePath    = &trouble{400, "The path of this request is ambiguous."}
	troubleService = &trouble{404, "There is no such service here."}
	troublePage    = &trouble{404, "There is nothing here."}
	troubleSlow    = &trouble{408, "The request took too long to arrive."}
	troubleServer  = &trouble{502, "The server behind this service cannot be reached."}
	troubleAnswer  = &trouble{502, "The server behind this service gave no valid answer."}
	troubleAway    = &trouble{503, "The site of this service is not connected right now. Please try again."}
	troubleFull    = &trouble{503, "Too many visitors right now. Please try again."}
	troubleSilent  = &trouble{504, "The server behind this service did not answer in time."}
)

// rejection is the answer to a request that http1 does not accept.
func rejection(err error) *trouble {
	if e, ok := errors.AsType[*http1.Error](err); ok {
		return &trouble{e.Status, "The request was not accepted: " + e.Reason + "."}
	}
	return &trouble{400, "The request was not accepted."}
}

// openTrouble is the answer when no stream can be opened.
func openTrouble(err error) *trouble {
	if errors.Is(err, tunnel.ErrTooManyStreams) {
		return troubleFull
	}
	return troubleAway
}

// streamTrouble is the answer when the stream was reset before the response.
func streamTrouble(err error) *trouble {
	e, ok := errors.AsType[*tunnel.StreamError](err)
	if !ok {
		return troubleAnswer
	}
	switch e.Code {
	case tunnel.CodeCancelled:
		if !e.Remote { // by resetStreams: another private relay serves the site now
			return troubleAway
		}
	case tunnel.CodeRefused, tunnel.CodeUnreachable:
		return troubleServer
	case tunnel.CodeTimeout:
		return troubleSilent
	case tunnel.CodeNotFound:
		return troubleService
	case tunnel.CodeOverload, tunnel.CodeMemory:
		return troubleFull
	case tunnel.CodeDraining, tunnel.CodeSessionLost:
		return troubleAway
	}
	return troubleAnswer
}
