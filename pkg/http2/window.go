package http2

import (
	"encoding/binary"
	"sync/atomic"
)

// Receive windows begin small, and are doubled while the peer uses a quarter of one up, and handlers take it, within a
// round trip. They are opened by quarters, or else what is used and not told would be half of the window. What windows are larger than at the beginning comes out of a Budget. A peer cannot be made to give back what it
// may send, so a window gets smaller by not being opened again by what is used.
const (
	maxStreamWindow = 4 << 20
	maxConnWindow   = 6 << 20

	// clientWindow is that of a client's connection, which opens by what has come and bounds nothing: it is larger than
	// what can be under way in a stream of a session.
	clientWindow = 32 << 20

	// minRTT stands for any shorter round trip, since peers are not always at hand, and defaultRTT for one that is not known.
	minRTT, defaultRTT, maxRTT = 20, 100, 1000 // ms

	// slowWindow is how long a quarter of a window may take until as much is taken off it.
	slowWindow = 5000 // ms

	// hog is the share of what is left of a budget that may be taken at once, so that nobody gets all of it.
	hog = 4
)

// Budget bounds what the receive windows of many connections have grown by, in bytes. It may be used from anywhere.
type Budget struct {
	size int64
	used atomic.Int64
}

// NewBudget returns a Budget of n bytes.
func NewBudget(n int64) *Budget { return &Budget{size: n} }

// Take takes n bytes, or nothing if that is too much of what is left. A nil Budget has nothing.
func (b *Budget) Take(n int64) bool {
	if b == nil {
		return false
	}
	for {
		used := b.used.Load()
		if n > (b.size-used)/hog {
			return false
		}
		if b.used.CompareAndSwap(used, used+n) {
			return true
		}
	}
}

// Give gives n bytes back.
func (b *Budget) Give(n int64) {
	if n > 0 && b.used.Add(-n) < 0 {
		panic("BUG: more was given back than was taken")
	}
}

// Used returns how much is taken.
func (b *Budget) Used() int64 { return b.used.Load() }

// fast reports whether a quarter of a window that was last looked at then has been used within a round trip, and slow whether it took
// very long.
func (c *Conn) fast(then int32) (fast, slow bool) {
	rtt := int32(defaultRTT)
	if c.rtt != 0 {
		rtt = min(max(c.rtt, minRTT), maxRTT)
	}
	d := c.now - then
	return 0 <= d && d <= rtt, d >= slowWindow
}

// give opens the windows by what was used.
func (s *Stream) give(n int) {
	c := s.c
	if s.flags&(recvEnd|discard) != 0 {
		c.give(n)
		return
	}
	s.used += int32(n)
	if s.expect >= 0 { // what will not come needs no window
		s.shrink(int32(min(int64(s.used), int64(s.window)-max(s.expect, streamWindow))))
	}
	c.give(n)
	if s.used < s.window/4 {
		return
	}
	fast, slow := c.fast(s.grownAt)
	s.grownAt = c.now
	switch {
	case fast && (s.expect < 0 || s.expect > 2*int64(s.window)):
		s.grow()
	case slow:
		s.shrink(min(s.used, s.window-streamWindow))
		c.give(0)
	}
	if s.used > 0 {
		s.recvWindow += s.used
		c.frame(4, typeWindowUpdate, 0, s.id)
		c.out = binary.BigEndian.AppendUint32(c.out, uint32(s.used))
		s.used = 0
		c.widen()
	}
}

// grow doubles the stream's window, and the connection's by as much.
func (s *Stream) grow() {
	c, more := s.c, min(s.window, maxStreamWindow-s.window)
	if more == 0 || c.isServer() && c.window+more > maxConnWindow || !c.e.Budget.Take(int64(more)) {
		return
	}
	s.window += more
	s.used += more
	if c.isServer() {
		c.window += more
		c.used += more
	}
}

// shrink takes n bytes, if that is more than 0, off the stream's window for good. The peer may have been told of them only if the
// stream has ended.
func (s *Stream) shrink(n int32) {
	if n <= 0 {
		return
	}
	c := s.c
	s.window -= n
	s.used = max(0, s.used-n)
	if c.isServer() {
		c.excess += n
	} else {
		c.e.Budget.Give(int64(n))
	}
}

// give opens the window of a server's connection by what was used. A client's is open already, see onData.
func (c *Conn) give(n int) {
	if c.isServer() {
		c.grant(n)
	}
}

// grant opens the connection's window, unless it is to become smaller.
func (c *Conn) grant(n int) {
	if c.state == stateClosed {
		return
	}
	c.used += int32(n)
	if less := min(c.excess, c.used); less > 0 {
		c.excess -= less
		c.used -= less
		c.window -= less
		c.e.Budget.Give(int64(less))
	}
	if c.used < c.window/4 {
		return
	}
	// The windows of a few streams are in the connection's, see grow. Those of many are not.
	fast, _ := c.fast(c.grownAt)
	c.grownAt = c.now
	more := min(c.window, maxConnWindow-c.window)
	if fast && c.isServer() && c.n > connWindow/streamWindow && more > 0 && c.e.Budget.Take(int64(more)) {
		c.window += more
		c.used += more
		c.shared += more
	}
	c.widen()
}

// widen tells the peer what it may send.
func (c *Conn) widen() {
	if c.used > 0 {
		c.recvWindow += c.used
		c.frame(4, typeWindowUpdate, 0, 0)
		c.out = binary.BigEndian.AppendUint32(c.out, uint32(c.used))
		c.used = 0
	}
}

// closeWindow gives back what the connection's window has taken, when the connection is over.
func (c *Conn) closeWindow() {
	if c.isServer() {
		c.e.Budget.Give(int64(c.window - connWindow))
		c.window, c.excess, c.shared = connWindow, 0, 0
	}
}
