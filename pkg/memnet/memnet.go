// Package memnet is a network in memory for tests: connections that behave like TCP, on a
// network that can be slow, silent or cut. It uses timers and channels alone, so inside of
// a testing/synctest bubble time is virtual.
//
//	var n memnet.Network
//	ln, err := n.Listen("relay.test:443")
//	go serve(ln)
//	c, err := n.Dial(ctx, "tcp", "relay.test:443")
//	n.Cut() // both ends get a reset
//
// Invariants: bytes arrive once, in order, and Delay after they were written; a direction
// holds at most bufferSize bytes, then Write blocks; a close in one direction leaves the
// other open.
package memnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// bufferSize is how many bytes one direction of a connection holds.
const bufferSize = 256 << 10

// backlog is how many connections of a listener wait to be accepted; more are refused.
const backlog = 128

// Network is a set of listeners and connections. The zero value is an empty network that
// works. Its methods may be called from any goroutine.
type Network struct {
	Delay time.Duration // from a write to the read; set before the first Dial

	mu        sync.Mutex
	listeners map[string]*listener
	conns     map[*pair]struct{}
	refuse    bool
	silent    bool
	port      int
}

// addr is "host:port" of the network.
type addr string

func (addr) Network() string  { return "tcp" }
func (a addr) String() string { return string(a) }

// Listen makes address reachable.
func (n *Network) Listen(address string) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[address] != nil {
		return nil, &net.OpError{Op: "listen", Net: "tcp", Addr: addr(address), Err: syscall.EADDRINUSE}
	}
	if n.listeners == nil {
		n.listeners = make(map[string]*listener)
	}
	ln := &listener{network: n, addr: addr(address), waiting: make(chan net.Conn, backlog), closed: make(chan struct{})}
	n.listeners[address] = ln
	return ln, nil
}

// Dial connects to a listener. On a silent network it waits for the end of ctx.
func (n *Network) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	fail := func(err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: network, Addr: addr(address), Err: err}
	}
	n.mu.Lock()
	ln, silent, refuse := n.listeners[address], n.silent, n.refuse
	n.port++
	from := addr(fmt.Sprintf("127.0.0.1:%d", 1024+n.port%64000))
	n.mu.Unlock()
	if silent {
		<-ctx.Done()
		return fail(ctx.Err())
	}
	if ln == nil || refuse {
		return fail(syscall.ECONNREFUSED)
	}
	p := newPair(n, from, ln.addr)
	n.mu.Lock()
	if n.conns == nil {
		n.conns = make(map[*pair]struct{})
	}
	n.conns[p] = struct{}{}
	n.mu.Unlock()
	select {
	case ln.waiting <- &p.server:
		return &p.client, nil
	case <-ln.closed:
	default:
	}
	n.forget(p)
	return fail(syscall.ECONNREFUSED)
}

// Cut resets every connection; what was under way is lost. It returns how many there were.
func (n *Network) Cut() int {
	n.mu.Lock()
	conns := n.conns
	n.conns = nil
	n.mu.Unlock()
	for p := range conns {
		p.reset()
	}
	return len(conns)
}

// Refuse says whether new connections are refused.
func (n *Network) Refuse(refuse bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.refuse = refuse
}

// Silence drops what is written from now on, for good, as a firewall that has forgotten
// its connections does: no error tells either end. Dial succeeds again when the silence is
// over, but connections from before stay silent.
func (n *Network) Silence(silent bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.silent = silent
	if !silent {
		return
	}
	for p := range n.conns {
		p.up.silence()
		p.down.silence()
	}
}

func (n *Network) forget(p *pair) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.conns, p)
}

type listener struct {
	network *Network
	addr    addr
	waiting chan net.Conn
	once    sync.Once
	closed  chan struct{}
}

func (l *listener) Addr() net.Addr { return l.addr }

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.waiting:
		return c, nil
	case <-l.closed:
		return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.addr, Err: net.ErrClosed}
	}
}

func (l *listener) Close() error {
	l.once.Do(func() {
		l.network.mu.Lock()
		delete(l.network.listeners, string(l.addr))
		l.network.mu.Unlock()
		close(l.closed)
	})
	return nil
}

// pair is a connection: two directions and two ends.
type pair struct {
	network        *Network
	up, down       direction
	client, server conn
}

func newPair(n *Network, client, server addr) *pair {
	p := &pair{network: n}
	p.up.init(n.Delay)
	p.down.init(n.Delay)
	p.client = conn{pair: p, in: &p.down, out: &p.up, local: client, remote: server}
	p.server = conn{pair: p, in: &p.up, out: &p.down, local: server, remote: client}
	return p
}

func (p *pair) reset() {
	p.up.fail(syscall.ECONNRESET)
	p.down.fail(syscall.ECONNRESET)
}

// conn is one end of a pair.
type conn struct {
	pair          *pair
	in, out       *direction
	local, remote addr
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.in.read(b)
	return n, c.wrap("read", err)
}

func (c *conn) Write(b []byte) (int, error) {
	n, err := c.out.write(b)
	return n, c.wrap("write", err)
}

// wrap makes errors look as those of TCP do.
func (c *conn) wrap(op string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return &net.OpError{Op: op, Net: "tcp", Source: c.local, Addr: c.remote, Err: err}
}

// CloseWrite ends our direction; the other end reads EOF after the last byte.
func (c *conn) CloseWrite() error {
	c.out.finish()
	return nil
}

// Close ends both directions. Writes of the other end fail from now on.
func (c *conn) Close() error {
	c.out.closeWriter()
	c.in.closeReader()
	c.pair.network.forget(c.pair)
	return nil
}

func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *conn) SetReadDeadline(t time.Time) error  { c.in.setDeadline(&c.in.readBy, t); return nil }
func (c *conn) SetWriteDeadline(t time.Time) error { c.out.setDeadline(&c.out.writeBy, t); return nil }

// segment is what one write has put into a direction.
type segment struct {
	b  []byte
	at time.Time // when it arrives
}

// direction carries bytes one way.
type direction struct {
	delay time.Duration // immutable

	mu              sync.Mutex
	changed         chan struct{} // closed and replaced when anything below changes
	segments        []segment
	size            int   // bytes in segments
	finished        bool  // the writer has ended: EOF follows the last byte
	readErr         error // of all reads from now on
	writeErr        error // of all writes from now on
	isSilent        bool
	readBy, writeBy time.Time // deadlines; zero: none
}

func (d *direction) init(delay time.Duration) {
	d.delay = delay
	d.changed = make(chan struct{})
}

func (d *direction) changedLocked() {
	close(d.changed)
	d.changed = make(chan struct{})
}

// waitLocked unlocks until something changes or one of the times has come.
func (d *direction) waitLocked(until ...time.Time) {
	changed := d.changed
	d.mu.Unlock()
	defer d.mu.Lock()
	var first time.Time
	for _, t := range until {
		if !t.IsZero() && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	if first.IsZero() {
		<-changed
		return
	}
	timer := time.NewTimer(time.Until(first))
	defer timer.Stop()
	select {
	case <-changed:
	case <-timer.C:
	}
}

func over(deadline time.Time) bool { return !deadline.IsZero() && !time.Now().Before(deadline) }

func (d *direction) read(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for {
		var arrives time.Time
		switch {
		case d.readErr != nil:
			return 0, d.readErr
		case over(d.readBy):
			return 0, os.ErrDeadlineExceeded
		case len(b) == 0:
			return 0, nil
		case len(d.segments) > 0:
			if arrives = d.segments[0].at; !arrives.After(time.Now()) {
				return d.takeLocked(b), nil
			}
		case d.finished && !d.isSilent:
			return 0, io.EOF
		}
		d.waitLocked(d.readBy, arrives)
	}
}

func (d *direction) takeLocked(b []byte) int {
	n := 0
	for n < len(b) && len(d.segments) > 0 && !d.segments[0].at.After(time.Now()) {
		s := &d.segments[0]
		m := copy(b[n:], s.b)
		n += m
		if s.b = s.b[m:]; len(s.b) == 0 {
			d.segments = d.segments[1:]
		}
	}
	d.size -= n
	d.changedLocked()
	return n
}

func (d *direction) write(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for {
		switch {
		case d.writeErr != nil:
			return n, d.writeErr
		case over(d.writeBy):
			return n, os.ErrDeadlineExceeded
		case d.isSilent, len(b) == 0:
			return n + len(b), nil
		}
		if m := min(len(b), bufferSize-d.size); m > 0 {
			d.segments = append(d.segments, segment{append([]byte(nil), b[:m]...), time.Now().Add(d.delay)})
			d.size += m
			n += m
			b = b[m:]
			d.changedLocked()
			continue
		}
		d.waitLocked(d.writeBy)
	}
}

func (d *direction) setDeadline(which *time.Time, t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	*which = t
	d.changedLocked()
}

// finish is the orderly end of the writer.
func (d *direction) finish() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.finished = true
	if d.writeErr == nil {
		d.writeErr = syscall.EPIPE
	}
	d.changedLocked()
}

func (d *direction) closeWriter() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.finished = true
	d.writeErr = net.ErrClosed
	d.changedLocked()
}

// closeReader ends the reader; the writer finds out at its next write.
func (d *direction) closeReader() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.readErr = net.ErrClosed
	d.segments, d.size = nil, 0
	if d.writeErr == nil && !d.isSilent {
		d.writeErr = syscall.EPIPE
	}
	d.changedLocked()
}

// fail ends both the reader and the writer with an error, unless they have ended.
func (d *direction) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.segments, d.size = nil, 0
	if d.readErr == nil {
		d.readErr = err
	}
	if d.writeErr == nil {
		d.writeErr = err
	}
	d.changedLocked()
}

func (d *direction) silence() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.isSilent = true
	d.segments, d.size = nil, 0
	d.changedLocked()
}
