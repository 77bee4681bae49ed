package evloop

import (
	"cmp"
	"io"
	"net/netip"
)

// connFlags are the small facts about a Conn.
type connFlags uint32

const (
	canRead     connFlags = 1 << iota // the socket may have something to read
	canWrite                          // the socket may take something
	hasFailed                         // the poller reported an error
	isReady                           // in the loop's ready queue
	isDirty                           // in the loop's dirty queue
	isPaused                          // by the application
	isFull                            // our own reads are stopped by the hard mark
	wantDrain                         // Pending was above the high mark
	represent                         // kept input is to be presented again without new data
	gotEOF                            // the peer's end of stream was read
	saidEOF                           // and told to the handler
	finWanted                         // CloseWrite was called
	finSent                           // our end of stream was sent
	closing                           // Close was called: flush, linger, end
	isDead                            // in the dead queue or buried
	inHandler                         // a callback of this connection is running
	gotHup                            // the poller saw the peer's end of stream: a short read is not the last
	noHalfClose                       // the socket cannot send an end of stream; its close does
	shortIsAll                        // a short read empties the socket, unless gotHup
)

// Conn is one connection of a loop. Its methods may be called on that loop only. A Conn is made by a Listener, by
// Dial, by Attach or by AttachEnd.
type Conn struct {
	loop    *Loop
	sock    socket
	handler Handler
	tls     *tlsConn // nil when plain
	in      []byte   // kept input, from loop.buffers; nil when there is none
	out     []byte   // queued output, from loop.buffers; out[outOff:] is still to be written
	outOff  int
	err     error // for OnClose, once isDead
	remote  netip.AddrPort
	slot    uint32
	gen     uint32
	flags   connFlags
	bulk    bool   // the last read filled its buffer and the handler kept nothing: read more at once
	linger  *Timer // after Close
	depart  func() // Move or Detach was called when it could not be done yet
}

// newConn enters a socket into the loop. On error the socket is closed.
func (l *Loop) newConn(s socket, remote netip.AddrPort) (*Conn, error) {
	if err := l.closed(); err != nil {
		s.close(err)
		return nil, err
	}
	c := &Conn{loop: l, sock: s, remote: remote}
	if _, ok := s.(*fdSock); ok {
		c.flags |= shortIsAll
	}
	if err := c.register(); err != nil {
		s.close(err)
		return nil, err
	}
	return c, nil
}

func (c *Conn) register() error {
	token := c.loop.enter(slot{c: c})
	c.slot, c.gen = uint32(token), uint32(token>>32)
	c.flags |= canWrite // until we hear otherwise; the poller says when there is something to read
	if err := c.sock.register(c.loop, token); err != nil {
		c.loop.leave(token)
		return err
	}
	return nil
}

func (c *Conn) token() uint64 { return uint64(c.gen)<<32 | uint64(c.slot) }

// Loop returns the loop that owns c.
func (c *Conn) Loop() *Loop { return c.loop }

// RemoteAddr returns the peer's address; the zero AddrPort when it has none (unix sockets).
func (c *Conn) RemoteAddr() netip.AddrPort { return c.remote }

// LocalAddr returns our own address of the connection.
func (c *Conn) LocalAddr() netip.AddrPort { return c.sock.local() }

// HighMark is the number of queued bytes above which a writer pauses the source of its bytes.
func (c *Conn) HighMark() int { return c.loop.core.cfg.HighMark }

// Pending returns the number of queued bytes.
func (c *Conn) Pending() int { return len(c.out) - c.outOff }

// NotifyDrain has OnDrain called when Pending is at the low mark, as after it was above the high mark: for a writer that
// stops earlier. It has no effect when Pending is 0.
func (c *Conn) NotifyDrain() {
	if c.Pending() > 0 {
		c.flags |= wantDrain
	}
}

// SetHandler makes h the handler from now on; input that is kept is presented to it.
func (c *Conn) SetHandler(h Handler) {
	c.handler = h
	c.flags |= represent
	c.wantServe()
}

// Pause stops OnData and OnEOF until Resume.
func (c *Conn) Pause() { c.flags |= isPaused }

// Resume undoes Pause. Kept input is presented again, in the next turn.
func (c *Conn) Resume() {
	if c.flags&isPaused != 0 {
		c.flags &^= isPaused
		c.flags |= represent
		c.wantServe()
	}
}

// Write queues b, or writes it at once when it is large; it copies what it must keep. During a TLS handshake, and after
// CloseWrite, Close or Abort, it does nothing.
func (c *Conn) Write(b []byte) {
	if c.flags&(finWanted|closing|isDead) != 0 || len(b) == 0 {
		return
	}
	switch {
	case c.tls == nil:
		c.send(b)
	case !c.tls.shaking():
		c.tls.write(b)
	}
}

// send queues b for the socket, past TLS.
func (c *Conn) send(b []byte) {
	if c.Pending() == 0 && len(b) >= flushSize/2 && c.flags&canWrite != 0 {
		n := c.writeSocket(b)
		b = b[n:]
		if len(b) == 0 || c.flags&isDead != 0 {
			return
		}
	}
	c.queue(b)
	c.kick()
}

// queue appends b to the output.
func (c *Conn) queue(b []byte) {
	if c.flags&isDead != 0 {
		return
	}
	if c.outOff > 0 && len(c.out)+len(b) > cap(c.out) { // make room at the front first
		c.out = c.out[:copy(c.out, c.out[c.outOff:])]
		c.outOff = 0
	}
	c.out = c.loop.buffers.append(c.out, b)
	c.mark()
}

// kick writes a long queue now; a short one waits for the end of the turn.
func (c *Conn) kick() {
	if c.Pending() >= flushSize && c.flags&canWrite != 0 {
		c.flushOut()
	}
	c.wantFlush()
}

// mark notes that the queue passed its marks.
func (c *Conn) mark() {
	n := c.Pending()
	if n > c.HighMark() {
		c.flags |= wantDrain
	}
	if n > c.HighMark()+hardMark {
		c.flags |= isFull
	}
}

// writeSocket writes b as far as the socket takes it. A failing socket ends the connection.
func (c *Conn) writeSocket(b []byte) (n int) {
	for n < len(b) {
		m, err := c.sock.write(b[n:])
		n += m
		if err == errAgain {
			c.flags &^= canWrite
			return n
		}
		if err != nil {
			c.die(err)
			return n
		}
	}
	return n
}

// flushOut writes the queue as far as the socket takes it.
func (c *Conn) flushOut() {
	if c.Pending() > 0 && c.flags&canWrite != 0 {
		n := c.writeSocket(c.out[c.outOff:])
		if c.flags&isDead != 0 {
			return
		}
		c.outOff += n
	}
	if c.out != nil && c.Pending() == 0 {
		c.loop.buffers.put(c.out)
		c.out, c.outOff = nil, 0
	}
}

// flush writes the queue, and does what waited for it to shrink: OnDrain, the end of stream, the end.
func (c *Conn) flush() {
	if c.flags&isDead != 0 {
		return
	}
	c.flags |= inHandler
	c.drain()
	c.flags &^= inHandler
	c.left()
}

func (c *Conn) drain() {
	c.flushOut()
	if c.flags&isDead != 0 {
		return
	}
	if c.Pending() <= c.loop.core.cfg.LowMark {
		if c.flags&isFull != 0 {
			c.flags &^= isFull
			c.flags |= represent
			c.wantServe()
		}
		if c.flags&wantDrain != 0 {
			c.flags &^= wantDrain
			if c.handler != nil && c.flags&closing == 0 {
				c.handler.OnDrain()
			}
		}
	}
	if c.flags&finWanted != 0 && c.flags&(finSent|isDead) == 0 && c.Pending() == 0 {
		c.flags |= finSent
		switch err := c.sock.closeWrite(); {
		case err == errNoHalfClose:
			c.flags |= noHalfClose
		case err != nil:
			c.die(err)
			return
		}
	}
	c.finish()
}

// finish ends the connection when both directions are done.
func (c *Conn) finish() {
	if c.flags&isDead == 0 && c.flags&finSent != 0 && c.sock.flushed() &&
		(c.flags&saidEOF != 0 || c.flags&closing != 0 && c.flags&(gotEOF|noHalfClose) != 0) {
		c.die(nil)
	}
}

// CloseWrite sends an end of stream (after close_notify, with TLS) when the queue is out. Reading goes on.
func (c *Conn) CloseWrite() {
	if c.flags&(finWanted|isDead) != 0 {
		return
	}
	if c.tls != nil {
		c.tls.closeWrite()
	}
	c.flags |= finWanted
	c.wantFlush()
}

// Close ends the connection in good order: it writes the queue, then the end of stream, discards what the peer still
// sends until its end of stream, for 5 seconds at the most. Then comes OnClose(nil), or OnClose(ErrNotFlushed) if the
// peer did not take the queue in that time.
func (c *Conn) Close() {
	if c.flags&(closing|isDead) != 0 {
		return
	}
	if c.tls != nil && c.tls.shaking() {
		c.tls.hs.fail(ErrClosed)
	}
	c.CloseWrite()
	c.flags |= closing
	c.flags &^= isPaused | isFull
	c.wantServe()
	c.linger = new(Timer)
	c.loop.Arm(c.linger, lingerTime, c.lingered)
}

func (c *Conn) lingered() {
	if c.Pending() > 0 || !c.sock.flushed() {
		c.die(ErrNotFlushed)
		return
	}
	c.die(nil)
}

// closeWith ends the connection like Close, so that what is queued (a TLS alert) still goes out, but OnClose gets err.
func (c *Conn) closeWith(err error) {
	if c.flags&isDead == 0 {
		c.err = err
		c.Close()
	}
}

// Abort ends the connection now: the queue is dropped, the peer gets a reset. OnClose(err) follows in this turn, or
// the next.
func (c *Conn) Abort(err error) {
	if err == nil {
		err = ErrClosed
	}
	c.die(err)
}

// die takes c out of service; OnClose comes at the end of the turn.
func (c *Conn) die(err error) {
	if c.flags&isDead != 0 {
		return
	}
	c.flags |= isDead
	c.err = cmp.Or(c.err, err)
	if c.linger != nil {
		c.linger.Stop()
	}
	c.sock.unregister()
	c.loop.leave(c.token())
	c.dropBuffers()
	if c.tls != nil {
		c.tls.abort(cmp.Or(c.err, ErrClosed))
	}
	c.loop.dead.add(c)
}

// dropBuffers returns what c holds of the loop's stock. Input that a running callback looks at is the loop's, not ours.
func (c *Conn) dropBuffers() {
	if c.in != nil {
		c.loop.buffers.put(c.in)
		c.in = nil
	}
	if c.out != nil {
		c.loop.buffers.put(c.out)
		c.out, c.outOff = nil, 0
	}
}

// bury tells the handler and frees the descriptor, in this order. A handshake is over before.
func (c *Conn) bury() {
	c.depart = nil
	if c.tls != nil && !c.tls.bury() {
		return
	}
	h := c.handler
	c.handler = nil
	if h != nil {
		h.OnClose(c.err)
	}
	if c.err == io.EOF {
		c.err = nil
	}
	c.sock.close(c.err)
	c.tls = nil
}

func (c *Conn) wantServe() {
	if c.flags&(isReady|isDead) == 0 {
		c.flags |= isReady
		if c.bulk {
			c.loop.bulk.add(c)
		} else {
			c.loop.ready.add(c)
		}
	}
}

// writable has done what waited for room in the socket.
func (c *Conn) writable() {
	if c.out != nil || c.flags&(finWanted|wantDrain|isFull) != 0 {
		c.wantFlush()
	}
}

func (c *Conn) wantFlush() {
	if c.flags&(isDirty|isDead) == 0 {
		c.flags |= isDirty
		c.loop.dirty.add(c)
	}
}

// serve does what events and Resume made possible: it writes, then reads its share of the turn.
func (c *Conn) serve() {
	if c.flags&isDead != 0 {
		return
	}
	if c.flags&hasFailed != 0 {
		c.flags &^= hasFailed
		if err := c.sock.lastError(); err != nil {
			c.die(err)
			return
		}
	}
	c.flags |= inHandler
	c.dispatch()
	c.flags &^= inHandler
	c.left()
}

// left carries out a departure that was asked for in a callback or during a handshake.
func (c *Conn) left() {
	if f := c.depart; f != nil && !(c.tls != nil && c.tls.shaking()) {
		c.depart = nil
		f()
	}
}

func (c *Conn) dispatch() {
	switch {
	case c.flags&closing != 0:
		c.discard()
	case c.tls != nil && c.tls.shaking():
		c.tls.feed()
	case c.handler != nil:
		c.receive()
	}
}

// discard reads and drops what the peer sends after Close.
func (c *Conn) discard() {
	for n := 0; c.flags&canRead != 0 && c.flags&(isDead|gotEOF) == 0; {
		m, err := c.readSocket(c.loop.rbuf)
		n += m
		if err == io.EOF {
			c.flags |= gotEOF
		}
		if n >= turnBytes {
			c.wantServe()
			return
		}
	}
	c.finish()
}

// readSocket reads into b, notes what the result says, and ends the connection when the socket fails. The error is
// nil, errAgain, io.EOF or final.
func (c *Conn) readSocket(b []byte) (int, error) {
	n, err := c.sock.read(b)
	switch {
	case err == errAgain:
		c.flags &^= canRead
	case err == io.EOF:
		c.flags &^= canRead
	case err != nil:
		c.die(err)
	case n < len(b) && c.flags&(shortIsAll|gotHup) == shortIsAll:
		c.flags &^= canRead // an edge announces more
	}
	return n, err
}

// receive reads and presents input until there is no more, the handler pauses, or the turn's share is used up.
func (c *Conn) receive() {
	if c.flags&represent != 0 {
		c.flags &^= represent
		if len(c.in) > 0 && c.flags&(isPaused|isFull) == 0 {
			buf := c.loop.rbuf
			if c.tls != nil {
				buf = c.loop.plain()
			}
			c.present(buf[:copy(buf, c.in)]) // a paused handler may keep all that one read gave: it fits
		}
	}
	for n := 0; c.flags&(isPaused|isFull|isDead|closing|gotEOF) == 0 && c.handler != nil && c.depart == nil; {
		if c.tls != nil && c.tls.shaking() { // StartTLS was called by the handler
			c.tls.feed()
			break
		}
		if c.flags&canRead == 0 && (c.tls == nil || c.tls.left == nil) {
			break
		}
		if n >= turnBytes {
			c.wantServe()
			return
		}
		size := readSize
		if c.bulk {
			size = bulkSize
		}
		var m int
		var b []byte
		var err error
		if c.tls != nil {
			b, m, err = c.tls.read(size)
		} else {
			kept := copy(c.loop.rbuf, c.in)
			m, err = c.readSocket(c.loop.rbuf[kept : kept+size])
			b = c.loop.rbuf[:kept+m]
		}
		n += m
		c.loop.moved += m
		c.bulk = m == size
		if m > 0 && c.flags&isDead == 0 {
			c.present(b)
		}
		if err == io.EOF {
			c.flags |= gotEOF
		} else if err != nil {
			switch {
			case err == errAgain:
			case err == io.ErrUnexpectedEOF && c.tls.shut:
				c.die(err)
			default:
				c.closeWith(err) // of TLS: the alert goes out first
			}
			break
		}
	}
	if c.flags&gotEOF != 0 && c.flags&(saidEOF|isPaused|isFull|isDead|closing) == 0 && c.handler != nil && c.depart == nil {
		c.flags |= saidEOF
		c.handler.OnEOF()
		c.finish()
	}
}

// present lends b, which starts with what was kept, to the handler and keeps what it does not use.
func (c *Conn) present(b []byte) {
	for {
		h := c.handler
		used := h.OnData(b)
		if used < 0 || used > len(b) {
			panic("BUG: evloop: handler used more than it was given")
		}
		b = b[used:]
		if c.flags&(isDead|closing) != 0 {
			return
		}
		if len(b) == 0 || c.handler == nil || c.depart != nil || c.flags&isPaused != 0 || c.tls != nil && c.tls.shaking() {
			break
		}
		switch {
		case c.handler != h: // a new handler gets the rest at once
			c.flags &^= represent
		case len(b) <= MaxKept:
			c.keep(b)
			return
		case used == 0:
			c.die(ErrInputTooLong)
			return
		}
	}
	c.keep(b)
}

// keep stores b, which is in the loop's buffer, as the kept input.
func (c *Conn) keep(b []byte) {
	if len(b) == 0 {
		if c.in != nil {
			c.loop.buffers.put(c.in)
			c.in = nil
		}
		return
	}
	c.bulk = false
	c.in = c.loop.buffers.append(c.in[:0], b)
}

// Move hands c to another loop and runs f there. Queued output and kept input go along; Timers of the owner do not: stop
// them first. What AttachEnd made is aborted instead. In a callback of c the move happens when the callback has returned, during a TLS handshake when it is
// over, otherwise at once; from then on the old loop must not touch c. f does not run when the connection ends before:
// OnClose tells.
func (c *Conn) Move(to *Loop, f func()) {
	switch {
	case c.flags&isDead != 0:
		return
	case to == c.loop:
		f()
		return
	}
	if _, ok := c.sock.(*endSock); ok {
		c.Abort(errStays)
		return
	}
	c.leave(func() {
		from := c.loop
		c.loop = to
		if !to.Post(func() { c.arrive(f) }) { // the core is being closed
			c.loop = from
			c.flags |= isDead
			c.err = ErrClosed
			from.dead.add(c)
		}
	})
}

// arrive is the other half of Move.
func (c *Conn) arrive(f func()) {
	err := c.loop.closed()
	if err == nil {
		err = c.register()
	}
	if err != nil {
		c.dropBuffers()
		c.flags |= isDead
		c.err = err
		c.loop.dead.add(c)
		return
	}
	c.flags |= represent
	c.wantServe()
	if c.out != nil || c.flags&(finWanted|wantDrain|isFull) != 0 {
		c.wantFlush()
	}
	if c.flags&closing != 0 {
		c.loop.Arm(c.linger, lingerTime, c.lingered)
	}
	if c.tls != nil {
		c.tls.warmUp()
	}
	f()
}

// leave takes c off its loop and calls then: now, or when the running callback has returned and the handshake is over.
func (c *Conn) leave(then func()) {
	depart := func() {
		if c.flags&isDead != 0 {
			return
		}
		l := c.loop
		c.sock.unregister()
		l.leave(c.token())
		if c.flags&isReady != 0 {
			l.ready.remove(c)
			l.bulk.remove(c)
		}
		if c.flags&isDirty != 0 {
			l.dirty.remove(c)
		}
		c.flags &^= isReady | isDirty
		if c.linger != nil {
			c.linger.Stop()
		}
		if c.tls != nil {
			c.tls.coolDown()
		}
		then()
	}
	if c.flags&inHandler != 0 || c.tls != nil && c.tls.shaking() {
		c.depart = depart
		return
	}
	depart()
}
