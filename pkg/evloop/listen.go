package evloop

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
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
		fd, bound, err := listenFD(network, addr, len(loops) > 1)
		if err != nil {
			for _, f := range ln.fds {
				f.loop.Post(f.close)
			}
			return nil, err
		}
		f := &fdListener{fd: fd, loop: l, onConn: accept, onError: func(err error) {
			if ln.OnError != nil {
				ln.OnError(err)
			}
		}}
		if i == 0 {
			ln.addr, addr = bound, bound.String() // port 0 becomes the port of the first
		}
		ln.fds = append(ln.fds, f)
	}
	c.mu.Lock()
	c.lns[ln] = struct{}{}
	c.mu.Unlock()
	for _, f := range ln.fds {
		f.loop.Post(func() {
			if err := f.start(); err != nil {
				f.onError(err)
			}
		})
	}
	return ln, nil
}

// Serve accepts the connections of any net.Listener, which it owns from now on, and deals them to the loops in turn.
func (c *Core) Serve(nl net.Listener, accept func(*Conn)) *Listener {
	return c.serve(c.loops, nl, accept)
}

func (c *Core) serve(loops []*Loop, nl net.Listener, accept func(*Conn)) *Listener {
	ln := &Listener{core: c, addr: nl.Addr(), ln: nl}
	c.mu.Lock()
	c.lns[ln] = struct{}{}
	c.mu.Unlock()
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
			if ln.OnError != nil {
				ln.OnError(err)
			}
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
	host, service, err := net.SplitHostPort(addr)
	if err != nil {
		fail(err)
		return
	}
	var addrs []netip.Addr
	var port int
	l.Go(func() {
		if port, err = net.DefaultResolver.LookupPort(ctx, network, service); err == nil {
			addrs, err = net.DefaultResolver.LookupNetIP(ctx, "ip"+strings.TrimPrefix(network, "tcp"), host)
		}
	}, func() {
		if err != nil {
			fail(err)
			return
		}
		l.dialEach(ctx, addrs, uint16(port), nil, func(c *Conn, err error) {
			if err != nil {
				fail(err)
				return
			}
			done(c, nil)
		})
	})
}

// dialEach tries one address after the other and reports the first error if all fail.
func (l *Loop) dialEach(ctx context.Context, addrs []netip.Addr, port uint16, first error, done func(*Conn, error)) {
	if len(addrs) == 0 || first != nil && ctx.Err() != nil {
		if first == nil {
			first = errors.New("name has no address")
		}
		done(nil, first)
		return
	}
	l.dialFD(ctx, netip.AddrPortFrom(addrs[0].Unmap(), port), "", func(c *Conn, err error) {
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
