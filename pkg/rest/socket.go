package rest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/httpd"
	"culvert.dev/pkg/websocket"
)

const (
	maxID    = 64   // bytes of what correlates an answer
	maxAhead = 1024 // events that a client can have coming
	unsent   = 8    // events of a feed that wait for the loop
)

// A socket is the server's side of one WebSocket. It belongs to a loop; the goroutines of its calls post to it.
type socket struct {
	s      *Server
	base   *Call  // of Connect, without Header
	fields string // the header, see packHeader

	// Set once by take, under s.mu.
	loop *evloop.Loop
	end  evloop.End

	// Guarded by s.mu.
	dropped bool // before take

	// Owned by the loop.
	dec     websocket.Decoder
	message []byte      // that comes in pieces; charged to s.partial
	header  http.Header // of fields, while there are calls
	under   map[string]*exchange
	feeds   int      // of those under way
	late    []frame  // that wait for the client to take what is queued
	state   state    // open → closing → gone
	paused  bool     // nothing is read, as the client takes nothing
	heard   bool     // since the last tick
	pinged  bool     // and nothing was heard since
	since   deadline // of message
	stuck   deadline // of what is queued
	sent    uint64   // bytes, in all
	taken   uint64   // of sent, when stuck began
	timer   evloop.Timer
}

type state uint8

const (
	open    state = iota
	closing       // our close frame is queued; nothing is read any more
	gone
)

// deadline is when something began that has to end; zero: it has not.
type deadline struct{ began time.Time }

func (d *deadline) over(now time.Time, limit time.Duration) bool {
	if d.began.IsZero() {
		d.began = now
	}
	return now.Sub(d.began) >= limit
}

// An exchange is a call or a feed that is under way on a socket.
type exchange struct {
	k      *socket
	id     string // as it came: JSON
	call   *Call
	method *Method
	in     []byte
	cancel context.CancelCauseFunc

	room   chan struct{} // of a feed: a token for each event that may wait for the loop
	credit chan struct{} // for each event that the client wants; nil: it takes what comes
}

// A frame is a message that waits to be written.
type frame struct {
	x    *exchange
	b    []byte
	last bool
}

var (
	errCancelled = &Error{499, "cancelled"}
	errGone      = errors.New("the client is gone")
)

// upgrade opens a WebSocket.
func (s *Server) upgrade(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	if r.Method != http.MethodGet {
		h.Set("Allow", http.MethodGet)
		s.refuse(w, Errorf(http.StatusMethodNotAllowed, "a WebSocket wants GET"))
		return
	}
	key, err := handshake(r)
	if err != nil {
		h.Set("Upgrade", "websocket")
		h.Set("Sec-WebSocket-Version", "13")
		s.refuse(w, Errorf(http.StatusUpgradeRequired, "this is for WebSockets: %s", strings.TrimPrefix(err.Error(), "websocket: ")))
		return
	}
	if !s.ownPage(r) {
		s.refuse(w, errForeign)
		return
	}
	c := callOf(r)
	c.Method, c.Transport = "ws", WebSocket
	if s.Connect != nil {
		if err := s.Connect(r.Context(), c); err != nil {
			s.refuse(w, s.answer(c, err))
			return
		}
	}
	c.Header = nil // the connection may be silent for days
	c.UserAgent = strings.Clone(c.UserAgent)
	k := &socket{s: s, base: c, fields: packHeader(r.Header)}
	k.dec.Masked = true
	if err := s.register(k); err != nil {
		if s.Disconnected != nil {
			s.Disconnected(c)
		}
		s.refuse(w, err.(*Error))
		return
	}
	answer := http.Header{"Upgrade": {"websocket"}}
	if key != "" {
		answer.Set("Sec-WebSocket-Accept", websocket.AcceptKey(key))
	}
	if u, ok := w.(httpd.Upgrader); ok {
		err = u.Upgrade(http.StatusSwitchingProtocols, answer, k.take)
	} else {
		err = k.hijack(w, key)
	}
	if err != nil {
		k.unregister()
	}
}

// handshake checks the request for a WebSocket and returns its key. Over HTTP/2, where package httpd makes such a request of an
// extended CONNECT, there is none: rfc8441#section-5.
func handshake(r *http.Request) (key string, err error) {
	get := func(name string) string { return strings.Join(r.Header.Values(name), ",") }
	if r.ProtoMajor < 2 {
		return websocket.CheckRequest(get)
	}
	switch {
	case get("Upgrade") != "websocket":
		return "", errors.New("no :protocol websocket")
	case get("Sec-WebSocket-Version") != "13":
		return "", errors.New("want version 13")
	}
	return "", nil
}

// register counts k, or refuses it.
func (s *Server) register(k *socket) error {
	limit := s.bounds().MaxSockets
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return errClosed
	case len(s.sockets) >= limit:
		return &Error{http.StatusServiceUnavailable, "too many WebSockets are open: try again"}
	}
	if s.sockets == nil {
		s.sockets = make(map[*socket]struct{})
	}
	s.sockets[k] = struct{}{}
	s.wg.Add(1)
	return nil
}

// unregister forgets k, once, and has Disconnected told, which may take its time.
func (k *socket) unregister() {
	s := k.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.sockets[k]; !ok {
		return
	}
	delete(s.sockets, k)
	if s.Disconnected == nil {
		s.wg.Done()
		return
	}
	go k.disconnected()
}

func (k *socket) disconnected() {
	defer k.s.wg.Done()
	k.s.Disconnected(k.base)
}

// hijack takes the connection from a server that is not of package httpd, to a loop of our own.
func (k *socket) hijack(w http.ResponseWriter, key string) error {
	nc, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		k.s.refuse(w, Errorf(http.StatusNotImplemented, "this server has no WebSockets"))
		return err
	}
	early, _ := rw.Reader.Peek(rw.Reader.Buffered())
	early = bytes.Clone(early)
	nc.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := nc.Write(websocket.AppendResponse(nil, key, "")); err != nil {
		nc.Close()
		return err
	}
	nc.SetDeadline(time.Time{})
	return k.s.attach(nc, func(c *evloop.Conn) {
		k.take(c, c.Loop())
		k.OnData(early) // takes all of it: nothing is queued yet
	})
}

// attach brings a connection onto our own loop.
func (s *Server) attach(nc net.Conn, take func(*evloop.Conn)) error {
	core, err := s.ownCore()
	if err != nil {
		nc.Close()
		return err
	}
	failed := make(chan error, 1)
	loop := core.Loop(0)
	if !loop.Post(func() {
		c, err := loop.Attach(nc)
		failed <- err
		if err == nil {
			take(c)
		}
	}) {
		nc.Close()
		return errClosed
	}
	return <-failed // not under mu: the loop may want it
}

// ownCore returns the core of sockets that come by Hijack.
func (s *Server) ownCore() (*evloop.Core, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errClosed
	}
	if s.core == nil {
		var err error
		if s.core, err = evloop.New(evloop.Config{Loops: 1}); err != nil {
			return nil, err
		}
	}
	return s.core, nil
}

// take begins, on the loop.
func (k *socket) take(end evloop.End, loop *evloop.Loop) {
	k.s.mu.Lock()
	k.end, k.loop = end, loop
	dropped := k.dropped
	k.s.mu.Unlock()
	end.SetHandler(k)
	k.heard = true
	k.arm()
	if dropped {
		k.shut(websocket.StatusPolicy, errDropped.Text)
	}
}

// drop ends k if its Call is such. s.mu is held.
func (k *socket) drop(such func(*Call) bool) {
	switch {
	case !such(k.base):
	case k.loop == nil:
		k.dropped = true
	default:
		status, reason := websocket.StatusPolicy, errDropped.Text
		if k.s.closed {
			status, reason = websocket.StatusGoingAway, errClosed.Text
		}
		k.loop.Post(func() { k.shut(status, reason) })
	}
}

func (k *socket) OnData(b []byte) (used int) {
	k.heard = true
	for used < len(b) && k.state == open && !k.paused {
		k.dec.MaxMessage = k.s.bounds().MaxBody
		ev, n, err := k.dec.Next(b[used:])
		used += n
		if err != nil {
			e := err.(*websocket.Error)
			k.shut(e.Status, e.Reason)
			break
		}
		switch ev.Op {
		case websocket.Text:
			k.gather(ev)
		case websocket.Binary:
			k.shut(websocket.StatusUnsupported, "messages are text")
		case websocket.Ping:
			k.write(websocket.Pong, ev.Payload)
		case websocket.Close:
			status, _ := websocket.ParseClose(ev.Payload)
			if status == websocket.StatusNone {
				status = websocket.StatusNormal
			}
			k.shut(status, "")
		}
		k.full()
	}
	if k.state != open {
		return len(b)
	}
	return used
}

// gather puts the pieces of a message together.
func (k *socket) gather(ev websocket.Event) {
	if ev.Final && k.message == nil {
		k.receive(ev.Payload)
		return
	}
	if n := int64(len(ev.Payload)); k.s.partial.Add(n) > k.s.bounds().MaxPartial {
		k.s.partial.Add(-n)
		k.shut(1013, "too much is under way: try again") // rfc6455#section-7.4.1 has left 1013 to the registry: try again later
		return
	}
	if k.message == nil {
		k.since.began = k.loop.Now()
	}
	k.message = append(k.message, ev.Payload...)
	if ev.Final {
		k.receive(k.message)
		k.forget()
	}
}

// forget drops what has come of a message.
func (k *socket) forget() {
	k.s.partial.Add(-int64(len(k.message)))
	k.message, k.since = nil, deadline{}
}

// A request is a message of a client.
type request struct {
	id     string // JSON
	call   string // the method; "": this is about a call that is under way
	in     []byte // JSON, of the message; nil: none
	ahead  int    // of a feed: how many events may be on the way; 0: any number
	cancel bool
	more   int // events that the client has taken
}

// parseRequest reads a message. r.id is set even with an error, if it was understood.
func parseRequest(b []byte) (r request, err error) {
	r.id = "null"
	if !utf8.Valid(b) || !json.Valid(b) {
		return r, Errorf(http.StatusBadRequest, "the message is no JSON")
	}
	var seen [6]bool
	var wrong error // the first thing; what follows is read for the id
	err = members(b, func(name, value []byte) error {
		var i int
		number := func(to *int) error {
			if json.Unmarshal(value, to) != nil || *to < 0 {
				return Errorf(http.StatusBadRequest, "%s: want a number", name)
			}
			*to = min(*to, maxAhead)
			return nil
		}
		var bad error
		switch string(name) {
		case "id":
			i = 0
			if len(value) > maxID || value[0] != '"' && value[0] != '-' && (value[0] < '0' || value[0] > '9') {
				return Errorf(http.StatusBadRequest, "id: want a number or a text of at most %d bytes", maxID)
			}
			r.id = string(value)
		case "call":
			i = 1
			if json.Unmarshal(value, &r.call) != nil || r.call == "" {
				bad = Errorf(http.StatusBadRequest, "call: want the name of a method")
			}
		case "in":
			i = 2
			if string(value) != "null" {
				r.in = value
			}
		case "ahead":
			i, bad = 3, number(&r.ahead)
		case "cancel":
			i = 4
			if json.Unmarshal(value, &r.cancel) != nil {
				bad = Errorf(http.StatusBadRequest, "cancel: want true")
			}
		case "more":
			i, bad = 5, number(&r.more)
		default:
			bad = Errorf(http.StatusBadRequest, "unknown member %.64q: there are id, call, in, ahead, cancel, more", name)
		}
		if bad == nil && seen[i] {
			bad = Errorf(http.StatusBadRequest, "%s is given twice", name)
		}
		seen[i] = true
		if wrong == nil {
			wrong = bad
		}
		return nil
	})
	switch {
	case err != nil:
	case wrong != nil:
		err = wrong
	case r.id == "null":
		err = Errorf(http.StatusBadRequest, "id is missing")
	case r.call == "" && !r.cancel && r.more == 0:
		err = Errorf(http.StatusBadRequest, "call is missing")
	}
	return r, err
}

// receive acts on a message, which is only lent.
func (k *socket) receive(b []byte) {
	r, err := parseRequest(b)
	if err != nil {
		k.fail(r.id, err)
		return
	}
	x := k.under[r.id]
	switch {
	case r.call != "" && x != nil:
		// An answer with this id would be taken for that of the other one.
		k.shut(websocket.StatusPolicy, "id "+r.id+" is that of a call under way")
	case r.call != "":
		if err := k.begin(&r); err != nil {
			k.fail(r.id, err)
		}
	case x == nil: // it has ended meanwhile
	case r.cancel:
		x.cancel(errCancelled)
	case x.credit != nil:
		for range r.more {
			select {
			case x.credit <- struct{}{}:
			default:
				return
			}
		}
	}
}

// begin makes a call.
func (k *socket) begin(r *request) error {
	s := k.s
	service, m, id, err := s.find(r.call)
	if err != nil {
		return err
	}
	l := s.bounds()
	feed := m.push != nil
	if n := len(k.under) - k.feeds; !feed && n >= l.SocketCalls {
		return Errorf(http.StatusTooManyRequests, "%d calls are under way on this WebSocket: wait for their answers", n)
	}
	if feed && k.feeds >= l.SocketFeeds {
		return Errorf(http.StatusTooManyRequests, "%d feeds are under way on this WebSocket: cancel one", k.feeds)
	}
	if k.header == nil {
		k.header = unpackHeader(k.fields)
	}
	c := new(Call)
	*c = *k.base
	c.Service, c.Method, c.Needs, c.ID, c.Changes, c.Feed, c.Header = service.Root, m.name, m.needs, id, m.changes, feed, k.header
	x := &exchange{k: k, id: r.id, call: c, method: m, in: bytes.Clone(r.in)}
	if feed {
		k.feeds++
		x.room = filled(unsent)
		if r.ahead > 0 {
			x.credit = filled(r.ahead)
		}
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	x.cancel = cancel
	if k.under == nil {
		k.under = make(map[string]*exchange)
	}
	k.under[r.id] = x
	s.wg.Add(1) // that of k, which is open, is not done yet: so Close still waits
	go x.run(ctx)
	return nil
}

// filled returns a channel of n tokens.
func filled(n int) chan struct{} {
	c := make(chan struct{}, n)
	for range n {
		c <- struct{}{}
	}
	return c
}

// run makes the call, in a goroutine of its own.
func (x *exchange) run(ctx context.Context) {
	s := x.k.s
	defer s.wg.Done()
	defer x.cancel(nil)
	var b []byte
	err := x.made(ctx, &b)
	if err != nil {
		if ctx.Err() != nil && context.Cause(ctx) != errGone {
			err = context.Cause(ctx)
		}
		b = x.errorMessage(s.answer(x.call, err))
	}
	x.k.loop.Post(func() { x.k.put(frame{x, b, true}) })
}

func (x *exchange) errorMessage(e *Error) []byte {
	told, _ := json.Marshal(e)
	return message(x.id, "error", told)
}

// made makes the call and sets b to its last message. A panic that means to end the connection ends it.
func (x *exchange) made(ctx context.Context, b *[]byte) (err error) {
	defer func() {
		if recover() != nil { // http.ErrAbortHandler; all others were caught
			x.k.loop.Post(func() { x.k.shut(websocket.StatusInternal, "") })
			err = errGone
		}
	}()
	m := x.method
	x.call.takes, x.call.fill = m.params.t, func(in any) error {
		g := given{body: x.in, item: x.call.ID}
		x.in = nil // a feed may live for days
		return g.into(m.params, in)
	}
	return x.k.s.do(ctx, x.call, func(ctx context.Context, seen *any) error {
		if m.push != nil {
			*b = message(x.id, "end", []byte("true"))
			return m.push(ctx, x.call.fill, seen, func(event any) error { return x.send(ctx, event) })
		}
		out, err := m.call(ctx, x.call.fill, seen)
		if err != nil {
			return err
		}
		if content, ok := out.(Content); ok {
			body, err := content.Read(x.k.s.bounds().MaxBody)
			if err == errLong {
				return Errorf(http.StatusRequestEntityTooLarge, "the answer is too long for a message: ask for it over HTTP")
			}
			if err != nil {
				return Internal(err)
			}
			out = carry(or(content.Type, "application/octet-stream"), body)
			result, err := json.Marshal(out)
			*b = message(x.id, "result", result)
			return err
		}
		result, err := m.encode(out)
		if err != nil {
			return Internal(err)
		}
		*b = message(x.id, "result", result)
		return nil
	})
}

// message makes {"id":id,"what":value}.
func message(id, what string, value []byte) []byte {
	b := make([]byte, 0, len(id)+len(what)+len(value)+len(`{"id":,"":}`))
	b = append(append(b, `{"id":`...), id...)
	b = append(append(append(b, `,"`...), what...), `":`...)
	return append(append(b, value...), '}')
}

// send sends an event as soon as the client has room for it.
func (x *exchange) send(ctx context.Context, event any) error {
	v, err := x.method.encode(event)
	if err != nil {
		return Internal(err)
	}
	for _, c := range []chan struct{}{x.credit, x.room} {
		if c == nil {
			continue
		}
		select {
		case <-c:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	b := message(x.id, "event", v)
	if !x.k.loop.Post(func() { x.k.put(frame{x, b, false}) }) {
		return errGone
	}
	return nil
}

// put writes a message of a call, now or when the client has taken what is queued.
func (k *socket) put(f frame) {
	if k.state == open && (len(k.late) > 0 || k.end.Pending() > k.end.HighMark()) {
		k.late = append(k.late, f)
		return
	}
	k.putNow(f)
}

func (k *socket) putNow(f frame) {
	if f.last {
		delete(k.under, f.x.id)
		if f.x.method.push != nil {
			k.feeds--
		}
		if len(k.under) == 0 {
			k.under, k.header = nil, nil
		}
	} else {
		f.x.room <- struct{}{}
	}
	if k.state == open {
		k.write(websocket.Text, f.b)
		k.full()
	}
}

// fail answers with an error what has not become a call.
func (k *socket) fail(id string, err error) {
	e, _ := told(err)
	b, _ := json.Marshal(e)
	k.write(websocket.Text, message(id, "error", b))
}

// write queues a frame.
func (k *socket) write(op websocket.Opcode, payload []byte) {
	var room [websocket.MaxHeader]byte
	head := room[websocket.PutHeader(room[:], op, true, len(payload), nil):]
	k.end.Write(head)
	k.end.Write(payload)
	k.sent += uint64(len(head) + len(payload))
}

// full stops reading while the client does not take its answers; OnDrain goes on.
func (k *socket) full() {
	if k.state == open && !k.paused && k.end.Pending() > k.end.HighMark() {
		k.paused = true
		k.end.Pause()
	}
}

func (k *socket) OnDrain() {
	for len(k.late) > 0 && k.state == open && k.end.Pending() <= k.end.HighMark() {
		f := k.late[0]
		k.late[0] = frame{}
		if k.late = k.late[1:]; len(k.late) == 0 {
			k.late = nil
		}
		k.putNow(f)
	}
	if k.paused && k.state == open && k.end.Pending() <= k.end.HighMark() {
		k.paused = false
		k.end.Resume()
	}
}

func (k *socket) OnEOF() { k.shut(websocket.StatusNone, "") }

func (k *socket) OnClose(error) {
	k.state = gone
	k.timer.Stop()
	k.abandon()
}

// shut ends the WebSocket in good order: a close frame, then the end of the connection.
func (k *socket) shut(status int, reason string) {
	if k.state != open {
		return
	}
	if status != websocket.StatusNone {
		k.write(websocket.Close, websocket.ClosePayload(status, reason))
	}
	k.state = closing
	k.abandon()
	k.end.Close()
}

// abandon ends what is under way.
func (k *socket) abandon() {
	if k.message != nil {
		k.forget()
	}
	late := k.late
	k.late = nil
	for _, x := range k.under {
		x.cancel(errGone)
	}
	for _, f := range late {
		k.putNow(f)
	}
	k.unregister()
}

func (k *socket) arm() {
	l := k.s.bounds()
	k.loop.Arm(&k.timer, min(l.Ping, l.Stall), k.tick)
}

// tick looks whether the client is still there.
func (k *socket) tick() {
	if k.state != open {
		return
	}
	l, now := k.s.bounds(), k.loop.Now()
	switch n := k.end.Pending(); {
	case n == 0 || k.sent-uint64(n) != k.taken:
		k.taken, k.stuck = k.sent-uint64(n), deadline{}
		if n > 0 {
			k.stuck.began = now
		}
	case k.stuck.over(now, l.Stall):
		k.end.Abort(errors.New("client takes nothing"))
		return
	}
	if k.message != nil && k.since.over(now, l.Stall) {
		k.shut(websocket.StatusPolicy, "the message took too long")
		return
	}
	switch {
	case k.heard || k.paused:
		k.heard, k.pinged = false, false
	case k.pinged:
		k.end.Abort(errors.New("client does not answer a ping"))
		return
	default:
		k.pinged = true
		k.write(websocket.Ping, nil)
	}
	k.arm()
}

// packHeader puts a header into one string, since it may be kept for days: what is about the handshake is left out.
func packHeader(h http.Header) string {
	var b strings.Builder
	for name, values := range h {
		if strings.HasPrefix(name, "Sec-Websocket-") || name == "Connection" || name == "Upgrade" {
			continue
		}
		for _, v := range values {
			b.WriteString(name + "\n" + v + "\n")
		}
	}
	return strings.Clone(b.String())
}

func unpackHeader(s string) http.Header {
	h := make(http.Header)
	for s != "" {
		var name, value string
		name, s, _ = strings.Cut(s, "\n")
		value, s, _ = strings.Cut(s, "\n")
		h[name] = append(h[name], value)
	}
	return h
}
