// Package httpd serves an http.Handler over HTTP/1.1 and HTTP/2 to connections of an event loop, over HTTP/1.1 to anything
// that acts like them (the streams of a session), and over HTTP/3.
//
//	srv := &httpd.Server{Handler: mux}
//	srv.Listen(core, "tcp", "127.0.0.1:8080", nil)         // HTTP/1.1
//	srv.Listen(core, "tcp", ":443", tlsConfig)             // HTTP/1.1 and HTTP/2, by ALPN
//	go srv.ServePacket(udp, tlsConfig)                     // HTTP/3
//	client := http.Client{Transport: &http.Transport{DialContext: srv.Dialer(core.Loop(0))}} // in process
//	…
//	srv.Shutdown(ctx) // accepts nothing more, finishes what has begun
//	core.Close()
//	srv.Wait()
//
// Invariants: a connection between two requests holds one small struct and neither a goroutine nor a
// buffer (HTTP/3 apart, which is quic-go's). A handler runs in a goroutine of a bounded pool, one at a time for each
// connection of HTTP/1.1; it starts when the head of the request has come; what it
// writes waits for the client, and what the client sends waits for it. A client that makes no progress
// frees the goroutine after StallTimeout. Everything that is answered on the loop in one event
// (Server.Fast) leaves in one write. Of requests that are sent ahead, MaxAhead bytes are read, and the rest waits in the
// client's socket.
package httpd

import (
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/http1"
	"culvert.dev/pkg/http2"
)

// End is one end of a byte stream that belongs to a loop: an evloop.Conn or a stream of a session.
type End = evloop.End

// Handler receives the events of an End.
type Handler = evloop.Handler

// Server says how to answer. Its fields may not change once it serves; what may is set by methods.
type Server struct {
	// Handler answers requests, until SetHandler sets another one. nil: 404 to everything that Fast does not answer.
	Handler http.Handler

	// Fast may answer a request of HTTP/1.1 on the loop, without a goroutine: it appends the whole answer to dst
	// and reports true, or leaves dst alone and reports false. It is asked about HTTP/1.1 requests
	// that have no body and keep the connection. It must not block; r is valid until it returns. nil:
	// nothing is answered so.
	Fast func(r *http1.Request, dst []byte) ([]byte, bool)

	// OnPanic is told of a panic in Handler, in the goroutine that panicked; not of http.ErrAbortHandler. The client
	// gets 500, or a broken connection if the answer had begun. nil: the logger is told.
	OnPanic func(r *http.Request, value any, stack []byte)

	// Names finds the names of callers: see Caller and Session. nil: callers have none.
	Names *Names

	MaxHandlers  int           // goroutines at once; requests beyond wait in order. HTTP/3 has as many of its own. 0: 1024
	MaxConns     int           // connections at once; further ones get 503, before any TLS are cut. 0: no limit
	MaxPerAddr   int           // of them from one address, or /64 of IPv6; what has no address is not counted. 0: no limit
	MaxAhead     int           // bytes of pipelined requests that are read while one is answered. 0: 16 KiB; at most 32 KiB
	HeadTimeout  time.Duration // from the first byte of a head to its last; of a TLS handshake, as well. 0: 10 s
	IdleTimeout  time.Duration // between requests. 0: 75 s
	StallTimeout time.Duration // without a byte taken or sent by the client during a request. 0: 60 s
	Limits       http1.Limits  // of heads of HTTP/1.1; HTTP/2 and HTTP/3 have the defaults

	handler atomic.Pointer[http.Handler]
	logger  atomic.Pointer[slog.Logger]

	mu      sync.Mutex
	running int
	queue   []*exchange // waiting for a goroutine
	sweepAt int         // length of queue at which those whose connection has ended are dropped
	wg      sync.WaitGroup

	first     *session // of all connections, the newest first
	conns     int
	perAddr   map[netip.Addr]int // if MaxPerAddr is set
	lastID    uint64
	ending    bool                             // Shutdown or Close was called
	emptied   chan struct{}                    // closed when ending and conns is 0; nil before
	listeners map[io.Closer]bool               // to be closed by Shutdown
	endpoints map[*evloop.Loop]*http2.Endpoint // of each loop that has connections of HTTP/2
	three     chan struct{}                    // a place for each handler of HTTP/3
}

// ErrServerClosed is what connections end with that come after Shutdown or Close, or are cut by them.
var ErrServerClosed = errors.New("http: server closed")

// minQueue is how many may wait before it is worth looking who has gone.
const minQueue = 64

// Peer is what handlers learn about the client of a connection.
type Peer struct {
	Addr netip.AddrPort       // http.Request.RemoteAddr; the zero AddrPort becomes ""
	TLS  *tls.ConnectionState // http.Request.TLS. If it says that h2 was negotiated, the connection carries HTTP/2
}

// Upgrader is implemented by the ResponseWriter of this package, but for HTTP/3. In HTTP/2 it answers an extended CONNECT
// (RFC 8441), which handlers see as a GET with Upgrade, by a 101.
type Upgrader interface {
	// Upgrade answers with status and header (a 101 also says Connection: Upgrade) and hands the
	// connection to take, which runs on loop and has to call end.SetHandler before it returns: input
	// behind the request goes to that handler. Upgrade returns when take has returned, or with an
	// error if the connection has ended before that. The ResponseWriter cannot be used any more, and the connection of
	// HTTP/1.1 is no longer among the Sessions.
	Upgrade(status int, header http.Header, take func(end End, loop *evloop.Loop)) error
}

// SetHandler has all further requests answered by h, also those of connections that there are. Those under way are
// finished by the handler that began with them. It may be called at any time.
func (s *Server) SetHandler(h http.Handler) { s.handler.Store(&h) }

// SetLogger has l told of each request that a handler has answered (at level Info), and of panics (Error). nil: nobody is told, which is so
// at first. It may be called at any time.
func (s *Server) SetLogger(l *slog.Logger) { s.logger.Store(l) }

func (s *Server) currentHandler() http.Handler {
	h := s.Handler
	if p := s.handler.Load(); p != nil {
		h = *p
	}
	if h == nil {
		h = http.NotFoundHandler()
	}
	return h
}

// Serve takes end over and answers the requests that come in, those included that are kept and
// unread. It is called on loop, which owns end. The connection ends when the client, a timeout or Shutdown ends
// it.
func (s *Server) Serve(end End, loop *evloop.Loop, peer Peer) {
	if peer.TLS != nil && peer.TLS.NegotiatedProtocol == "h2" {
		c := newConn2(s, end, loop, peer)
		if err := s.enter(&c.session, c); err != nil {
			end.Abort(err)
			return
		}
		c.start()
		return
	}
	c := &conn{end: end, loop: loop}
	c.session = session{srv: s, peer: peer, minor: 1}
	if err := s.enter(&c.session, c); err != nil {
		if err != ErrServerClosed {
			end.Write(http1.AppendError(nil, loop.Now(), http.StatusServiceUnavailable, "too many connections", false, false,
				http1.Field{Name: []byte("Retry-After"), Value: []byte("5")}))
		}
		end.SetHandler(deaf{})
		end.Close()
		return
	}
	c.start()
}

// deaf is the handler of a connection that is being closed.
type deaf struct{}

func (deaf) OnData(b []byte) int { return len(b) }
func (deaf) OnEOF()              {}
func (deaf) OnDrain()            {}
func (deaf) OnClose(error)       {}

// Wait returns when no handler is running. Their connections must have ended, or it may wait as long
// as they live.
func (s *Server) Wait() { s.wg.Wait() }

func orDefault[T ~int | ~int64](d, def T) T {
	if d == 0 {
		return def
	}
	return d
}

// dispatch runs x in a goroutine, as soon as there is one.
func (s *Server) dispatch(x *exchange) {
	limit := orDefault(s.MaxHandlers, 1024)
	s.mu.Lock()
	defer s.mu.Unlock()
	x.on.register().begin(&x.activity)
	if s.running >= limit {
		if len(s.queue) >= max(s.sweepAt, minQueue) {
			s.queue = slices.DeleteFunc(s.queue, func(x *exchange) bool {
				gone := x.gone.Load()
				if gone {
					x.activity.leave()
				}
				return gone
			})
			s.sweepAt = 2 * len(s.queue)
		}
		s.queue = append(s.queue, x)
		return
	}
	s.running++
	s.wg.Add(1)
	go s.work(x)
}

// work runs x and then what waits. It ends when nothing waits; a handler that hangs on its client is
// freed by StallTimeout or by the end of the connection.
func (s *Server) work(x *exchange) {
	defer s.wg.Done()
	for {
		x.run()
		s.mu.Lock()
		x.activity.leave()
		if len(s.queue) == 0 {
			s.running--
			s.mu.Unlock()
			return
		}
		x = s.queue[0]
		s.queue[0] = nil
		s.queue = s.queue[1:]
		s.mu.Unlock()
	}
}
