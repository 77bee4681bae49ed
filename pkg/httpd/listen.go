package httpd

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"time"

	"culvert.dev/pkg/evloop"
)

// Listen accepts connections on all loops of core, as core.Listen does, until Shutdown, Close or the listener's own Close.
// config nil: no TLS. Otherwise HTTP/2 is spoken to those who ask for it by ALPN, unless config.NextProtos says what else is.
func (s *Server) Listen(core *evloop.Core, network, addr string, config *tls.Config) (*evloop.Listener, error) {
	if config != nil {
		config = config.Clone()
		config.DynamicRecordSizingDisabled = true
		if len(config.NextProtos) == 0 {
			config.NextProtos = []string{"h2", "http/1.1"}
		}
	}
	ln, err := core.Listen(network, addr, func(c *evloop.Conn) { s.accept(c, config) })
	if err != nil {
		return nil, err
	}
	if !s.listens(ln) {
		ln.Close()
		return nil, ErrServerClosed
	}
	return ln, nil
}

// listens has Shutdown close l. It reports false if there was a Shutdown.
func (s *Server) listens(l io.Closer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending {
		return false
	}
	if s.listeners == nil {
		s.listeners = make(map[io.Closer]bool)
	}
	s.listeners[l] = true
	return true
}

// accept serves c, after a handshake if there is to be one.
func (s *Server) accept(c *evloop.Conn, config *tls.Config) {
	if config == nil {
		s.Serve(c, c.Loop(), Peer{Addr: c.RemoteAddr()})
		return
	}
	// Whoever shakes hands is a connection already: it costs more than one that is idle.
	h := &shaking{c: c}
	h.session = session{srv: s, peer: Peer{Addr: c.RemoteAddr()}, minor: 1}
	if err := s.enter(&h.session, h); err != nil {
		c.Abort(err)
		return
	}
	c.SetHandler(h)
	c.StartTLS(config, false, orDefault(s.HeadTimeout, 10*time.Second), func(err error) {
		h.leave()
		if err == nil {
			s.Serve(c, c.Loop(), Peer{Addr: c.RemoteAddr(), TLS: c.TLS()})
		}
	})
}

// shaking is a connection during its TLS handshake, in the register and as the handler.
type shaking struct {
	deaf
	session
	c *evloop.Conn
}

func (h *shaking) OnClose(error) { h.leave() }

func (h *shaking) drain()        { h.cut(ErrServerClosed) }
func (h *shaking) cut(err error) { h.c.Loop().Post(func() { h.abort(err) }) }

func (h *shaking) abort(err error) {
	if !h.out { // only this loop sets it
		h.c.Abort(err)
	}
}

// Dialer returns a function for http.Transport.DialContext: it connects to s in process, by a pipe, and l serves the other end.
func (s *Server) Dialer(l *evloop.Loop) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		if !l.Post(func() {
			if c, err := l.Attach(theirs); err == nil {
				s.Serve(c, l, Peer{})
			}
		}) {
			theirs.Close()
			ours.Close()
			return nil, evloop.ErrClosed
		}
		return ours, nil
	}
}
