package evloop

import (
	"io"
	"net"
	"os"
	"sync"
	"time"
)

const (
	netConnIn     = 64 << 10    // unread bytes at which the End is paused; one callback more may be there
	netConnOut    = 64 << 10    // bytes that Write takes before the End has
	netConnFinish = time.Minute // for the end of an End that was closed and whose peer goes on
)

// NetConn is a blocking net.Conn of an End, for what wants one: http.Serve, crypto/tls, io.Copy. It has no goroutine, and
// while it is silent no buffer. Its methods may be called from any goroutine but the loop's.
type NetConn struct {
	loop          *Loop // immutable, as are the next ones
	end           End
	local, remote net.Addr
	ended         func(error)

	// Owned by the loop.
	over     bool // the End has had its OnClose
	saidFin  bool // CloseWrite was passed on
	saidOver bool // and Close
	reaper   Timer

	mu       sync.Mutex
	readable sync.Cond // of mu
	writable sync.Cond // of mu

	in     []byte // in[off:] is unread
	off    int
	paused bool // the End is
	eof    bool // there is nothing behind in
	dead   bool // the End is over
	err    error

	out     []byte // the loop has not taken it
	posted  bool   // flush is on its way, or OnDrain
	writing bool   // a Write is between two pieces
	fin     bool   // CloseWrite
	closed  bool   // Close, or Abort
	aborted bool   // Abort, which a flush that was on its way must not turn into a Close

	readBy, writeBy deadline
}

// NetConn makes a blocking connection of e, which it owns from now on, and which is not read before the first Read.
// ended, if not nil, is called on the loop when e is over, with what its OnClose is told. On the loop only.
func (l *Loop) NetConn(e End, local, remote net.Addr, ended func(error)) *NetConn {
	c := &NetConn{loop: l, end: e, local: local, remote: remote, ended: ended, paused: true}
	c.readable.L, c.writable.L = &c.mu, &c.mu
	e.Pause()
	e.SetHandler((*netConnHandler)(c))
	return c
}

// LocalAddr returns our own address.
func (c *NetConn) LocalAddr() net.Addr { return c.local }

// RemoteAddr returns the address of the peer.
func (c *NetConn) RemoteAddr() net.Addr { return c.remote }

// Read waits for input, the end of it (io.EOF), or the deadline.
func (c *NetConn) Read(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		switch {
		case c.closed:
			return 0, c.fault("read", net.ErrClosed)
		case c.readBy.passed:
			return 0, c.fault("read", os.ErrDeadlineExceeded)
		case len(b) == 0:
			return 0, nil
		}
		if c.off < len(c.in) {
			n := copy(b, c.in[c.off:])
			if c.off += n; c.off == len(c.in) {
				c.in, c.off = nil, 0
			}
			if len(c.in)-c.off < netConnIn/2 {
				c.resumeLocked()
			}
			return n, nil
		}
		switch {
		case c.err != nil:
			return 0, c.fault("read", c.err)
		case c.eof || c.dead:
			return 0, io.EOF
		}
		c.resumeLocked()
		c.readable.Wait()
	}
}

func (c *NetConn) resumeLocked() {
	if c.paused && !c.dead {
		c.paused = false
		c.postLocked(func() { c.end.Resume() })
	}
}

// Write waits until the loop has room for all of b, or for the deadline. What it has taken goes out in order, also if the
// connection is closed right after.
func (c *NetConn) Write(b []byte) (n int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	mine := false // of writing
	defer func() {
		if mine {
			c.writing = false
			c.writable.Broadcast()
		}
	}()
	for {
		switch {
		case c.closed:
			return n, c.fault("write", net.ErrClosed)
		case c.writeBy.passed:
			return n, c.fault("write", os.ErrDeadlineExceeded)
		case c.fin:
			return n, c.fault("write", io.ErrClosedPipe)
		case c.err != nil:
			return n, c.fault("write", c.err)
		case c.dead:
			return n, c.fault("write", io.ErrClosedPipe)
		case len(b) == 0:
			return n, nil
		}
		if room := netConnOut - len(c.out); room > 0 && (mine || !c.writing) {
			c.writing, mine = true, true
			took := min(room, len(b))
			c.out = append(c.out, b[:took]...)
			n, b = n+took, b[took:]
			c.wantFlushLocked()
			continue
		}
		c.writable.Wait()
	}
}

func (c *NetConn) wantFlushLocked() {
	if !c.posted {
		c.posted = true
		c.postLocked(c.flush)
	}
}

// flush gives the End what was written, as far as it has room. On the loop.
func (c *NetConn) flush() {
	if !c.over && c.end.Pending() > c.end.HighMark() {
		c.mu.Lock()
		all := c.closed
		c.mu.Unlock()
		if !all {
			return // until OnDrain
		}
	}
	c.mu.Lock()
	out, fin, closed, aborted := c.out, c.fin, c.closed, c.aborted
	c.out, c.posted = nil, false
	c.writable.Broadcast()
	c.mu.Unlock()
	if c.over || aborted {
		return
	}
	if len(out) > 0 {
		c.end.Write(out)
	}
	switch {
	case closed && !c.saidOver:
		c.saidOver = true
		c.loop.Arm(&c.reaper, netConnFinish, func() { c.end.Abort(ErrClosed) })
		c.end.Close()
	case fin && !c.saidFin:
		c.saidFin = true
		c.end.CloseWrite()
	}
}

// CloseWrite tells the peer that no more comes, behind what was written. Reading goes on.
func (c *NetConn) CloseWrite() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return c.fault("close", net.ErrClosed)
	case c.dead:
		return c.fault("close", io.ErrClosedPipe)
	}
	c.fin = true
	c.writable.Broadcast()
	c.wantFlushLocked()
	return nil
}

// Close ends the connection in good order: what was written goes out, what was not read is dropped.
func (c *NetConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return c.fault("close", net.ErrClosed)
	}
	c.closeLocked()
	if !c.dead {
		c.posted = true
		c.postLocked(c.flush)
	}
	return nil
}

// Abort ends the connection at once, so that the peer does not take what it has got for all.
func (c *NetConn) Abort() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closeLocked()
	c.out, c.aborted = nil, true
	if !c.dead {
		c.postLocked(func() { c.end.Abort(ErrClosed) })
	}
}

func (c *NetConn) closeLocked() {
	c.closed = true
	c.in, c.off = nil, 0
	c.readBy.set(&c.mu, &c.readable, time.Time{})
	c.writeBy.set(&c.mu, &c.writable, time.Time{})
	c.readable.Broadcast()
	c.writable.Broadcast()
}

// postLocked runs f on the loop. Without a loop the connection is over.
func (c *NetConn) postLocked(f func()) {
	if !c.loop.Post(f) {
		c.dieLocked(ErrClosed)
	}
}

func (c *NetConn) dieLocked(err error) {
	c.dead = true
	c.err = err
	c.out = nil
	c.readable.Broadcast()
	c.writable.Broadcast()
}

// fault is what a method returns: io.EOF aside, an *net.OpError as those of other connections.
func (c *NetConn) fault(op string, err error) error {
	e := &net.OpError{Op: op, Net: "tcp", Source: c.local, Addr: c.remote, Err: err}
	if c.remote != nil {
		e.Net = c.remote.Network()
	}
	return e
}

// SetDeadline is SetReadDeadline and SetWriteDeadline.
func (c *NetConn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

// SetReadDeadline bounds the reads that wait and those to come. The zero time: no bound.
func (c *NetConn) SetReadDeadline(t time.Time) error { return c.setDeadline(&c.readBy, &c.readable, t) }

// SetWriteDeadline bounds the writes that wait and those to come. The zero time: no bound.
func (c *NetConn) SetWriteDeadline(t time.Time) error {
	return c.setDeadline(&c.writeBy, &c.writable, t)
}

func (c *NetConn) setDeadline(d *deadline, cond *sync.Cond, t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return c.fault("set", net.ErrClosed)
	}
	d.set(&c.mu, cond, t)
	return nil
}

// deadline is guarded by the mu of its connection.
type deadline struct {
	passed bool
	timer  *time.Timer // the one that counts, or nil
}

// set has cond's waiters look again at t.
func (d *deadline) set(mu *sync.Mutex, cond *sync.Cond, t time.Time) {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.passed = false
	if t.IsZero() {
		return
	}
	wait := time.Until(t)
	if wait <= 0 {
		d.passed = true
		cond.Broadcast()
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(wait, func() {
		mu.Lock()
		defer mu.Unlock()
		if d.timer == timer {
			d.passed = true
			cond.Broadcast()
		}
	})
	d.timer = timer
}

// netConnHandler is a NetConn as its End sees it.
type netConnHandler NetConn

func (h *netConnHandler) OnData(b []byte) int {
	c := (*NetConn)(h)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return len(b)
	}
	if c.off > 0 {
		c.in = c.in[:copy(c.in, c.in[c.off:])]
		c.off = 0
	}
	c.in = append(c.in, b...)
	if len(c.in) >= netConnIn && !c.paused {
		c.paused = true
		c.end.Pause()
	}
	c.readable.Broadcast()
	return len(b)
}

func (h *netConnHandler) OnEOF() {
	c := (*NetConn)(h)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.eof = true
	c.readable.Broadcast()
}

func (h *netConnHandler) OnDrain() { (*NetConn)(h).flush() }

func (h *netConnHandler) OnClose(err error) {
	c := (*NetConn)(h)
	c.over = true
	c.reaper.Stop()
	c.mu.Lock()
	c.dieLocked(err)
	c.mu.Unlock()
	if c.ended != nil {
		c.ended(err)
	}
}
