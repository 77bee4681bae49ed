package private

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/forward"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

// maxBacklog is how many visitors wait for Accept. One more is turned away.
const maxBacklog = 1024

// Listener is a net.Listener whose connections are the visitors of one service: see Relay.Listen.
type Listener struct {
	relay   *Relay
	service Service
	conns   chan *evloop.NetConn

	closing sync.Once
	closed  chan struct{}
	why     error // what has ended the relay, or nil; read after closed
}

var errOver = errors.New("this relay has ended")

// Listen publishes a service whose visitors come to this program, beside those of Services and Reload. s has a Name and, unless
// it is for operators alone, a Publish; a Policy if need be. It has no Target. It may be called before Run, and while it runs.
//
// A connection is that of one visitor, whose address RemoteAddr tells; with an https publish it carries requests in HTTP/1.1, as
// http.Serve takes them. What the visitor of a tls publish sends is TLS, unless s.TLS ends it. Connections know deadlines,
// CloseWrite and Abort; none has a goroutine or, while it is silent, a buffer. 1024 visitors may wait for Accept, and nothing
// of them is read; more are turned away. The listener is closed when Run returns. Nothing of the public relay's answer is told:
// whether it publishes the service is in the log.
func (r *Relay) Listen(s Service) (*Listener, error) {
	if s.Target != (relay.Target{}) || s.Handler != nil {
		return nil, fmt.Errorf("service %q: what comes to Listen has neither Target nor Handler", s.Name)
	}
	l := &Listener{relay: r, service: s, conns: make(chan *evloop.NetConn, maxBacklog), closed: make(chan struct{})}
	l.service.listener = l
	if err := l.service.Validate(); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		return nil, errOver
	}
	if slices.ContainsFunc(r.offeredLocked(), func(other Service) bool { return other.Name == s.Name }) {
		return nil, fmt.Errorf("service %q is defined twice", s.Name)
	}
	r.heard = append(r.heard, l)
	if r.services.Load() == nil {
		return l, nil // Run announces it
	}
	if err := r.offerLocked(); err != nil {
		r.heard = r.heard[:len(r.heard)-1]
		return nil, err
	}
	return l, nil
}

// Accept waits for a visitor. After Close, and after the relay has ended, it returns net.ErrClosed, with what has ended the
// relay if that was refused; there is no other error.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case <-l.closed:
		return nil, l.over()
	default:
	}
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, l.over()
	}
}

// over is the error of Accept. closed is closed.
func (l *Listener) over() error {
	err := net.ErrClosed
	if l.why != nil {
		err = fmt.Errorf("%w: %w", err, l.why)
	}
	return &net.OpError{Op: "accept", Net: "culvert", Addr: l.Addr(), Err: err}
}

// Close withdraws the service, and turns those away who wait for Accept. Connections that were accepted go on. It returns nil.
func (l *Listener) Close() error {
	l.close(nil)
	return nil
}

func (l *Listener) close(why error) {
	r := l.relay
	r.mu.Lock()
	if i := slices.Index(r.heard, l); i >= 0 {
		r.heard = slices.Delete(r.heard, i, i+1)
		if r.services.Load() != nil && !r.over {
			// What is left was good before. Should a folder be gone by now, the service stays announced, and says no.
			if err := r.offerLocked(); err != nil {
				r.log.Warn("a service that this program does not offer any more is still announced", "service", l.service.Name, "err", err)
			}
		}
	}
	r.mu.Unlock()
	l.closing.Do(func() {
		l.why = why
		close(l.closed)
	})
	l.turnAway()
}

// turnAway ends what waits. It may be called at any time after closed is.
func (l *Listener) turnAway() {
	for {
		select {
		case c := <-l.conns:
			c.Abort()
		default:
			return
		}
	}
}

// Addr returns the site and the service.
func (l *Listener) Addr() net.Addr {
	return listenAddr{l.relay.Site, l.service.Name, l.service.Publish.String()}
}

// listenAddr is where visitors find a service.
type listenAddr struct{ site, service, publish string }

func (listenAddr) Network() string { return "culvert" }
func (a listenAddr) String() string {
	if a.publish == "" {
		return a.site + "/" + a.service
	}
	return a.publish
}

// closeListeners is the end of Run, for that reason or nil.
func (r *Relay) closeListeners(why error) {
	r.mu.Lock()
	r.over = true
	heard := slices.Clone(r.heard) // Close takes each out
	r.mu.Unlock()
	for _, l := range heard {
		l.close(why)
	}
}

// deliver gives a visitor to Accept. On the loop of the session.
func (l *Listener) deliver(p *peer, end forward.End, svc *service, visitor netip.AddrPort) {
	select {
	case <-l.closed: // the relay has yet to hear of it
		end.SetHandler(forgotten{svc})
		end.Abort(&tunnel.StreamError{Code: tunnel.CodeNotFound})
		return
	default:
	}
	c := p.loop.NetConn(end, l.Addr(), net.TCPAddrFromAddrPort(visitor), svc.ended)
	select {
	case l.conns <- c:
	default:
		end.Abort(&tunnel.StreamError{Code: tunnel.CodeOverload})
		return
	}
	select {
	case <-l.closed: // in between
		l.turnAway()
	default:
	}
}

// forgotten is the handler of a visitor whom nobody wants.
type forgotten struct{ service *service }

func (f forgotten) OnData(b []byte) int { return len(b) }
func (f forgotten) OnEOF()              {}
func (f forgotten) OnDrain()            {}
func (f forgotten) OnClose(error)       { f.service.streamEnded(nil) }
