package link

import (
	"crypto/tls"
	"errors"
	"fmt"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
	"culvert.dev/pkg/websocket"
)

// Incoming is a link whose private relay has said who it is, and waits to be let in
// with Welcome or turned away with Refuse. It belongs to the loop of its
// connection.
type Incoming struct {
	Hello     relay.Hello // checked for form only; of an operator's link there is Operate instead
	Exporter  []byte      // what Hello.Signature must be over, see auth.VerifyLink
	Operate   relay.OperateHello
	Transport Transport

	link   *Link
	moving func(error) // Move is under way
	target *evloop.Loop
}

// AcceptOperator is Accept for relay.OperatePath: whoever asked has shown a token of an operator, in the request. The
// connection may be without TLS, if it does not leave the machine.
func AcceptOperator(c *evloop.Conn, key string, hello func(*Incoming, error)) {
	l := newLink(c, false)
	l.fail = func(err error) { hello(nil, err) }
	l.hear = func(message []byte) { l.heardOperator(message, hello) }
	l.upgraded(key)
}

// heardOperator takes the Hello of an operator.
func (l *Link) heardOperator(message []byte, hello func(*Incoming, error)) {
	var refusal *relay.Refusal
	h, err := relay.DecodeOperateHello(message)
	if errors.As(err, &refusal) {
		l.refuse(refusal)
		return
	}
	l.arrived(&Incoming{Operate: h}, hello)
}

// arrived hands a link over that waits to be let in.
func (l *Link) arrived(in *Incoming, hello func(*Incoming, error)) {
	in.Transport, in.link = l.Transport(), l
	l.state = ready
	l.fail = in.gone
	if l.quic == nil {
		l.conn.Pause() // until Serve
	}
	hello(in, nil)
}

// upgraded answers the request, and waits for the Hello.
func (l *Link) upgraded(key string) {
	c := l.conn
	c.SetHandler((*events)(l))
	c.Write(websocket.AppendResponse(nil, key, ""))
	c.Loop().Arm(&l.timer, handshakeTimeout, func() {
		l.end(websocket.StatusPolicy, "no hello in time", fmt.Errorf("no hello within %v", handshakeTimeout))
	})
}

// Accept makes a link of a TLS connection on which the request for relay.LinkPath
// with that Sec-WebSocket-Key has been read; bytes behind the request stay
// unread. It answers the request, and calls hello once, on the connection's loop:
// with what came, or, when nothing did within 10 seconds or it was no Hello, with
// an error. The connection is closed then.
func Accept(c *evloop.Conn, key string, hello func(*Incoming, error)) {
	l := newLink(c, false)
	l.fail = func(err error) { hello(nil, err) }
	l.hear = func(message []byte) { l.heard(message, hello) }
	l.upgraded(key)
}

// heard takes the Hello.
func (l *Link) heard(message []byte, hello func(*Incoming, error)) {
	var refusal *relay.Refusal
	h, err := relay.DecodeHello(message)
	if errors.As(err, &refusal) {
		l.refuse(refusal)
		return
	}
	state := l.tls()
	if state == nil {
		l.refuse(&relay.Refusal{Code: relay.RefuseInternal, Message: "a link needs TLS"})
		return
	}
	exporter, err := state.ExportKeyingMaterial(auth.ExporterLabel, nil, 32)
	if err != nil || state.Version < tls.VersionTLS13 { // with 1.2 it is bound to the connection in some cases only
		l.refuse(&relay.Refusal{Code: relay.RefuseInternal, Message: "a link needs TLS 1.3"})
		return
	}
	l.arrived(&Incoming{Hello: h, Exporter: exporter}, hello)
}

// tls is the state of the connection's TLS, nil if it has none.
func (l *Link) tls() *tls.ConnectionState {
	if l.quic != nil {
		state := l.quic.conn.ConnectionState().TLS
		return &state
	}
	return l.conn.TLS()
}

// refuse tells the peer why it is not let in, and ends the connection.
func (l *Link) refuse(r *relay.Refusal) {
	l.sendMessage(relay.Encode(relay.Welcome{Error: r}))
	l.end(websocket.StatusPolicy, string(r.Code), r)
}

// Role is what the private relay wants the link for.
func (in *Incoming) Role() tunnel.Role {
	switch in.Hello.Role {
	case relay.RoleBulk:
		return tunnel.RoleBulk
	case relay.RoleDatagram:
		return tunnel.RoleDatagram
	}
	return tunnel.RoleInteractive
}

// Refuse turns the private relay away.
func (in *Incoming) Refuse(r relay.Refusal) {
	if in.link.state == ready {
		in.link.fail = nil
		in.link.refuse(&r)
	}
}

// Welcome lets the private relay in. What follows is Serve.
func (in *Incoming) Welcome(w relay.Welcome) *Link {
	l := in.link
	l.fail = nil
	if l.state == ready {
		l.sendMessage(relay.Encode(w))
	}
	return l
}

// Move takes the link to another loop, that of its session, and calls f there, once:
// with nil, or with an error when the connection has ended on the way.
func (in *Incoming) Move(to *evloop.Loop, f func(error)) {
	l := in.link
	in.moving, in.target = f, to
	if l.state == closed {
		in.gone(l.err)
		return
	}
	if l.quic != nil {
		l.quic.loop.Store(to)
		to.Post(func() {
			if f := in.moving; f != nil {
				in.moving = nil
				f(nil)
			}
		})
		return
	}
	l.conn.Move(to, func() {
		if l.conn.Loop() != to { // it is dead; gone will hear of it
			return
		}
		if f := in.moving; f != nil {
			in.moving = nil
			f(nil)
		}
	})
}

// gone is told that the connection has ended before Welcome or Refuse.
func (in *Incoming) gone(err error) {
	if f := in.moving; f != nil {
		in.moving = nil
		in.target.Post(func() { f(err) })
	}
}
