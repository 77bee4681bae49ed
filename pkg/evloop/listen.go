package evloop

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
)

// Listener accepts connections for a core or a loop.
type Listener struct {
	// OnError, if not nil, is told of accepts that fail (out of descriptors, say); the listener goes on. It is
	// set before the first connection can fail: right after Listen, at the latest.
	OnError func(error)

	core *Core
	addr net.Addr
	ln   net.Listener // portable
	fds  []*fdListener

	mu     sync.Mutex
	closed bool
}

// Addr returns the address that the listener is bound to.
func (ln *Listener) Addr() net.Addr { return ln.addr }

// Listen accepts TCP connections ("tcp", "tcp4", "tcp6") on every loop, or connections to a unix socket on the first.
// accept runs on the loop that owns the connection; it sets a handler, or closes.
func (c *Core) Listen(network, addr string, accept func(*Conn)) (*Listener, error) {
	loops := c.loops
	if network == "unix" {
		loops = loops[:1]
	}
	return c.listen(loops, network, addr, accept)
}

// Listen accepts connections on this loop only. It may be called from anywhere.
func (l *Loop) Listen(network, addr string, accept func(*Conn)) (*Listener, error) {
	return l.core.listen([]*Loop{l}, network, addr, accept)
}

func (c *Core) listen(loops []*Loop, network, addr string, accept func(*Conn)) (*Listener, error) {
	if c.cfg.Portable {
		nl, err := net.Listen(network, addr)
		if err != nil {
			return nil, err
		}
		return c.serve(loops, nl, accept), nil
	}
	ln := &Listener{core: c}
	for i, l := range loops {
		f, bound, err := listenFD(network, addr, i > 0, len(loops) > 1)
		if err != nil {
			ln.discard()
			return nil, err
		}
		f.loop, f.onConn, f.onError = l, accept, ln.failed
		ln.fds = append(ln.fds, f)
		if i == 0 {
			ln.addr, addr = bound, bound.String() // port 0 becomes the port of the first
		}
	}
	return ln, c.start(ln)
}

// ListenFile accepts connections on f, a TCP or unix socket that listens already: one that a service manager hands
// down, which refuses nobody while its service restarts. One loop accepts, since such a socket has one queue, and deals
// the connections to all in turn. f remains the caller's, to close; a unix socket's path is left alone.
func (c *Core) ListenFile(f *os.File, accept func(*Conn)) (*Listener, error) {
	return c.listenFile(c.loops, f, accept)
}

// ListenFile accepts connections on f, as Core.ListenFile does, on this loop only. It may be called from anywhere.
func (l *Loop) ListenFile(f *os.File, accept func(*Conn)) (*Listener, error) {
	return l.core.listenFile([]*Loop{l}, f, accept)
}

func (c *Core) listenFile(loops []*Loop, f *os.File, accept func(*Conn)) (*Listener, error) {
	nl, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	if c.cfg.Portable {
		return c.serve(loops, nl, accept), nil
	}
	defer nl.Close()
	fl, err := inheritFD(nl)
	if err != nil {
		return nil, err
	}
	ln := &Listener{core: c, addr: nl.Addr(), fds: []*fdListener{fl}}
	fl.loop, fl.deal, fl.onConn, fl.onError = loops[0], loops, accept, ln.failed
	return ln, c.start(ln)
}

// start has the loops accept what comes to the descriptors of ln.
func (c *Core) start(ln *Listener) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		ln.discard()
		return ErrClosed
	}
	c.lns[ln] = struct{}{}
	for _, f := range ln.fds {
		f.loop.Post(func() { // the loops live: Close has not taken mu yet
			if err := f.start(); err != nil {
				f.onError(err)
			}
		})
	}
	return nil
}

func (ln *Listener) failed(err error) {
	if ln.OnError != nil {
		ln.OnError(err)
	}
}

// discard closes the descriptors of a listener that no loop has seen.
func (ln *Listener) discard() {
	for _, f := range ln.fds {
		f.discard()
	}
}

// Serve accepts the connections of any net.Listener, which it owns from now on, and deals them to the loops in turn. A
// core that is closed closes it at once.
func (c *Core) Serve(nl net.Listener, accept func(*Conn)) *Listener {
	return c.serve(c.loops, nl, accept)
}

func (c *Core) serve(loops []*Loop, nl net.Listener, accept func(*Conn)) *Listener {
	ln := &Listener{core: c, addr: nl.Addr(), ln: nl}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		ln.closed = true
		nl.Close()
		return ln
	}
	c.lns[ln] = struct{}{}
	c.wg.Add(1)
	go ln.acceptNet(loops, accept)
	return ln
}

func (ln *Listener) acceptNet(loops []*Loop, accept func(*Conn)) {
	defer ln.core.wg.Done()
	for i := 0; ; i++ {
		nc, err := ln.ln.Accept()
		if err != nil {
			if ln.isClosed() || errors.Is(err, net.ErrClosed) {
				return
			}
			ln.failed(err)
			time.Sleep(acceptPause)
			continue
		}
		l := loops[i%len(loops)]
		if !l.Post(func() {
			if c, err := l.Attach(nc); err == nil {
				accept(c)
			}
		}) {
			nc.Close()
		}
	}
}

func (ln *Listener) isClosed() bool {
	ln.mu.Lock()
	defer ln.mu.Unlock()
	return ln.closed
}

// Close stops accepting. Connections that were accepted are not touched. It may be called from anywhere.
func (ln *Listener) Close() error {
	ln.mu.Lock()
	defer ln.mu.Unlock()
	if ln.closed {
		return nil
	}
	ln.closed = true
	ln.core.mu.Lock()
	delete(ln.core.lns, ln)
	ln.core.mu.Unlock()
	if ln.ln != nil {
		return ln.ln.Close()
	}
	for _, f := range ln.fds {
		f.loop.Post(f.close)
	}
	return nil
}

// Attach brings nc, which the loop owns from now on, onto l. TCP and unix sockets are driven by descriptor, where the
// loop can; any other net.Conn by a pair of goroutines. On error nc is closed. On the loop only.
func (l *Loop) Attach(nc net.Conn) (*Conn, error) {
	if !l.core.cfg.Portable {
		s, remote, ok, err := takeFD(nc)
		if err != nil {
			nc.Close()
			return nil, fmt.Errorf("attach: %w", err)
		}
		if ok {
			return l.newConn(s, remote)
		}
	}
	return l.newConn(newNetSock(nc), netAddrPort(nc.RemoteAddr()))
}

// Dial connects to a TCP address (host:port; every address of a name is tried) or a unix path and calls done on the
// loop. The context bounds it until then. done sets a handler, or closes. On the loop only.
func (l *Loop) Dial(ctx context.Context, network, addr string, done func(*Conn, error)) {
	if l.core.cfg.Portable {
		l.DialFunc(ctx, func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, addr)
		}, done)
		return
	}
	fail := func(err error) { done(nil, &net.OpError{Op: "dial", Net: network, Err: err}) }
	if network == "unix" {
		l.dialFD(ctx, netip.AddrPort{}, addr, func(c *Conn, err error) {
			if err != nil {
				fail(err)
				return
			}
			done(c, nil)
		})
		return
	}
	if ap, err := netip.ParseAddrPort(addr); err == nil {
		l.dialFD(ctx, ap, "", func(c *Conn, err error) {
			if err != nil {
				fail(err)
				return
			}
			done(c, nil)
		})
		return
	}
	l.lookUp(ctx, network, addr, func(addrs []netip.Addr, port uint16, err error) {
		if err != nil {
			fail(err)
			return
		}
		l.dialEach(ctx, addrs, port, nil, func(c *Conn, err error) {
			if err != nil {
				fail(err)
				return
			}
			done(c, nil)
		})
	})
}

// lookUp finds the addresses and the port of addr (host:port), on the pool, and calls done on the loop: at once if addr
// makes no sense.
func (l *Loop) lookUp(ctx context.Context, network, addr string, done func([]netip.Addr, uint16, error)) {
	host, service, err := net.SplitHostPort(addr)
	if err != nil {
		done(nil, 0, err)
		return
	}
	family := strings.TrimPrefix(strings.TrimPrefix(network, "tcp"), "udp")
	var addrs []netip.Addr
	var port int
	l.Go(func() {
		ctx, cancel := l.core.bound(ctx)
		defer cancel()
		if port, err = net.DefaultResolver.LookupPort(ctx, network, service); err == nil {
			addrs, err = net.DefaultResolver.LookupNetIP(ctx, "ip"+family, host)
		}
	}, func() { done(addrs, uint16(port), err) })
}

// bound ends ctx when the core is closed, too.
func (c *Core) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(c.ctx, cancel)
	return ctx, func() { stop(); cancel() }
}

// dialEach tries one address after the other and reports the first error if all fail. Each has its share of the time
// that is left, so that an address which does not answer leaves some to the next.
func (l *Loop) dialEach(ctx context.Context, addrs []netip.Addr, port uint16, first error, done func(*Conn, error)) {
	if len(addrs) == 0 || first != nil && ctx.Err() != nil {
		if first == nil {
			first = errNoAddress
		}
		done(nil, first)
		return
	}
	try, cancel := ctx, context.CancelFunc(func() {})
	if deadline, ok := ctx.Deadline(); ok && len(addrs) > 1 {
		try, cancel = context.WithTimeout(ctx, time.Until(deadline)/time.Duration(len(addrs)))
	}
	l.dialFD(try, netip.AddrPortFrom(addrs[0].Unmap(), port), "", func(c *Conn, err error) {
		cancel()
		if err == nil {
			done(c, nil)
			return
		}
		if first == nil {
			first = err
		}
		l.dialEach(ctx, addrs[1:], port, first, done)
	})
}

// DialFunc runs dial on the pool of Go and attaches the connection that it returns. On the loop only.
func (l *Loop) DialFunc(ctx context.Context, dial func(context.Context) (net.Conn, error), done func(*Conn, error)) {
	l.core.pool.do(func() {
		ctx, cancel := l.core.bound(ctx)
		defer cancel()
		nc, err := dial(ctx)
		posted := l.Post(func() {
			if err != nil {
				done(nil, err)
				return
			}
			done(l.Attach(nc))
		})
		if !posted && err == nil {
			nc.Close()
		}
	})
}
