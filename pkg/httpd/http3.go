package httpd

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// ServePacket serves HTTP/3 on pc, until Shutdown or Close, which let it return ErrServerClosed, or an error of pc. config is cloned and gets what QUIC needs.
// Connections are in goroutines of quic-go; handlers, limits and the register are those of s.
func (s *Server) ServePacket(pc net.PacketConn, config *tls.Config) error {
	t := &quic.Transport{Conn: pc}
	defer t.Close()
	ln, err := t.ListenEarly(http3.ConfigureTLSConfig(config), &quic.Config{
		MaxIdleTimeout:       orDefault(s.IdleTimeout, 75*time.Second),
		HandshakeIdleTimeout: orDefault(s.HeadTimeout, 10*time.Second) / 2,
		MaxIncomingStreams:   128,
		Allow0RTT:            false,
	})
	if err != nil {
		return err
	}
	defer ln.Close()
	if !s.listens(ln) {
		return ErrServerClosed
	}
	s.mu.Lock()
	if s.three == nil {
		s.three = make(chan struct{}, orDefault(s.MaxHandlers, 1024))
	}
	s.mu.Unlock()
	for {
		qc, err := ln.Accept(context.Background())
		if errors.Is(err, quic.ErrServerClosed) {
			// The transport may close when no connection needs it any more.
			s.drained(quicOnly)
			return ErrServerClosed
		}
		if err != nil {
			return err
		}
		c := &conn3{qc: qc}
		state := qc.ConnectionState().TLS
		addr, _ := netip.ParseAddrPort(qc.RemoteAddr().String())
		c.session = session{srv: s, peer: Peer{Addr: netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port()), TLS: &state}, minor: 3}
		if err := s.enter(&c.session, c); err != nil {
			qc.CloseWithError(quic.ApplicationErrorCode(http3.ErrCodeExcessiveLoad), "too many connections")
			continue
		}
		s.wg.Add(1)
		go c.serve()
	}
}

// quicOnly picks the connections of HTTP/3.
func quicOnly(c *session) bool { return c.minor == 3 }

// drained waits until no connection that pick picks is left, in a server that is ending.
func (s *Server) drained(pick func(*session) bool) {
	for {
		var left *session
		s.mu.Lock()
		for c := s.first; c != nil && left == nil; c = c.next {
			if pick(c) {
				left = c
			}
		}
		s.mu.Unlock()
		if left == nil {
			return
		}
		<-left.conn.(*conn3).qc.Context().Done()
		left.leave()
	}
}

// conn3 is one connection of HTTP/3.
type conn3 struct {
	session
	qc   *quic.Conn
	http http3.Server

	mu       sync.Mutex
	under    int // requests under way
	draining bool
	farewell *time.Timer // closes the connection
}

// serve ends with the connection.
func (c *conn3) serve() {
	defer c.srv.wg.Done()
	defer c.leave()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.farewell != nil {
			c.farewell.Stop()
		}
	}()
	c.http.Handler = http.HandlerFunc(c.handle)
	c.http.MaxHeaderBytes = 16 << 10
	c.http.IdleTimeout = orDefault(c.srv.IdleTimeout, 75*time.Second)
	c.http.Logger = slog.New(slog.DiscardHandler)
	c.http.ConnContext = func(ctx context.Context, _ *quic.Conn) context.Context {
		return context.WithValue(ctx, sessionKey{}, &c.session)
	}
	c.http.ServeQUICConn(c.qc)
	c.qc.CloseWithError(quic.ApplicationErrorCode(http3.ErrCodeNoError), "")
}

// drain implements connection: GOAWAY, and the end when all requests are answered.
func (c *conn3) drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.draining {
		c.draining = true
		c.srv.wg.Add(1)
		go c.sayGoAway()
		c.partLocked()
	}
}

// sayGoAway ends when the connection has.
func (c *conn3) sayGoAway() {
	defer c.srv.wg.Done()
	c.http.Shutdown(c.qc.Context())
}

// partLocked closes the connection soon if nothing is under way: the client should do so itself, as soon as it has the answers.
func (c *conn3) partLocked() {
	if c.under == 0 && c.draining && c.farewell == nil {
		c.farewell = time.AfterFunc(newcomerTime, func() { c.cut(ErrServerClosed) })
	}
}

// count counts a request.
func (c *conn3) count(d int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.under += d
	if c.under > 0 && c.farewell != nil {
		c.farewell.Stop()
		c.farewell = nil
	}
	c.partLocked()
}

// cut implements connection.
func (c *conn3) cut(error) {
	c.qc.CloseWithError(quic.ApplicationErrorCode(http3.ErrCodeNoError), "")
}

// handle answers a request when there is a place for it.
func (c *conn3) handle(w http.ResponseWriter, r *http.Request) {
	s := c.srv
	c.count(1)
	defer c.count(-1)
	select {
	case s.three <- struct{}{}:
		defer func() { <-s.three }()
	case <-r.Context().Done():
		return
	}
	since := time.Now()
	a := &activity{current: Current{Method: r.Method, Target: r.RequestURI[:min(len(r.RequestURI), maxTarget)], Since: since}}
	s.mu.Lock()
	c.begin(a)
	s.mu.Unlock()
	w3 := &response3{ResponseWriter: w, c: c}
	r.Body = &body3{ReadCloser: r.Body, c: c, w: w3, expect: r.Header.Get("Expect") == "100-continue"}
	ok := false
	defer func() {
		v := recover()
		s.mu.Lock()
		a.leave()
		s.mu.Unlock()
		err, is := v.(error)
		aborted := is && errors.Is(err, http.ErrAbortHandler)
		if v != nil && !aborted {
			s.panicked(r, v)
			if w3.status == 0 {
				http.Error(w3, "internal server error", http.StatusInternalServerError)
				v = nil
			}
		}
		if l := s.logger.Load(); l != nil {
			status := w3.status
			if ok && status == 0 {
				status = http.StatusOK
			}
			line(l, r, status, w3.written, since)
		}
		if v != nil || w3.failed { // what could not be written must not look as if it were all
			panic(http.ErrAbortHandler)
		}
	}()
	s.currentHandler().ServeHTTP(w3, r)
	ok = true
}

// response3 counts what is written.
type response3 struct {
	http.ResponseWriter
	c       *conn3
	status  int
	written int64
	failed  bool // a write has: at its deadline, say
}

func (w *response3) WriteHeader(status int) {
	if w.status == 0 && status >= 200 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *response3) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	n, err := w.ResponseWriter.Write(p)
	w.written += int64(n)
	w.c.sent.Add(uint64(n))
	w.fail(err)
	return n, err
}

func (w *response3) Flush() { w.FlushError() }

func (w *response3) FlushError() error {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	err := http.NewResponseController(w.ResponseWriter).Flush()
	w.fail(err)
	return err
}

// fail notes an error of the stream, and not one of what the handler has written.
func (w *response3) fail(err error) {
	if err != nil && !errors.Is(err, http.ErrBodyNotAllowed) && !errors.Is(err, http.ErrContentLength) {
		w.failed = true
	}
}

// EnableFullDuplex is as in response.
func (w *response3) EnableFullDuplex() error { return nil }

// Unwrap is for http.ResponseController.
func (w *response3) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// body3 counts what is read, and tells a client that waits for it to go on.
type body3 struct {
	io.ReadCloser
	c      *conn3
	w      *response3
	expect bool
	closed atomic.Bool
}

func (b *body3) Read(p []byte) (int, error) {
	if b.closed.Load() {
		return 0, http.ErrBodyReadAfterClose
	}
	if b.expect {
		if b.expect = false; b.w.status == 0 {
			b.w.ResponseWriter.WriteHeader(http.StatusContinue)
		}
	}
	n, err := b.ReadCloser.Read(p)
	b.c.received.Add(uint64(n))
	return n, err
}

func (b *body3) Close() error {
	b.closed.Store(true)
	return b.ReadCloser.Close()
}
