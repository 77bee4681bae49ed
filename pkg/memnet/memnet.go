// Package memnet is a network in memory: listeners, and connections with
// half-close, deadlines, bounded buffers and delay, that can be cut or fall
// silent. It is for tests, and works inside testing/synctest.
//
//	var n memnet.Network
//	ln, err := n.Listen("relay.example.com:443")
//	c, err := n.Dial(ctx, "tcp", "relay.example.com:443")
//	n.Cut()       // every connection is reset
//	memnet.Cut(c) // that one is
//
// Invariants: there are no goroutines; every wait is on a condition, so that a
// synctest bubble sees it as blocked; what one end writes the other reads in order,
// or not at all after a cut.
package memnet

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// Network joins listeners and dialers. The zero value is a fast and perfect one.
type Network struct {
	// Delay is how long bytes, and ends of stream, are on their way. It is set before
	// the first use.
	Delay time.Duration

	// Buffer is how many bytes each direction of a connection holds: those on their
	// way and those not read yet. 0: 64 KiB.
	Buffer int

	mu        sync.Mutex
	listeners map[string]*listener // by address
	pipes     map[*pipe]struct{}   // directions that are alive
	port      int                  // given out last
	silent    bool
}

// Pipe returns the two ends of a connection.
func (n *Network) Pipe() (net.Conn, net.Conn) { return n.pair(n.address(""), n.address("")) }

// Listen listens on a host:port. Port 0 is a free one. A listener on ":port" takes
// every host that has none of its own.
func (n *Network) Listen(address string) (net.Listener, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	a := n.address(port)
	address = net.JoinHostPort(host, strconv.Itoa(a.Port))
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[address] != nil {
		return nil, &net.OpError{Op: "listen", Net: "mem", Addr: a, Err: syscall.EADDRINUSE}
	}
	l := &listener{net: n, key: address, addr: a, queue: make(chan net.Conn, 128), closed: make(chan struct{})}
	if n.listeners == nil {
		n.listeners = make(map[string]*listener)
	}
	n.listeners[address] = l
	return l, nil
}

// Dial connects to a listener. It has the form of net.Dialer.DialContext; the
// network's name does not matter.
func (n *Network) Dial(ctx context.Context, _, address string) (net.Conn, error) {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	l := n.listeners[address]
	if l == nil {
		l = n.listeners[":"+port]
	}
	silent := n.silent
	n.mu.Unlock()
	fail := func(err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "mem", Err: fmt.Errorf("%s: %w", address, err)}
	}
	if silent {
		<-ctx.Done()
		return fail(ctx.Err())
	}
	if n.Delay > 0 {
		t := time.NewTimer(2 * n.Delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return fail(ctx.Err())
		}
	}
	if l == nil {
		return fail(syscall.ECONNREFUSED)
	}
	c, s := n.pair(n.address(""), l.addr)
	select {
	case <-l.closed: // before the queue, which may have room
		return fail(syscall.ECONNREFUSED)
	default:
	}
	select {
	case l.queue <- s:
		select {
		case <-l.closed: // and may have looked into the queue before s was in it
			s.Close()
		default:
		}
		return c, nil
	case <-l.closed:
		return fail(syscall.ECONNREFUSED)
	case <-ctx.Done():
		return fail(ctx.Err())
	}
}

// Cut resets every connection that there is.
func (n *Network) Cut() {
	n.mu.Lock()
	pipes := n.pipes
	n.pipes = nil
	n.mu.Unlock()
	for p := range pipes {
		p.reset()
	}
}

// Silence loses the path: until it is called with false, nothing arrives and no
// dial succeeds, and nobody is told. What was on its way arrives afterwards.
func (n *Network) Silence(on bool) {
	n.mu.Lock()
	n.silent = on
	var pipes []*pipe
	for p := range n.pipes {
		pipes = append(pipes, p)
	}
	n.mu.Unlock()
	for _, p := range pipes {
		p.silence(on)
	}
}

// Cut resets one connection of a Network.
func Cut(c net.Conn) {
	for _, p := range c.(*conn).pipes() {
		p.reset()
	}
}

// Silence does to one connection what Network.Silence does to all.
func Silence(c net.Conn, on bool) {
	for _, p := range c.(*conn).pipes() {
		p.silence(on)
	}
}

// address returns an address with that port, or a free one for 0 and "".
func (n *Network) address(port string) *net.TCPAddr {
	n.mu.Lock()
	defer n.mu.Unlock()
	p, _ := strconv.Atoi(port)
	if p == 0 {
		n.port++
		p = 40_000 + n.port%20_000
	}
	return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: p}
}

func (n *Network) pair(a, b *net.TCPAddr) (*conn, *conn) {
	ab, ba := n.pipe(), n.pipe()
	return &conn{r: ba, w: ab, local: a, remote: b}, &conn{r: ab, w: ba, local: b, remote: a}
}

func (n *Network) pipe() *pipe {
	p := &pipe{net: n, limit: n.Buffer, delay: n.Delay}
	if p.limit == 0 {
		p.limit = 64 << 10
	}
	p.wake.L = &p.mu
	n.mu.Lock()
	defer n.mu.Unlock()
	p.silent = n.silent
	if n.pipes == nil {
		n.pipes = make(map[*pipe]struct{})
	}
	n.pipes[p] = struct{}{}
	return p
}

type listener struct {
	net    *Network
	key    string
	addr   *net.TCPAddr
	queue  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.closed:
		return nil, &net.OpError{Op: "accept", Net: "mem", Addr: l.addr, Err: net.ErrClosed}
	}
}

// Close stops listening. Connections that were not accepted are closed.
func (l *listener) Close() error {
	l.once.Do(func() {
		l.net.mu.Lock()
		delete(l.net.listeners, l.key)
		l.net.mu.Unlock()
		close(l.closed)
		for {
			select {
			case c := <-l.queue:
				c.Close()
				continue
			default:
			}
			return
		}
	})
	return nil
}

func (l *listener) Addr() net.Addr { return l.addr }

// pipe is one direction of a connection.
type pipe struct {
	net   *Network      // immutable, as are the next two
	limit int           // bytes
	delay time.Duration // of everything

	mu      sync.Mutex
	wake    sync.Cond // something below has changed, or has become due
	pieces  []piece
	size    int       // bytes in pieces
	eofAt   time.Time // when the end of stream arrives; zero: there is none yet
	cut     bool
	silent  bool
	noRead  bool // the reading end is closed
	noWrite bool // the writing end is closed, or half-closed
	readBy  deadline
	writeBy deadline
}

// piece is what one Write sent.
type piece struct {
	at time.Time // when it arrives
	b  []byte
}

// deadline is a point in time that wakes whoever waits.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) over() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

// set moves the deadline. p.mu is held.
func (d *deadline) set(p *pipe, at time.Time) {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.at = at
	if !at.IsZero() {
		d.timer = time.AfterFunc(time.Until(at), p.broadcast)
	}
	p.wake.Broadcast()
}

func (p *pipe) broadcast() {
	p.mu.Lock()
	p.wake.Broadcast()
	p.mu.Unlock()
}

func (p *pipe) read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		now := time.Now()
		switch {
		case p.noRead:
			return 0, net.ErrClosed
		case p.cut:
			return 0, syscall.ECONNRESET
		case p.readBy.over():
			return 0, os.ErrDeadlineExceeded
		case len(b) == 0:
			return 0, nil
		case p.silent:
		case len(p.pieces) > 0:
			if now.Before(p.pieces[0].at) {
				break
			}
			n := 0
			for n < len(b) && len(p.pieces) > 0 && !now.Before(p.pieces[0].at) {
				f := &p.pieces[0]
				m := copy(b[n:], f.b)
				n += m
				if f.b = f.b[m:]; len(f.b) == 0 {
					p.pieces = p.pieces[1:]
				}
			}
			p.size -= n
			p.wake.Broadcast()
			return n, nil
		case !p.eofAt.IsZero() && !now.Before(p.eofAt):
			return 0, io.EOF
		}
		p.wake.Wait()
	}
}

func (p *pipe) write(b []byte) (n int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		switch {
		case p.noWrite:
			return n, net.ErrClosed
		case p.cut:
			return n, syscall.ECONNRESET
		case p.writeBy.over():
			return n, os.ErrDeadlineExceeded
		case p.noRead:
			return n, syscall.EPIPE
		case len(b) == 0:
			return n, nil
		case p.size < p.limit:
			m := min(len(b), p.limit-p.size)
			at := time.Now().Add(p.delay)
			p.pieces = append(p.pieces, piece{at, append([]byte(nil), b[:m]...)})
			p.size += m
			n += m
			b = b[m:]
			p.arrives()
			continue
		}
		p.wake.Wait()
	}
}

// arrives wakes the reader when what was sent just now is there. p.mu is held.
func (p *pipe) arrives() {
	if p.delay > 0 {
		time.AfterFunc(p.delay, p.broadcast)
		return
	}
	p.wake.Broadcast()
}

// endWrite sends the end of stream.
func (p *pipe) endWrite() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.noWrite {
		p.noWrite = true
		p.eofAt = time.Now().Add(p.delay)
		p.arrives()
		p.wake.Broadcast() // writers
		p.retire()
	}
}

// endRead drops what was not read.
func (p *pipe) endRead() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.noRead = true
	p.pieces, p.size = nil, 0
	p.wake.Broadcast()
	p.retire()
}

func (p *pipe) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = true
	p.pieces, p.size = nil, 0
	p.wake.Broadcast()
}

func (p *pipe) silence(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.silent = on
	p.wake.Broadcast()
}

// retire takes p off its network when both ends are closed. p.mu is held.
func (p *pipe) retire() {
	if p.noRead && p.noWrite {
		// p.mu before net.mu; nothing takes them in the other order.
		p.net.mu.Lock()
		delete(p.net.pipes, p)
		p.net.mu.Unlock()
	}
}

// conn is one end of a connection.
type conn struct {
	r, w          *pipe
	local, remote *net.TCPAddr
}

func (c *conn) pipes() [2]*pipe { return [2]*pipe{c.r, c.w} }

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.r.read(b)
	return n, c.wrap("read", err)
}

func (c *conn) Write(b []byte) (int, error) {
	n, err := c.w.write(b)
	return n, c.wrap("write", err)
}

func (c *conn) wrap(op string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return &net.OpError{Op: op, Net: "mem", Source: c.local, Addr: c.remote, Err: err}
}

// CloseWrite ends the direction to the peer; the other one goes on.
func (c *conn) CloseWrite() error {
	c.w.endWrite()
	return nil
}

func (c *conn) Close() error {
	c.w.endWrite()
	c.r.endRead()
	for _, p := range c.pipes() {
		p.mu.Lock()
		d := &p.readBy
		if p == c.w {
			d = &p.writeBy
		}
		d.set(p, time.Time{})
		p.mu.Unlock()
	}
	return nil
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

func (c *conn) SetDeadline(t time.Time) error {
	c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	c.r.readBy.set(c.r, t)
	return nil
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	c.w.writeBy.set(c.w, t)
	return nil
}
