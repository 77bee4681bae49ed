package operate

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

// errGone is that of a stream whose session was lost before anybody has taken it.
var errGone = errors.New("the session with the relay was lost")

// connect opens a stream, proves whose it is, and asks.
func (c *Client) connect(ctx context.Context, site string, req relay.OperateRequest) (Conn, error) {
	if err := relay.CheckName(site); err != nil {
		return nil, &Error{relay.OperateNotFound, fmt.Sprintf("site: %v", err)}
	}
	if err := req.Check(); err != nil {
		return nil, &Error{relay.OperateNotFound, err.Error()}
	}
	caller := ctx
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	for {
		conn, err := c.try(ctx, site, req)
		switch {
		case err == nil:
			return conn, nil
		case caller.Err() != nil:
			return nil, caller.Err()
		case errors.Is(err, errGone) && ctx.Err() == nil: // the relay has restarted: there is another session
			continue
		case errors.Is(ctx.Err(), context.DeadlineExceeded) && !errors.Is(err, ctx.Err()) && !errors.Is(err, os.ErrDeadlineExceeded):
			return nil, err // what was waited for
		case errors.Is(ctx.Err(), context.DeadlineExceeded):
			return nil, &Error{relay.OperateTimeout, fmt.Sprintf("no answer from site %q within %v", site, openTimeout)}
		}
		return nil, err
	}
}

func (c *Client) try(ctx context.Context, site string, req relay.OperateRequest) (Conn, error) {
	l, err := c.loop()
	if err != nil {
		return nil, err
	}
	t := &conn{loop: l, site: site, service: req.Service}
	if err := t.open(ctx, c); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { t.nc.SetDeadline(time.Unix(1, 0)) })
	err = t.ask(c, req)
	stopped := stop()
	if !stopped && err == nil {
		err = ctx.Err()
	}
	if _, refused := errors.AsType[*Error](err); refused && stopped {
		t.nc.Close() // in good order: it is no fault of the service
		return nil, err
	}
	if err != nil {
		t.Abort()
		return nil, err
	}
	if req.Network == "udp" && !req.Probe {
		return &packetConn{conn: t, in: bufio.NewReaderSize(t, 2+tunnel.MaxDatagram)}, nil
	}
	return t, nil
}

// conn is a connection. Its methods are called from any goroutine.
type conn struct {
	loop          *evloop.Loop // immutable, as is all of it once it is open
	site, service string
	scheme        string
	session       *session
	stream        *tunnel.Stream // owned by the loop
	nc            *evloop.NetConn
	tls           *tls.Conn

	// Of the beginning, owned by the goroutine that opens it.
	replied bool
	reply   relay.OperateReply
}

// open opens the stream.
func (t *conn) open(ctx context.Context, c *Client) error {
	type result struct {
		nc  *evloop.NetConn
		err error
	}
	opened := make(chan result, 1)
	o := &opening{service: t.service, done: func(st *tunnel.Stream, err error) {
		if err != nil {
			opened <- result{err: err}
			return
		}
		t.stream = st
		a := address{t.site, t.service}
		opened <- result{nc: t.loop.NetConn(st, address{}, a, nil)}
	}}
	if !t.loop.Post(func() {
		t.session = c.session(t.loop, t.site)
		t.session.open(o)
	}) {
		return ErrClosed
	}
	select {
	case r := <-opened:
		t.nc = r.nc
		if errors.Is(r.err, tunnel.ErrDraining) || errors.Is(r.err, tunnel.ErrClosed) {
			return errGone
		}
		return r.err
	case <-ctx.Done():
		problem := make(chan error, 1)
		if !t.loop.Post(func() {
			problem <- t.session.giveUp(o)
			select {
			case r := <-opened:
				if r.err == nil {
					t.stream.Reset(tunnel.CodeCancelled)
				}
			default:
			}
		}) {
			return ErrClosed
		}
		if err := <-problem; err != nil {
			return err
		}
		return ctx.Err()
	}
}

// ask speaks TLS with the private relay, and asks for what is wanted.
func (t *conn) ask(c *Client, req relay.OperateRequest) error {
	cfg, err := auth.OperateClient(c.Key, func(key ed25519.PublicKey) error {
		return c.Trust(t.site, auth.FormatPublicKey(key), t.reply.Keys)
	})
	if err != nil {
		return err
	}
	t.tls = tls.Client(replyConn{t.nc, t}, cfg)
	if err := t.tls.Handshake(); err != nil {
		return t.broken(err)
	}
	if _, err := t.tls.Write(relay.AppendOperate(nil, req)); err != nil {
		return t.broken(err)
	}
	b, err := readMessage(t.tls, "private")
	if err != nil {
		return t.broken(err)
	}
	answer, err := relay.DecodeOperateAnswer(b)
	switch {
	case err != nil:
		return &Error{relay.OperateInternal, "the private relay answers nonsense: " + err.Error()}
	case answer.Error != nil:
		return &Error{answer.Error.Code, answer.Error.Text}
	}
	t.scheme = answer.Scheme
	return nil
}

// readMessage reads what the public or the private relay has written by relay.AppendOperate.
func readMessage(r io.Reader, which string) ([]byte, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(head[:]))
	if len(b) == 0 || len(b) > relay.MaxMessage {
		return nil, &Error{relay.OperateInternal, "the " + which + " relay answers nonsense"}
	}
	_, err := io.ReadFull(r, b)
	return b, err
}

// broken is what an error before the answer means.
func (t *conn) broken(err error) error {
	if e, ok := errors.AsType[*Error](err); ok { // of replyConn
		return e
	}
	if e, ok := errors.AsType[*tunnel.StreamError](err); ok && !t.replied && (e.Code == tunnel.CodeSessionLost || e.Code == tunnel.CodeDraining) {
		return errGone
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return &Error{relay.OperateInternal, "what answers in the place of the private relay does not speak TLS: was the public relay tampered with?"}
	}
	return t.lost(err)
}

// lost is what an error of the connection means.
func (t *conn) lost(err error) error {
	e, ok := errors.AsType[*tunnel.StreamError](err)
	if !ok || !e.Remote && e.Code != tunnel.CodeSessionLost {
		return err
	}
	code, text := relay.OperateUnreachable, "was broken off at the site: "+e.Code.String()
	switch e.Code {
	case tunnel.CodeSessionLost:
		text = "was lost"
		if why := t.session.why.Load(); why != nil {
			text += ": " + (*why).Error()
			if e, ok := errors.AsType[*Error](*why); ok {
				code = e.Code
			}
		}
	case tunnel.CodeCancelled:
		text = "was ended by its target, or a relay, in the middle"
	case tunnel.CodeOverload, tunnel.CodeMemory:
		code, text = relay.OperateOverload, "was broken off, as there are too many: "+e.Code.String()
	case tunnel.CodeDraining:
		code, text = relay.OperateAway, "cannot be had: the private relay is shutting down"
	}
	return &Error{code, fmt.Sprintf("the connection to %s/%s %s", t.site, t.service, text)}
}

// replyConn takes the reply of the public relay out of what is read first. Its end is never a good one: crypto/tls, which
// reads nothing behind a close_notify, takes an end between two records for one.
type replyConn struct {
	*evloop.NetConn
	conn *conn
}

func (r replyConn) Read(b []byte) (int, error) {
	if !r.conn.replied {
		if err := r.conn.hear(); err != nil {
			return 0, err
		}
	}
	n, err := r.NetConn.Read(b)
	if err == io.EOF {
		err = &Error{relay.OperateUnreachable, fmt.Sprintf("the connection to %s/%s was cut on its way", r.conn.site, r.conn.service)}
	}
	return n, err
}

// hear reads what the public relay has to say.
func (t *conn) hear() error {
	b, err := readMessage(t.nc, "public")
	if err != nil {
		return err
	}
	reply, err := relay.DecodeOperateReply(b)
	switch {
	case err != nil:
		return &Error{relay.OperateInternal, "the public relay answers nonsense: " + err.Error()}
	case reply.Error != nil:
		return &Error{reply.Error.Code, reply.Error.Text}
	}
	t.replied, t.reply = true, reply
	return nil
}

func (t *conn) Scheme() string { return t.scheme }

// Read reads what the service has sent. io.EOF is its own end: one that somebody else has made is an error.
func (t *conn) Read(b []byte) (int, error) {
	n, err := t.tls.Read(b)
	if err != nil && err != io.EOF {
		err = t.lost(err)
	}
	return n, err
}

func (t *conn) Write(b []byte) (int, error) {
	n, err := t.tls.Write(b)
	if err != nil {
		err = t.lost(err)
	}
	return n, err
}

func (t *conn) CloseWrite() error {
	if err := t.tls.CloseWrite(); err != nil {
		return t.lost(err)
	}
	return t.nc.CloseWrite()
}

func (t *conn) Close() error { return t.tls.Close() }

func (t *conn) Abort() {
	t.loop.Post(func() { t.stream.Reset(tunnel.CodeCancelled) })
	t.nc.Abort()
}

func (t *conn) LocalAddr() net.Addr                 { return t.nc.LocalAddr() }
func (t *conn) RemoteAddr() net.Addr                { return t.nc.RemoteAddr() }
func (t *conn) SetDeadline(at time.Time) error      { return t.tls.SetDeadline(at) }
func (t *conn) SetReadDeadline(at time.Time) error  { return t.tls.SetReadDeadline(at) }
func (t *conn) SetWriteDeadline(at time.Time) error { return t.tls.SetWriteDeadline(at) }

// address is a service, or nothing for our own end.
type address struct{ site, service string }

func (a address) Network() string { return "culvert" }
func (a address) String() string {
	if a.site == "" {
		return "operator"
	}
	return a.site + "/" + a.service
}

// packetConn is a connection of datagrams, each behind its length in two bytes.
type packetConn struct {
	*conn

	reading sync.Mutex
	in      *bufio.Reader // guarded by reading; holds a whole datagram

	writing sync.Mutex
	out     []byte // guarded by writing
}

func (p *packetConn) Read(b []byte) (int, error) {
	p.reading.Lock()
	defer p.reading.Unlock()
	head, err := p.in.Peek(2)
	if err != nil {
		return 0, err
	}
	n := int(binary.BigEndian.Uint16(head))
	if n > tunnel.MaxDatagram {
		return 0, &Error{relay.OperateInternal, "the private relay sends a datagram longer than there are"}
	}
	all, err := p.in.Peek(2 + n)
	if err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, err
	}
	took := copy(b, all[2:])
	p.in.Discard(2 + n)
	return took, nil
}

func (p *packetConn) Write(b []byte) (int, error) {
	if len(b) > tunnel.MaxDatagram {
		return 0, fmt.Errorf("a datagram of %d bytes: there are none of more than %d", len(b), tunnel.MaxDatagram)
	}
	p.writing.Lock()
	defer p.writing.Unlock()
	p.out = append(binary.BigEndian.AppendUint16(p.out[:0], uint16(len(b))), b...)
	if _, err := p.conn.Write(p.out); err != nil {
		return 0, err
	}
	return len(b), nil
}
