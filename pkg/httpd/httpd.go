// Package httpd serves HTTP/1.1 to connections of an event loop, and to anything that acts like them
// (the streams of a session), with an http.Handler.
//
//	srv := &httpd.Server{Handler: mux}
//	core.Listen("tcp", "127.0.0.1:8080", func(c *evloop.Conn) {
//		srv.Serve(c, c.Loop(), httpd.Peer{Addr: c.RemoteAddr()})
//	})
//	defer srv.Wait() // after core.Close
//
// Invariants: a connection between two requests holds one small struct and neither a goroutine nor a
// buffer. A handler runs in a goroutine of a bounded pool, one at a time for each connection; what it
// writes waits for the client, and what the client sends waits for it. A client that makes no progress
// frees the goroutine after StallTimeout. Everything that is answered on the loop in one event
// (Server.Fast) leaves in one write.
package httpd

import (
	"crypto/tls"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/http1"
)

// End is one end of a byte stream that belongs to a loop: an evloop.Conn or a stream of a session.
type End = evloop.End

// Handler receives the events of an End.
type Handler = evloop.Handler

// Server says how to answer. Its fields may not change once it serves.
type Server struct {
	// Handler answers requests. nil: 404 to everything that Fast does not answer.
	Handler http.Handler

	// Fast may answer a request on the loop, without a goroutine: it appends the whole answer to dst
	// and reports true, or leaves dst alone and reports false. It is asked about HTTP/1.1 requests
	// that have no body and keep the connection. It must not block; r is valid until it returns. nil:
	// nothing is answered so.
	Fast func(r *http1.Request, dst []byte) ([]byte, bool)

	// OnPanic is told of a panic in Handler, in the goroutine that panicked. The client gets 500, or a
	// broken connection if the answer had begun. nil: nobody is told.
	OnPanic func(r *http.Request, value any, stack []byte)

	MaxHandlers  int           // goroutines at once; requests beyond wait in order. 0: 1024
	HeadTimeout  time.Duration // from the first byte of a head to its last. 0: 10 s
	IdleTimeout  time.Duration // between requests. 0: 75 s
	StallTimeout time.Duration // without a byte taken or sent by the client during a request. 0: 60 s
	Limits       http1.Limits

	mu      sync.Mutex
	running int
	queue   []*exchange // waiting for a goroutine
	sweepAt int         // length of queue at which those whose connection has ended are dropped
	wg      sync.WaitGroup
}

// minQueue is how many may wait before it is worth looking who has gone.
const minQueue = 64

// Peer is what handlers learn about the client of a connection.
type Peer struct {
	Addr netip.AddrPort       // http.Request.RemoteAddr; the zero AddrPort becomes ""
	TLS  *tls.ConnectionState // http.Request.TLS
}

// Upgrader is implemented by the ResponseWriter of this package.
type Upgrader interface {
	// Upgrade answers with status and header (a 101 also says Connection: Upgrade) and hands the
	// connection to take, which runs on loop and has to call end.SetHandler before it returns: input
	// behind the request goes to that handler. Upgrade returns when take has returned, or with an
	// error if the connection has ended before that. The ResponseWriter cannot be used any more.
	Upgrade(status int, header http.Header, take func(end End, loop *evloop.Loop)) error
}

// Serve takes end over and answers the requests that come in, those included that are kept and
// unread. It is called on loop, which owns end. The connection ends when the client or a timeout ends
// it.
func (s *Server) Serve(end End, loop *evloop.Loop, peer Peer) {
	c := &conn{srv: s, end: end, loop: loop, peer: peer}
	// Not loop.Now: a connection is accepted before the turn has begun for which the loop woke up.
	now := time.Now()
	c.deadline = now.Add(orDefault(s.IdleTimeout, 75*time.Second))
	c.arm(now)
	end.SetHandler(c)
}

// Wait returns when no handler is running. Their connections must have ended, or it may wait as long
// as they live.
func (s *Server) Wait() { s.wg.Wait() }

func orDefault(d, def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return d
}

// dispatch runs x in a goroutine, as soon as there is one.
func (s *Server) dispatch(x *exchange) {
	limit := s.MaxHandlers
	if limit == 0 {
		limit = 1024
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running >= limit {
		if len(s.queue) >= max(s.sweepAt, minQueue) {
			s.queue = slices.DeleteFunc(s.queue, func(x *exchange) bool { return x.gone.Load() })
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
