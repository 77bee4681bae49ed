// Package link carries a session between two relays: over a WebSocket in TLS, driven
// by the event loop that owns the session, or over QUIC. A Link is a tunnel.Link.
//
//	session := link.NewSession(loop, tunnel.Config{…}) // the loop flushes it
//	link.Dial(ctx, loop, link.DialConfig{Address: "relay.example.com:443", Site: "office", Key: key}, done)
//	func done(l *link.Link, w relay.Welcome, err error) { l.Serve(session, role, lost) }
//
//	link.Accept(conn, key, func(in *link.Incoming, err error) { // the http layer saw the request for an upgrade
//		l := in.Welcome(relay.Welcome{…}) // or in.Refuse(…)
//		l.Serve(session, role, lost)
//	})
//
//	link.AcceptQUIC(loop, conn, hello) // a connection of quic-go
//
// The WebSocket's frames are made here, from pkg/websocket, and not by a library that blocks:
// what a visitor sends goes through its stream, into a frame, through crypto/tls
// and to the socket in the same turn of the loop, without another goroutine being
// woken; and all that a turn has collected leaves in one message and one write.
// The header is put into the headroom right in front of the payload, a client's
// mask is applied in place, so the only copy on the way is the one into the TLS
// record.
//
// QUIC has goroutines of its own, and costs more. What it gives for that are lanes, so
// that a packet that was lost holds up one stream, datagrams, and links that
// outlive a change of the address.
//
// # Invariants
//
//   - A Link belongs to one loop, which is the session's. What the goroutines of QUIC
//     have for it they post there.
//   - Nothing of the session is sent before the site has proved itself over this
//     very TLS connection, and been let in.
//   - Before that, a peer may use 10 seconds, 8 KiB of answer and 4 KiB of message; and
//     what QUIC keeps for it, see QUICConfig.
//   - The owner hears of the end of a Link exactly once, some time after it.
package link

import (
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
	"culvert.dev/pkg/websocket"
)

// handshakeTimeout bounds all of a dial, and on the other side the time from the
// upgrade, or the handshake of QUIC, to the Hello.
const handshakeTimeout = 10 * time.Second

// A state is what a Link is doing.
//
//	upgrading → greeting   client: the relay has switched protocols
//	greeting  → ready      client: the Welcome came; server: the Hello came
//	ready     → open       Serve
//	any       → closed     Close, the connection's end, or a violation
type state uint8

const (
	upgrading state = iota
	greeting
	ready
	open
	closed
)

// A Transport is what carries a link.
type Transport uint8

// The transports.
const (
	WSS  Transport = iota // a WebSocket in TLS
	QUIC                  // streams and datagrams of QUIC
)

func (t Transport) String() string {
	if t == QUIC {
		return "quic"
	}
	return "wss"
}

// Link carries a session. It belongs to one loop.
type Link struct {
	// OnTuned is told, at most once and in a sentence for people, that the path loses
	// segments and what was done about it: another congestion control was taken, or,
	// with err, could not be, which says what to do. If nil, nobody is. It is set
	// before Serve.
	OnTuned func(what string, err error)

	quic *quicConn    // nil: it is a WebSocket, and
	conn *evloop.Conn // its connection
	tune tuner        // of it

	client  bool
	state   state
	decoder websocket.Decoder
	message []byte // the Hello or Welcome as far as it has come

	hear  func(message []byte) // greeting: takes the message
	fail  func(error)          // before ready: the handshake has failed; called once
	timer evloop.Timer         // bounds the handshake

	session *Session
	lost    func(*Link, error) // once open
	err     error              // once closed: why
}

// newLink makes a link of a connection. The caller makes it its handler.
func newLink(c *evloop.Conn, client bool) *Link {
	l := &Link{conn: c, client: client, state: greeting}
	l.decoder.Masked = !client
	l.decoder.MaxMessage = relay.MaxMessage
	return l
}

// Serve makes l carry s from now on, in the given role: it attaches l to s, and gives s
// what comes.
// When the link has ended, lost is called, once, on the loop and not in a call
// of a method; err is nil after Close(nil). The session has been told then.
func (l *Link) Serve(s *Session, role tunnel.Role, lost func(l *Link, err error)) {
	l.session, l.lost = s, lost
	if l.state == closed {
		l.report()
		return
	}
	l.state = open
	if l.quic != nil {
		l.quic.serve()
	} else {
		l.decoder.MaxMessage = 0 // frames of the session have bounds of their own
		l.conn.Resume()
	}
	s.Attach(l, role, l.loop().Now())
}

// loop is the one that l belongs to.
func (l *Link) loop() *evloop.Loop {
	if l.quic != nil {
		return l.quic.loop.Load()
	}
	return l.conn.Loop()
}

// Send sends one message, as tunnel.Link says.
func (l *Link) Send(b []byte) {
	if l.state != open {
		return
	}
	if l.quic != nil {
		l.quic.control.Send(b)
		return
	}
	payload := b[tunnel.Headroom:]
	key := l.mask()
	start := websocket.PutHeader(b[:tunnel.Headroom], websocket.Binary, true, len(payload), key)
	if key != nil {
		websocket.Mask(*key, payload)
	}
	l.conn.Write(b[start:])
	l.tune.sent(l)
}

// Room is a batch while the queue is short, both as the path is fast.
func (l *Link) Room() int {
	switch {
	case l.state != open:
		return 0
	case l.quic != nil:
		return l.quic.control.Room()
	}
	return l.tune.room(l.conn)
}

// Lanes reports whether streams and datagrams have ways of their own: not on a WebSocket.
func (l *Link) Lanes() bool { return l.quic != nil }

// OpenLane opens a lane, as tunnel.LaneLink says. A WebSocket has none.
func (l *Link) OpenLane() tunnel.Lane {
	if l.quic == nil || l.state != open {
		return nil
	}
	return l.quic.openLane()
}

// SendDatagram sends a datagram beside the streams, as tunnel.LaneLink says. With a
// WebSocket it can not.
func (l *Link) SendDatagram(id uint32, b []byte) bool {
	return l.quic != nil && l.state == open && l.quic.sendDatagram(id, b)
}

// Transport returns what carries the link.
func (l *Link) Transport() Transport {
	if l.quic != nil {
		return QUIC
	}
	return WSS
}

// The status of a CloseError after a Close(nil) of the peer (rfc6455#section-7.4.1).
const (
	StatusOver = websocket.StatusNormal    // the session is over
	StatusAway = websocket.StatusGoingAway // it goes on, with other links
)

// Close gives the link up. With a nil error the peer gets what is queued, and
// StatusAway if the link carries a session that is not over, or StatusOver;
// otherwise the connection is useless, and is reset.
func (l *Link) Close(err error) {
	if l.state == closed {
		return
	}
	if err == nil {
		status := StatusOver
		if l.session != nil && !l.session.Closed() {
			status = StatusAway
		}
		l.end(status, "", nil)
		return
	}
	l.shut(err)
	if l.quic != nil {
		l.quic.end(ending{status: websocket.StatusInternal, reason: err.Error()})
		return
	}
	l.conn.Abort(err)
}

// end closes in good order: after what is queued, and with a status.
func (l *Link) end(status int, reason string, err error) {
	if l.quic != nil {
		l.quic.end(ending{status, reason, true})
		l.shut(err)
		return
	}
	l.conn.Write(websocket.AppendFrame(nil, websocket.Close, websocket.ClosePayload(status, reason), l.mask()))
	l.conn.Close()
	l.shut(err)
}

// shut makes l closed, and tells whoever has to know.
func (l *Link) shut(err error) {
	if l.state == closed {
		return
	}
	was := l.state
	l.state, l.err = closed, err
	l.timer.Stop()
	l.tune.timer.Stop()
	l.message = nil
	switch {
	case was == open:
		l.report()
	case l.fail != nil:
		fail := l.fail
		l.fail = nil
		fail(err)
	}
}

// report tells session and owner in a turn of its own: both may be in the middle of
// something.
func (l *Link) report() {
	loop := l.loop()
	loop.Post(func() {
		l.session.Lost(l, l.err, loop.Now())
		l.lost(l, l.err)
	})
}

// mask returns the key for a frame: nil for a server, whose frames have none.
func (l *Link) mask() *websocket.Key {
	if !l.client {
		return nil
	}
	var key websocket.Key
	rand.Read(key[:])
	return &key
}

// sendMessage sends a message of the handshake.
func (l *Link) sendMessage(b []byte) {
	if l.quic != nil {
		l.quic.control.put(appendMessage(nil, b))
		return
	}
	l.conn.Write(websocket.AppendFrame(nil, websocket.Text, b, l.mask()))
}

var errEOF = errors.New("the peer has closed the connection")

// A CloseError is the end of a link by a close frame of the peer.
type CloseError struct {
	Status int
	Reason string
}

func (e *CloseError) Error() string {
	if e.Reason == "" {
		return fmt.Sprintf("the peer has closed the link (status %d)", e.Status)
	}
	return fmt.Sprintf("the peer has closed the link: %q (status %d)", e.Reason, e.Status)
}

// events is a Link as the handler of its connection.
type events Link

// OnData takes frames.
func (e *events) OnData(b []byte) (used int) {
	l := (*Link)(e)
	for l.state == greeting || l.state == open {
		ev, n, err := l.decoder.Next(b[used:])
		used += n
		if err == nil {
			if ev.Op == websocket.None {
				return used
			}
			err = l.take(ev)
		}
		if err != nil {
			l.violated(err)
		}
	}
	if l.state == closed {
		return len(b)
	}
	return used // ready: the rest waits for Serve
}

// take takes one event.
func (l *Link) take(ev websocket.Event) error {
	switch ev.Op {
	case websocket.Ping:
		// A peer that does not read its answers gets no more of them: whoever floods us
		// with pings shall not fill our memory.
		if l.conn.Pending() <= l.conn.HighMark() {
			l.conn.Write(websocket.AppendFrame(nil, websocket.Pong, ev.Payload, l.mask()))
		}
	case websocket.Pong:
	case websocket.Close:
		status, reason := websocket.ParseClose(ev.Payload)
		if len(ev.Payload) == 0 {
			status = websocket.StatusNormal
		}
		l.end(status, "", &CloseError{status, reason})
	case websocket.Text:
		if l.state != greeting {
			return &websocket.Error{Status: websocket.StatusUnsupported, Reason: "text message on an open link"}
		}
		l.message = append(l.message, ev.Payload...) // bounded by MaxMessage
		if ev.Final {
			message := l.message
			l.message = nil
			l.timer.Stop()
			l.hear(message)
		}
	case websocket.Binary:
		if l.state != open {
			return &websocket.Error{Status: websocket.StatusPolicy, Reason: "binary message before the link is open"}
		}
		return l.session.Receive(l, ev.Payload, l.conn.Loop().Now())
	}
	return nil
}

// violated ends the link because of what the peer sent.
func (l *Link) violated(err error) {
	if l.state == closed {
		return
	}
	status := websocket.StatusProtocolError
	var w *websocket.Error
	if errors.As(err, &w) {
		status = w.Status
	}
	if l.quic != nil {
		l.quic.end(ending{status: status, reason: err.Error()})
		l.shut(err)
		return
	}
	l.end(status, err.Error(), err)
}

// OnEOF is the end of the link: half of one is of no use.
func (e *events) OnEOF() {
	l := (*Link)(e)
	if l.state != closed {
		l.shut(errEOF)
		l.conn.Close()
	}
}

// OnDrain lets the session send again.
func (e *events) OnDrain() {
	l := (*Link)(e)
	if l.state == open {
		l.session.Drained(l, l.conn.Loop().Now())
	}
}

// OnClose is the end of the connection.
func (e *events) OnClose(err error) {
	if err == nil {
		err = errEOF
	}
	(*Link)(e).shut(err)
}
