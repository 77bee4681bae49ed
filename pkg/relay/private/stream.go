package private

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/forward"
	"culvert.dev/pkg/httpd"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

// connectTimeout bounds the look-up of the target's name and its TCP connect, and again its TLS handshake.
const connectTimeout = 10 * time.Second

// accept joins a new stream of the peer to the service that its header names.
func (p *peer) accept(s *tunnel.Stream, header []byte) {
	h, err := relay.DecodeHeader(header)
	switch {
	case err == nil && h.Kind == relay.KindNotice && h.Service != relay.NoticeChoice:
		p.setStandby(h.Service == relay.NoticeStandby)
		s.SetHandler(notice{s})
		return
	case err == nil && h.Kind == relay.KindDiscover:
		s.SetHandler(&discovery{peer: p, stream: s, gone: make(chan struct{})})
		return
	case err == nil && h.Kind == relay.KindOperate:
		p.acceptOperator(s, h)
		return
	case err != nil || h.Kind != relay.KindConnect && h.Kind != relay.KindFlow && h.Kind != relay.KindFile:
		s.Reset(tunnel.CodeInternal)
		return
	}
	svc := p.relay.services.Load().byName[h.Service]
	if svc == nil {
		s.Reset(tunnel.CodeNotFound)
		return
	}
	if (h.Kind == relay.KindFile) != (svc.store != nil) {
		s.Reset(tunnel.CodeForbidden)
		return
	}
	if flow := h.Kind == relay.KindFlow; flow || svc.network == "udp" {
		if !flow || svc.network != "udp" {
			s.Reset(tunnel.CodeForbidden)
			return
		}
		p.acceptFlow(s, svc, h.Visitor)
		return
	}
	svc.total.Add(1)
	s.Charge(tunnel.Owner{Service: svc.Name, Visitor: relay.Source(h.Visitor.Addr())})
	if svc.store != nil {
		p.acceptFile(s, svc, h.Visitor)
		return
	}
	if svc.Target.IsCamera() {
		p.acceptCamera(s, svc, h)
		return
	}
	if svc.terminate != nil {
		p.terminate(s, svc, h.Visitor)
		return
	}
	p.join(s, svc, h.Visitor, nil)
}

// join joins a visitor to a service: the stream, or what comes out of the TLS on it.
func (p *peer) join(end forward.End, svc *service, visitor netip.AddrPort, state *tls.ConnectionState) {
	if svc.files != nil {
		svc.files.Serve(end, p.loop, httpd.Peer{Addr: visitor, TLS: state})
		return
	}
	p.connect(end, svc, visitor, nil)
}

// connect joins a visitor to the target of a service. If answer is not nil, it is called before: with an error if there is no
// target, and it ends the visitor then.
func (p *peer) connect(end forward.End, svc *service, visitor netip.AddrPort, answer func(error)) {
	svc.open.Add(1)
	if svc.listener != nil {
		svc.listener.deliver(p, end, svc, visitor)
		return
	}
	end.Pause() // what comes before the target is there stays in the stream's window, its end too
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	d := &dial{peer: p, service: svc, visitor: end, addr: visitor, cancel: cancel, answer: answer}
	end.SetHandler(d)
	p.loop.Dial(ctx, svc.network, svc.address, d.connected)
}

// notice is a stream that has nothing in it.
type notice struct{ stream *tunnel.Stream }

func (n notice) OnData(b []byte) int { return len(b) }
func (n notice) OnEOF()              { n.stream.CloseWrite() }
func (n notice) OnDrain()            {}
func (n notice) OnClose(error)       {}

func (s *service) streamEnded(error) { s.open.Add(-1) }

// dial is a visitor who waits for the target, and until then the visitor's handler. It is owned by the loop.
type dial struct {
	peer    *peer
	service *service
	visitor forward.End // see join
	addr    netip.AddrPort
	cancel  context.CancelFunc
	shaking *evloop.Conn // the target's connection in its TLS handshake, or nil
	gone    bool         // the visitor is
	camera  *proxy       // that the target is, or nil
	answer  func(error)  // see connect; or nil
}

func (d *dial) OnData([]byte) int { return 0 }
func (d *dial) OnEOF()            {}
func (d *dial) OnDrain()          {}
func (d *dial) OnClose(error) {
	d.gone = true
	d.cancel()
	if d.shaking != nil {
		d.shaking.Abort(context.Canceled)
	}
	d.service.open.Add(-1)
}

func (d *dial) connected(c *evloop.Conn, err error) {
	d.cancel()
	switch {
	case err != nil:
		d.fail(err)
	case d.gone:
		c.Abort(context.Canceled)
	default:
		d.reached(c)
	}
}

// reached tells the target who the visitor is, and speaks TLS with it if need be.
func (d *dial) reached(c *evloop.Conn) {
	if version := d.service.ProxyProtocol; version != 0 {
		c.Write(appendPreface(nil, version, false, d.addr, c.RemoteAddr()))
	}
	if d.service.tls == nil {
		d.splice(c)
		return
	}
	d.shaking = c
	c.StartTLS(d.service.tls, true, connectTimeout, func(err error) {
		d.shaking = nil
		if err == nil && d.service.Target.Scheme == "h2" && c.TLS().NegotiatedProtocol != "h2" {
			err = errNoHTTP2
			c.Abort(err)
		}
		if err != nil {
			d.fail(err)
			return
		}
		d.splice(c)
	})
}

func (d *dial) splice(c *evloop.Conn) {
	if d.camera != nil {
		d.camera.begin(c) // whether it is back is to be seen: see note
		return
	}
	d.peer.targetBack(d.service)
	if d.answer != nil {
		d.answer(nil)
	}
	forward.Splice(c, d.visitor, d.service.ended)
}

var errNoHTTP2 = errors.New("the target does not offer HTTP/2 (ALPN h2): is it https:// rather than h2://?")

// fail tells the visitor's side why there is no target.
func (d *dial) fail(err error) {
	if d.gone {
		return // the visitor went away, which ended the dial
	}
	d.peer.targetDown(d.service, err)
	if d.answer != nil {
		d.answer(err)
		return
	}
	d.visitor.Abort(&tunnel.StreamError{Code: code(err)})
}

// targetDown counts that a target cannot be reached. The log hears of the first time in a row.
func (p *peer) targetDown(s *service, err error) {
	s.failed.Add(1)
	if !s.down.Swap(true) {
		p.relay.log.Warn("target cannot be reached", "service", s.Name, "target", s.Target, "err", err)
	}
}

func (p *peer) targetBack(s *service) {
	if s.down.Swap(false) {
		p.relay.log.Info("target is back", "service", s.Name)
	}
}

// code is the stream code for a failed dial or handshake.
func code(err error) tunnel.Code {
	var netErr net.Error
	var record tls.RecordHeaderError
	var certificate *tls.CertificateVerificationError
	var alert tls.AlertError
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET),
		errors.Is(err, errNoHTTP2), errors.As(err, &record), errors.As(err, &certificate), errors.As(err, &alert):
		return tunnel.CodeRefused
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded),
		errors.As(err, &netErr) && netErr.Timeout():
		return tunnel.CodeTimeout
	}
	return tunnel.CodeUnreachable
}
