package link

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
	"culvert.dev/pkg/websocket"
)

// DialConfig says which link to make.
type DialConfig struct {
	// Transport is what carries the link. The zero value is WSS.
	Transport Transport

	// Address is the public relay's host:port. Its certificate must name the host.
	Address string

	// RootCAs verify the certificate. If nil, the system's do.
	RootCAs *x509.CertPool

	// Site is the name of the site; Key proves that we are it.
	Site string
	Key  ed25519.PrivateKey

	// Token is that of an operator, who has a session of his own with the relay, for the services of Site: Key, and what
	// the relay is told of links and machines, are not used then. If empty, we are the site.
	Token string

	// Plain does without TLS, with a Token only: for a listener on this machine.
	Plain bool

	// Session and Resume are from the Welcome of the session to go on with, or "".
	Session, Resume string

	// Role is what the link is for, and Links how many others the session still has.
	Role  tunnel.Role
	Links int

	// Machine and Process identify who dials, see relay.Hello. "": not told.
	Machine, Process string

	// Software tells the relay's operators what we are, and Choice why this
	// transport: at most relay.MaxChoice bytes of visible ASCII.
	Software, Choice string

	// OnHint is told, on the loop and before done, what could be better about the
	// socket of a QUIC link. If nil, nobody is.
	OnHint func(hint string)

	// Dial replaces the network of a WSS link. If nil, TCP.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// A Phase is a part of making a link.
type Phase string

// The phases, in their order.
const (
	PhaseDial    Phase = "dial"    // look-up and TCP, or the first answer of QUIC
	PhaseTLS     Phase = "tls"     // the relay proves itself
	PhaseUpgrade Phase = "upgrade" // HTTP to WebSocket
	PhaseHello   Phase = "hello"   // the site proves itself
)

// A DialError says in which phase a dial has failed. If the relay has refused the
// site, Err is a *relay.Refusal; if it has answered the upgrade as a server that is
// no public relay does, a *websocket.StatusError.
type DialError struct {
	Phase Phase
	Err   error
	Hint  string // what to look at, or ""
}

func (e *DialError) Error() string {
	s := string(e.Phase) + ": " + e.Err.Error()
	switch e.Err.(type) {
	case *net.OpError: // says "dial" itself
		s = e.Err.Error()
	case *relay.Refusal:
		s = "refused: " + e.Err.Error()
	}
	if e.Hint != "" {
		s += ": " + e.Hint
	}
	return s
}

func (e *DialError) Unwrap() error { return e.Err }

// ErrTimeout is the error of a phase in which the 10 seconds that a dial may take
// were over.
var ErrTimeout = fmt.Errorf("no answer within %v", handshakeTimeout)

// dialer makes one link.
type dialer struct {
	cfg   DialConfig
	loop  *evloop.Loop
	ctx   context.Context
	stop  context.CancelFunc // ends ctx
	unask func() bool        // ends the watch of the caller's context
	done  func(*Link, relay.Welcome, error)

	phase Phase
	timer evloop.Timer
	start time.Time
	conn  *evloop.Conn // once dialled
	key   string       // of the upgrade
	host  string
	cause error // why the connection was aborted from here
}

// Dial makes a link on a loop, in at most 10 seconds. It is called on that loop, and
// calls done there once: with a link for Link.Serve, or with a *DialError.
// Ending ctx gives up.
func Dial(ctx context.Context, loop *evloop.Loop, cfg DialConfig, done func(*Link, relay.Welcome, error)) {
	d := &dialer{cfg: cfg, loop: loop, done: done, phase: PhaseDial, start: loop.Now()}
	host, _, err := net.SplitHostPort(cfg.Address)
	if err != nil {
		loop.Post(func() { done(nil, relay.Welcome{}, &DialError{Phase: PhaseDial, Err: err}) })
		return
	}
	d.host = host
	d.ctx, d.stop = context.WithCancel(ctx)
	d.unask = context.AfterFunc(ctx, func() { loop.Post(func() { d.giveUp(context.Cause(ctx)) }) })
	loop.Arm(&d.timer, handshakeTimeout, func() { d.giveUp(ErrTimeout) })
	if cfg.Transport == QUIC {
		d.dialQUIC()
		return
	}
	if cfg.Dial == nil {
		loop.Dial(d.ctx, "tcp", cfg.Address, d.dialled)
		return
	}
	loop.DialFunc(d.ctx, func(ctx context.Context) (net.Conn, error) {
		return cfg.Dial(ctx, "tcp", cfg.Address)
	}, d.dialled)
}

// giveUp ends the dial from outside: whatever is under way fails, and reports.
func (d *dialer) giveUp(err error) {
	if d.done == nil {
		return
	}
	if d.cause == nil {
		d.cause = err
	}
	d.stop()
	if d.conn != nil {
		d.conn.Abort(err)
	}
}

// failed reports an error.
func (d *dialer) failed(err error) {
	if d.cause != nil {
		err = d.cause
	}
	d.report(nil, relay.Welcome{}, &DialError{Phase: d.phase, Err: err, Hint: d.hint(err)})
}

func (d *dialer) report(l *Link, w relay.Welcome, err error) {
	done := d.done
	if done == nil {
		return
	}
	d.done = nil
	d.unask()
	d.stop()
	d.timer.Stop()
	done(l, w, err)
}

func (d *dialer) dialled(c *evloop.Conn, err error) {
	if err != nil {
		d.failed(err)
		return
	}
	if d.cause != nil {
		c.Abort(d.cause)
		d.failed(d.cause)
		return
	}
	d.conn, d.phase = c, PhaseTLS
	if d.cfg.Plain {
		d.secured(nil)
		return
	}
	c.StartTLS(&tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: d.host,
		RootCAs:    d.cfg.RootCAs,
		NextProtos: []string{"http/1.1"},
	}, true, handshakeTimeout-d.loop.Now().Sub(d.start), d.secured)
}

func (d *dialer) secured(err error) {
	if err != nil {
		d.failed(err)
		return
	}
	d.phase = PhaseUpgrade
	d.key = websocket.NewKey()
	d.conn.SetHandler((*upgrade)(d))
	d.conn.Write(d.request())
}

// request is what asks for the upgrade.
func (d *dialer) request() []byte {
	host := strings.TrimSuffix(d.cfg.Address, ":443")
	if d.cfg.Token == "" {
		return websocket.AppendRequest(nil, host, relay.LinkPath, d.key)
	}
	b := websocket.AppendRequest(nil, host, relay.OperatePath+d.cfg.Site, d.key)
	return fmt.Appendf(b[:len(b)-len("\r\n")], "Authorization: Bearer %s\r\n\r\n", d.cfg.Token)
}

// upgrade is a dialer as the handler of its connection until the answer is there.
type upgrade dialer

func (u *upgrade) OnData(b []byte) int {
	n, err := websocket.ReadResponse(b, u.key)
	if err != nil {
		(*dialer)(u).failed(err)
		u.conn.Abort(err)
		return len(b)
	}
	if n > 0 {
		(*dialer)(u).greet()
	}
	return n
}

func (u *upgrade) OnEOF()   { (*dialer)(u).failed(io.ErrUnexpectedEOF); u.conn.Close() }
func (u *upgrade) OnDrain() {}
func (u *upgrade) OnClose(err error) {
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	(*dialer)(u).failed(err)
}

// greet says who we are, over this TLS connection and no other.
func (d *dialer) greet() {
	d.phase = PhaseHello
	l := newLink(d.conn, true)
	l.fail = d.failed
	l.hear = func(message []byte) { d.heard(l, message) }
	d.conn.SetHandler((*events)(l))
	if d.cfg.Token != "" {
		l.sendMessage(relay.Encode(relay.OperateHello{
			Version: relay.WireVersion, Session: d.cfg.Session, Resume: d.cfg.Resume, Software: d.cfg.Software,
		}))
		return
	}
	exporter, err := d.conn.TLS().ExportKeyingMaterial(auth.ExporterLabel, nil, 32)
	if err != nil {
		l.Close(err)
		return
	}
	l.sendMessage(d.cfg.hello(exporter))
}

// hello makes the Hello for the connection with that exporter.
func (cfg *DialConfig) hello(exporter []byte) []byte {
	return relay.Encode(relay.Hello{
		Version: relay.WireVersion, Site: cfg.Site, Key: auth.FormatPublicKey(cfg.Key.Public().(ed25519.PublicKey)),
		Signature: auth.SignLink(cfg.Key, cfg.Site, exporter),
		Session:   cfg.Session, Resume: cfg.Resume,
		Role: cfg.Role.String(), Links: cfg.Links, Machine: cfg.Machine, Process: cfg.Process,
		Software: cfg.Software, Choice: cfg.Choice,
	})
}

// heard takes the Welcome.
func (d *dialer) heard(l *Link, message []byte) {
	w, err := decodeWelcome(message)
	if err != nil {
		l.end(websocket.StatusNormal, "", err) // reports
		return
	}
	l.state, l.fail = ready, nil
	l.conn.Pause() // until Serve
	d.report(l, w, nil)
}

// decodeWelcome decodes a Welcome; a refusal is an error.
func decodeWelcome(message []byte) (relay.Welcome, error) {
	w, err := relay.DecodeWelcome(message)
	if err == nil && w.Error != nil {
		err = w.Error
	}
	return w, err
}

// hint says what to look at after an error.
func (d *dialer) hint(err error) string {
	var (
		unknownCA x509.UnknownAuthorityError
		hostname  x509.HostnameError
		invalid   x509.CertificateInvalidError
		notTLS    tls.RecordHeaderError
		status    *websocket.StatusError
	)
	switch {
	case errors.As(err, &unknownCA):
		return "nobody whom this machine trusts has signed the relay's certificate; name its CA with ca = \"ca.pem\""
	case errors.As(err, &hostname):
		return fmt.Sprintf("the relay's certificate is not for %s; is that the relay's domain?", d.host)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "the relay's certificate has expired, or a clock is wrong"
	case errors.As(err, &notTLS):
		return fmt.Sprintf("%s does not speak TLS; is the port right?", d.cfg.Address)
	case errors.As(err, &status):
		return fmt.Sprintf("%s is an HTTP server and not a public relay, or has another domain", d.cfg.Address)
	case d.cfg.Transport == QUIC:
		return d.hintQUIC(err)
	}
	return ""
}
