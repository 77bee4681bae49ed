package public

import (
	"bytes"
	"errors"
	"slices"
	"time"

	"culvert.dev/pkg/http1"
	"culvert.dev/pkg/http2"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

// exchange is one request of a visitor and its response, between a front and a
// back of any version of HTTP. It belongs to the loop of its service's session,
// and goes back to that loop's stock when it is over: nothing may touch it then.
//
// Both directions run at once: the request goes from the front to the back by
// body, end and pushed, the response from the back to the front by interim,
// respond, payload and complete. The exchange is over when both are complete, or
// when one of them cannot be.
type exchange struct {
	loop    *loop
	front   front
	back    back // nil until there is one
	client  *client
	service *service

	place[*exchange]          // in the tally
	id               uint64   // see loop.number
	heading          heading  // for operators
	operator         string   // who has it sent again; "": it is a visitor's
	capture          *capture // what is kept of it; nil: nothing

	began, progress int64  // when the head came, and a byte last moved, in the loop's time
	in, out         uint64 // bytes of the request's body and of the response, as they are counted for the service
	status          int    // of the final head, or of our own answer; 0: there is none
	interims        int    // heads before it
	first           int64  // when the answer's first byte came
	err             word   // why it ends
	request         []byte // of it, for the access log

	taken   int64         // bytes of the request's body, if maxBody is set
	maxBody int64         // of the request; 0: no limit, or it has been found to keep to it
	user    string        // who has given a password; "": none was asked for
	extra   []http1.Field // what the server is told of the visitor besides; lent for begin

	large    bool // the body of the request has more than that
	head     bool // the request is HEAD
	upgrade  bool // the request asks for one
	chunked  bool // the request's length is not known before its end
	last     bool // the rest of the request is of no use once the response is complete
	sent     bool // all of the request has gone to the back
	answered bool // the final head has gone to the visitor
	received bool // all of the response has
	bound    bool // the server may take whoever uses the connection next for this visitor

	// Of an HTTP/1.1 back.
	resBody  http1.Body
	response http1.Response
	replay   []byte // the request, when it may be sent again
	again    bool   // replay may be sent, on another stream
	started  bool   // a byte of the response has come
	clean    bool   // and nothing came behind it
}

// maxGather is the largest piece of a message that is copied behind another one
// so that both leave in one write, and with TLS in one record.
const maxGather = 16 << 10

// maxInterims is how many 1xx heads of a response are passed on.
const maxInterims = 100

var (
	methodHead, methodGet = []byte("HEAD"), []byte("GET")
	comma, space          = []byte(","), []byte(" ")
)

// serve begins with a request of f to s, as decide has said. The body follows. It returns
// nil if there is no exchange any more: then f knows.
func (l *loop) serve(f front, s *service, req *http1.Request) *exchange {
	if s.isCamera() {
		return l.serveCamera(f, s, req)
	}
	return l.begin(f, s, req)
}

// begin sends a request of f to s. It returns nil if the exchange is over already: then
// f.answer has been called.
func (l *loop) begin(f front, s *service, req *http1.Request) *exchange {
	ex := l.newExchange(f, s, req)
	var err error
	if relay.IsHTTP2(s.target) {
		err = s.send2(ex, req)
	} else {
		err = s.send1(ex, req)
	}
	ex.extra = nil
	if err != nil {
		ex.fail(openTrouble(err))
		return nil
	}
	return ex
}

// newExchange makes an exchange without a back.
func (l *loop) newExchange(f front, s *service, req *http1.Request) *exchange {
	var ex *exchange
	if n := len(l.free); n > 0 {
		ex, l.free = l.free[n-1], l.free[:n-1]
	} else {
		ex = new(exchange)
	}
	ex.loop, ex.front, ex.client, ex.service = l, f, f.who(), s
	ex.head = string(req.Method) == "HEAD"
	ex.upgrade = req.Upgrade != nil
	ex.chunked = req.Framing == http1.Chunked
	ex.bound = authenticatesConnections(req.Fields, "authorization")
	ex.sent = req.Framing == http1.NoBody || req.Framing == http1.Length && req.ContentLength == 0
	ex.began = l.since()
	ex.progress = ex.began
	ex.id = l.number()
	ex.request = l.appendRequest(ex.request[:0], req)
	ex.heading.set(l.relay, req)
	if s.inspect {
		ex.capture = l.relay.inspects(ex, req)
	}
	if p := ex.client.replayer; p != nil {
		p.capture, ex.operator = ex.capture, ex.client.operator
	}
	if p := s.policy.Load(); p != nil {
		if ex.user, ex.extra = p.forward(l, ex.client, req); ex.chunked {
			ex.maxBody = p.maxBody
		}
	}
	s.enter(ex.client.addr.Addr())
	push(&s.exchanges, ex)
	s.active++
	s.peak = max(s.peak, s.active)
	s.total++
	l.counters.Requests++
	return ex
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

// finish takes ex out of service. Front and back have been or will be dealt with.
func (ex *exchange) finish() {
	ex.service.leave(ex.client.addr.Addr())
	ex.service.active--
	take(&ex.service.exchanges, ex)
	l := ex.loop
	*ex = exchange{
		heading:  heading{text: ex.heading.text[:0]},
		request:  ex.request[:0],
		resBody:  http1.Body{Trailers: ex.resBody.Trailers[:0]},
		response: http1.Response{Fields: ex.response.Fields[:0]},
		replay:   ex.replay[:0],
	}
	if len(l.free) < maxFree {
		l.free = append(l.free, ex)
	}
}

// record is what the access log tells about ex.
func (ex *exchange) record() record {
	c := ex.client
	r := record{
		service: ex.service, visitor: c.addr, user: ex.user, subject: c.subject(), proto: c.proto, tls: c.tls, request: ex.request,
		status: ex.status, err: ex.err, received: ex.in, sent: ex.out, began: ex.began, operator: ex.operator, replayed: c.replayed,
	}
	if ex.first != 0 {
		r.first = time.Duration(ex.first - ex.began)
	}
	if ex.back != nil {
		r.stream = ex.back.via()
	}
	return r
}

// account writes down what ex was.
func (ex *exchange) account() {
	l := ex.loop
	ex.service.count(ex.client.proto, ex.status, ex.err, time.Duration(l.since()-ex.began))
	if l.relay.AccessLog != nil {
		r := ex.record()
		l.log(&r)
	}
	ex.seen()
	ex.remember()
}

// cancel ends ex and its back, as the visitor is gone.
func (ex *exchange) cancel() {
	ex.err = wordCancelled
	ex.drop()
}

// drop ends ex and its back. The front knows, or is told next.
func (ex *exchange) drop() {
	if ex.back != nil {
		ex.back.cancel()
	}
	ex.account()
	ex.finish()
}

// fail ends ex with an answer of our own. The final head has not been sent.
func (ex *exchange) fail(t *trouble) {
	f := ex.front
	f.flush()
	ex.status, ex.err = t.status, t.word()
	ex.drop()
	f.answer(t)
}

// cut ends ex in the middle of a response, so that the visitor notices.
func (ex *exchange) cut(w word) {
	f := ex.front
	f.flush()
	ex.err = w
	ex.drop()
	f.cut()
}

// abort ends ex, whose visitor has missed a deadline.
func (ex *exchange) abort() {
	f := ex.front
	ex.err = wordTimeout
	ex.drop()
	f.abort()
}

// reject ends ex because the rest of its request is malformed.
func (ex *exchange) reject(t *trouble) {
	ex.loop.counters.Rejected++
	if ex.answered {
		ex.cut(t.word())
	} else {
		ex.fail(t)
	}
}

// done ends ex if its response and its request are complete, or if the request
// will not be completed.
func (ex *exchange) done() {
	f := ex.front
	switch {
	case ex.sent:
		ex.back.release()
		ex.account()
		ex.finish()
		f.done()
	case ex.last || !ex.back.reads():
		ex.drop()
		f.done()
	}
	// Otherwise the server has answered early and may still read the rest.
}

// body takes a piece of the request's body from the front, which is lent.
func (ex *exchange) body(p []byte) {
	if ex.maxBody > 0 {
		if ex.taken += int64(len(p)); ex.taken > ex.maxBody {
			ex.large = true // pushed ends it
			return
		}
	}
	if c := ex.capture; c != nil {
		ex.loop.relay.inspector.body(c, &c.sent, p)
	}
	ex.back.body(p)
}

// end takes the end of the request's body.
func (ex *exchange) end(trailers []http1.Field) {
	ex.sent = true
	if !ex.large {
		ex.back.end(trailers)
	}
}

// forward is what the server is told of the visitor.
func (ex *exchange) forward() http1.Forward {
	c := ex.client
	return http1.Forward{Remote: c.addr.Addr(), Proto: c.scheme(), Port: c.port, Fields: ex.extra}
}

// pushed is called when some pieces of the request, of n bytes in the front's
// framing, have been given to body or end. ex may be over then.
func (ex *exchange) pushed(n int) {
	ex.back.flush()
	if ex.large {
		ex.reject(troubleBody)
		return
	}
	if n > 0 {
		ex.progress = ex.loop.since()
		ex.in += uint64(n)
		ex.service.received += uint64(n)
	}
	switch {
	case ex.sent && ex.received:
		ex.done()
	case ex.back.full():
		ex.front.pause()
	}
}

// drained goes on with the response: the front has room.
func (ex *exchange) drained() {
	ex.progress = ex.loop.since()
	ex.back.resume()
}

// interim takes a 1xx head from the back, which is not 101. They are queued however slowly the
// visitor reads, so there are not any number of them.
func (ex *exchange) interim(res *http1.Response) {
	if ex.interims++; ex.interims <= maxInterims {
		ex.front.interim(res)
	}
}

// respond takes the final head from the back. If end is set, that is all.
func (ex *exchange) respond(res *http1.Response, end bool) {
	ex.bound = ex.bound || res.Status == 401 && authenticatesConnections(res.Fields, "www-authenticate")
	ex.status, ex.first = res.Status, ex.loop.since()
	if ex.client.secure {
		ex.loop.relay.advertise(res)
	}
	if p := ex.service.policy.Load(); p != nil {
		p.answered(res)
	}
	if c := ex.capture; c != nil {
		ex.loop.relay.inspector.head(c, res.Fields)
	}
	ex.answered, ex.received = true, end
	ex.last = ex.front.head(res, end)
}

// payload takes a piece of the response's body from the back, which is lent.
func (ex *exchange) payload(p []byte) {
	if len(p) > 0 {
		if c := ex.capture; c != nil {
			ex.loop.relay.inspector.body(c, &c.answer, p)
		}
		ex.front.body(p)
	}
}

// complete takes the end of the response's body.
func (ex *exchange) complete(trailers []http1.Field) {
	ex.received = true
	if c := ex.capture; c != nil {
		ex.loop.relay.inspector.head(c, trailers)
	}
	ex.front.end(trailers)
}

// pulled is called when some of the response, n bytes in the back's framing, have
// been given to the functions above. ex may be over then.
func (ex *exchange) pulled(n int) {
	ex.front.flush()
	ex.progress = ex.loop.since()
	ex.out += uint64(n)
	ex.service.sent += uint64(n)
	switch {
	case ex.received:
		ex.done()
	case ex.front.full():
		ex.back.pause()
	}
}

// switched joins the visitor and st after 101 (Switching Protocols). HTTP is over
// for both. It reports false if the visitor does not switch.
func (ex *exchange) switched(res *http1.Response, st stream) bool {
	f, s := ex.front, ex.service
	f.flush()
	if t := f.upgrade(res, st, s); t != nil {
		ex.loop.counters.Malformed++
		ex.fail(t)
		return false
	}
	ex.status, ex.first = res.Status, ex.loop.since()
	j := s.joined
	if j != nil && j.stream == st {
		j.name(ex.heading.hostname())
	} else {
		j = nil // a player's, say
	}
	if j != nil && ex.loop.relay.AccessLog != nil {
		r := ex.record()
		r.request = slices.Clone(r.request)
		if http1.EqualFold(res.Upgrade, "websocket") {
			r.proto = "websocket"
		}
		j.logs(r)
		s.count(ex.client.proto, ex.status, fine, time.Duration(ex.first-ex.began))
		ex.seen()
		ex.remember()
	} else {
		ex.account()
	}
	ex.finish()
	return true
}

// lost is the end of a back that did not complete the response.
func (ex *exchange) lost(t *trouble) {
	switch {
	case !ex.answered:
		ex.fail(t)
	case ex.received: // and the request is not complete
		f := ex.front
		ex.drop()
		f.done()
	default:
		ex.cut(t.word())
	}
}

// backDrained goes on with the request.
func (ex *exchange) backDrained() {
	ex.progress = ex.loop.since()
	if !ex.sent {
		ex.front.resume()
	}
}

// quiet is how long nothing has moved.
func (ex *exchange) quiet() time.Duration { return time.Duration(ex.loop.since() - ex.progress) }

// check ends ex if nothing has moved for too long. It is called every busyCheck.
func (ex *exchange) check() {
	quiet := ex.quiet()
	switch {
	case quiet >= stuckTime && ex.front.waiting():
		ex.abort()
	case !ex.answered && quiet >= waitTime && ex.forlorn():
		ex.fail(troubleAway)
	case ex.back.patient():
	case !ex.sent && quiet >= bodyTime && ex.answered:
		ex.abort()
	case !ex.sent && quiet >= bodyTime && !ex.back.waiting():
		ex.fail(troubleSlow)
	case !ex.answered && quiet >= ex.loop.relay.ResponseTimeout:
		ex.fail(troubleSilent)
	}
}

// forlorn reports whether nobody need wait for the session's next link any longer. What the site may
// have begun with waits for as long as the session does, or with a whole request, until another private
// relay has the visitors.
func (ex *exchange) forlorn() bool {
	s, age := ex.service.session, time.Duration(ex.loop.since()-ex.began)
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
	troubleMethod    = &trouble{405, "This method is not supported."}
	troublePath      = &trouble{400, "The path of this request is ambiguous."}
	troubleService   = &trouble{404, "There is no such service here."}
	troublePage      = &trouble{404, "There is nothing here."}
	troubleSlow      = &trouble{408, "The request took too long to arrive."}
	troubleSockets   = &trouble{501, "The server behind this service takes no WebSockets."}
	troubleServer    = &trouble{502, "The server behind this service cannot be reached."}
	troubleAnswer    = &trouble{502, "The server behind this service gave no valid answer."}
	troubleAway      = &trouble{503, "The site of this service is not connected right now. Please try again."}
	troubleFull      = &trouble{503, "Too many visitors right now. Please try again."}
	troubleElsewhere = &trouble{421, "This name is not served on this connection. Please open another one."}
	troubleKicked    = &trouble{503, "This request was ended by an operator of the relay."}
	troubleSilent    = &trouble{504, "The server behind this service did not answer in time."}
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
	switch {
	case errors.Is(err, tunnel.ErrTooManyStreams), errors.Is(err, http2.ErrNoRoom):
		return troubleFull
	case errors.Is(err, errNoWebSocket):
		return troubleSockets
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
