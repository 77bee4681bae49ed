package evloop

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"
)

// Handler receives the events of one Conn. All calls come on the owning loop and may call any method of any Conn of
// that loop, Close and SetHandler included.
type Handler = interface {
	// OnData lends b until it returns; the handler may modify it. b[used:] is kept and presented again, with
	// more appended, when more arrives or on Resume.
	OnData(b []byte) (used int)
	// OnEOF says that the peer will send nothing more. The other direction stays open.
	OnEOF()
	// OnDrain says that Pending fell to the low mark after having been above the high mark.
	OnDrain()
	// OnClose is the last call. err is nil after an orderly end: both directions finished, or Close flushed.
	OnClose(err error)
}

// Config holds what a Core needs to know. The zero value works.
type Config struct {
	// Loops is the number of loops. 0: one per processor (GOMAXPROCS).
	Loops int

	// Portable drives sockets by goroutines even where epoll or kqueue exists. The loops then work on any
	// net.Conn, also inside testing/synctest.
	Portable bool

	// HighMark and LowMark bound a connection's write queue, in bytes: see Conn.HighMark. 0: 64 KiB and 16 KiB.
	HighMark, LowMark int

	// Workers bounds the goroutines that Loop.Go and DialFunc use at once. 0: 256.
	Workers int

	// Handshakes bounds the TLS handshakes under way; one more aborts the oldest. 0: 4096. Only a few of them
	// compute at a time, so handshakes that stall cost memory (about 20 KiB each) and delay nobody.
	Handshakes int

	// OnSlowTurn is told of a callback round that held its loop for over 50 ms: the type of the handler, or
	// *PacketConn; how long. nil: not measured.
	OnSlowTurn func(handler string, d time.Duration)
}

const (
	// MaxKept is how many bytes a Conn keeps for a handler that uses none of them; more is ErrInputTooLong.
	MaxKept = 64 << 10

	readSize    = 64 << 10  // bytes of one ordinary read
	bulkSize    = 256 << 10 // bytes of a read after one that filled its buffer
	turnBytes   = 256 << 10 // bytes one connection may read in a turn
	bulkBytes   = 512 << 10 // bytes that connections which move bulk may read together in a turn
	flushSize   = 64 << 10  // queued bytes that are written at once instead of at the end of the turn
	hardMark    = 256 << 10 // queued bytes beyond the high mark that stop the connection's own reads
	lingerTime  = 5 * time.Second
	slowTurn    = 50 * time.Millisecond
	maxAccept   = 64 // connections accepted from one listener in a turn
	acceptPause = 100 * time.Millisecond
)

// Errors that OnClose may report, beside those of the system.
var (
	ErrInputTooLong = errors.New("handler used none of the input it was given")
	ErrClosed       = errors.New("event loop closed")
	ErrNotFlushed   = errors.New("peer did not take what was queued when the connection was closed")
)

// Core is a set of loops. It is made by New and ended by Close.
type Core struct {
	cfg   Config
	loops []*Loop
	pool  pool
	hs    handshakes
	wg    sync.WaitGroup  // every goroutine of the core
	ctx   context.Context // of dials and look-ups; ends at Close
	end   context.CancelFunc

	mu     sync.Mutex
	closed bool
	lns    map[*Listener]struct{}
}

// New starts the loops.
func New(cfg Config) (*Core, error) {
	if cfg.Loops <= 0 {
		cfg.Loops = runtime.GOMAXPROCS(0)
	}
	if cfg.HighMark <= 0 {
		cfg.HighMark = 64 << 10
	}
	if cfg.LowMark <= 0 {
		cfg.LowMark = cfg.HighMark / 4
	}
	if cfg.Workers <= 0 {
		cfg.Workers = 256
	}
	if cfg.Handshakes <= 0 {
		cfg.Handshakes = 4096
	}
	if !havePoller {
		cfg.Portable = true
	}
	c := &Core{cfg: cfg, lns: make(map[*Listener]struct{})}
	c.pool = pool{max: cfg.Workers, wg: &c.wg}
	c.hs.init(cfg.Handshakes)
	c.ctx, c.end = context.WithCancel(context.Background())
	for range cfg.Loops {
		l := &Loop{core: c, rbuf: make([]byte, MaxKept+bulkSize)}
		var err error
		if cfg.Portable {
			l.poll = newSleeper()
		} else if l.poll, err = newPoller(); err != nil {
			for _, l := range c.loops {
				l.poll.close()
			}
			return nil, fmt.Errorf("event loop: %w", err)
		}
		l.now = time.Now()
		l.wheel.init(l.now)
		c.loops = append(c.loops, l)
	}
	for _, l := range c.loops {
		c.wg.Add(1)
		go l.run()
	}
	return c, nil
}

// NumLoops returns the number of loops.
func (c *Core) NumLoops() int { return len(c.loops) }

// Loop returns loop i, 0 <= i < NumLoops.
func (c *Core) Loop(i int) *Loop { return c.loops[i] }

// Close closes the listeners, aborts every connection (their OnClose gets ErrClosed) and waits for all goroutines
// of the core. It must not be called on a loop.
func (c *Core) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	lns := make([]*Listener, 0, len(c.lns))
	for ln := range c.lns {
		lns = append(lns, ln)
	}
	c.mu.Unlock()
	c.end()
	for _, ln := range lns {
		ln.Close()
	}
	for _, l := range c.loops {
		l.Post(l.shutdown)
	}
	c.wg.Wait()
	return nil
}

// poller is what a loop waits on; see poll.go.
type poller interface {
	add(fd int, token uint64, writes bool) error
	remove(fd int)
	wait(block bool, deadline time.Time, events []event) (int, error)
	wake()
	close()
}

// event says what became possible on the socket that token stands for.
type event struct {
	token    uint64
	readable bool
	writable bool
	hup      bool // the peer's end of stream, reset or error
	failed   bool // reset or error
}

// slot is an entry of a loop's table. A token is slot index and generation; a token of an older generation is stale.
type slot struct {
	gen uint32
	c   *Conn
	ln  *fdListener
	d   *fdDial
	p   *PacketConn
}

// Loop is one event loop and the goroutine that runs it. Its fields belong to that goroutine, except for those
// guarded by mu.
type Loop struct {
	core  *Core
	poll  poller
	now   time.Time
	wheel wheel

	slots []slot
	free  []uint32

	ready queue[*Conn] // to be served
	bulk  queue[*Conn] // to be served, a share in a turn
	moved int          // bytes read in this round of bulk
	dirty queue[*Conn] // have output to write at the end of the turn
	dead  queue[*Conn] // await OnClose at the end of the turn

	packets  queue[*PacketConn] // may have something to receive
	outgoing outgoing
	packetIO *packetIO // made by the first packet socket

	after, running []func() // AfterTurn: of the next round, of this one

	rbuf    []byte // MaxKept for what was kept, then room for one read
	pbuf    []byte // plaintext of one read; made by the first TLS connection
	buffers buffers
	warm    list.List // of *tlsConn that may hold record buffers
	sweeper Timer
	shaking int  // TLS handshakes under way
	closing bool // shutdown has run: nothing may be added

	mu       sync.Mutex
	tasks    []func()
	sleeping bool
	ended    bool

	spare  []func() // the other half of tasks
	events [256]event
}

// Now returns the time at which the current turn began: when the loop woke, or began anew.
func (l *Loop) Now() time.Time { return l.now }

// Post runs f on the loop, soon. It may be called from any goroutine, the loop's own included. It reports false,
// and f never runs, when the loop has ended.
func (l *Loop) Post(f func()) bool {
	l.mu.Lock()
	if l.ended {
		l.mu.Unlock()
		return false
	}
	l.tasks = append(l.tasks, f)
	wake := l.sleeping
	l.sleeping = false
	l.mu.Unlock()
	if wake {
		l.poll.wake()
	}
	return true
}

// afterRounds bounds how often what was added by a func of AfterTurn still runs in the same turn: what one of them sends may be
// carried by what another one sends.
const afterRounds = 3

// AfterTurn runs f once, at the end of this turn, before queued output is written; also when it is the last one. What f
// itself adds runs in the same turn, too, or in the next one if that goes on. On the loop only.
func (l *Loop) AfterTurn(f func()) { l.after = append(l.after, f) }

// Go runs work on a pool of goroutines that is bounded by Config.Workers, then done on the loop. done does not run
// when the loop has ended in between. On the loop only.
func (l *Loop) Go(work, done func()) {
	l.core.pool.do(func() {
		work()
		l.Post(done)
	})
}

// Spawn runs f on a goroutine of its own, for as long as it takes: Core.Close ends ctx and waits for f. On the loop,
// or in an f.
func (l *Loop) Spawn(f func(ctx context.Context)) {
	l.core.wg.Go(func() { f(l.core.ctx) })
}

// run is the loop. It ends after shutdown, when no connection is left.
func (l *Loop) run() {
	defer l.core.wg.Done()
	for {
		l.turn()
		if l.closing && l.over() {
			break
		}
		block := len(l.ready.next)+len(l.bulk.next)+len(l.packets.next)+len(l.dirty.next)+len(l.dead.next)+len(l.after) == 0
		if block {
			l.mu.Lock()
			block = len(l.tasks) == 0
			l.sleeping = block
			l.mu.Unlock()
		}
		n, err := l.poll.wait(block, l.wheel.next(), l.events[:])
		if err != nil {
			panic("BUG: event loop: wait: " + err.Error())
		}
		if block {
			l.mu.Lock()
			l.sleeping = false
			l.mu.Unlock()
		}
		l.now = time.Now() // before the first callback: accept and dial run in note
		for _, e := range l.events[:n] {
			l.note(e)
		}
	}
	for _, f := range l.after { // of the last ends
		f()
	}
	l.poll.close()
}

// turn runs what is due: posted functions, timers, connections that are ready, then output and ends.
func (l *Loop) turn() {
	l.mu.Lock()
	tasks := l.tasks
	l.tasks = l.spare[:0]
	l.mu.Unlock()
	for i, f := range tasks {
		f()
		tasks[i] = nil
	}
	l.spare = tasks[:0]
	if cap(l.spare) > 4096 {
		l.spare = nil
	}

	l.wheel.advance(l.now)

	// What becomes ready, dirty or due while we are at it waits for the next turn.
	for i, c := range l.ready.take() {
		if c == nil { // it moved away
			continue
		}
		l.ready.taken[i] = nil
		c.flags &^= isReady
		l.serve(c)
	}
	l.servePackets()
	l.serveBulk()

	for range afterRounds {
		if len(l.after) == 0 {
			break
		}
		l.after, l.running = l.running[:0], l.after
		for i, f := range l.running {
			f()
			l.running[i] = nil
		}
	}

	for i, c := range l.dirty.take() {
		if c == nil {
			continue
		}
		l.dirty.taken[i] = nil
		c.flags &^= isDirty
		c.flush()
	}

	for i, c := range l.dead.take() {
		l.dead.taken[i] = nil
		c.bury()
	}

	l.outgoing.flush(l)
}

// serveBulk serves connections that move bulk until they have moved bulkBytes; the others keep their place. So a turn
// stays short however many of them there are, and what they moved leaves before more is taken: a small message waits
// for one share of the bulk, not for all of it.
func (l *Loop) serveBulk() {
	l.moved = 0
	queue := l.bulk.take()
	for i, c := range queue {
		if l.moved >= bulkBytes {
			l.bulk.next = slices.Insert(l.bulk.next, 0, queue[i:]...)
			clear(queue[i:])
			return
		}
		if c == nil {
			continue
		}
		queue[i] = nil
		c.flags &^= isReady
		l.serve(c)
	}
}

// queue is a list of connections that is worked off while it is being added to.
type queue[T comparable] struct {
	next  []T // added since take
	taken []T // being worked off; an entry that is done or removed is zero
}

func (q *queue[T]) add(c T) { q.next = append(q.next, c) }

func (q *queue[T]) take() []T {
	if cap(q.taken) > 4096 {
		q.taken = nil
	}
	q.next, q.taken = q.taken[:0], q.next
	return q.taken
}

func (q *queue[T]) remove(c T) {
	for _, list := range [][]T{q.next, q.taken} {
		for i := range list {
			if list[i] == c {
				var none T
				list[i] = none
			}
		}
	}
}

// serve gives one connection its share of the turn.
func (l *Loop) serve(c *Conn) {
	h, start := c.handler, time.Now()
	c.serve()
	l.held(h, start)
}

// held reports who has held the loop for too long.
func (l *Loop) held(by any, since time.Time) {
	if f := l.core.cfg.OnSlowTurn; f != nil {
		if d := time.Since(since); d > slowTurn {
			f(fmt.Sprintf("%T", by), d)
		}
	}
}

// note files an event of the poller.
func (l *Loop) note(e event) {
	i := uint32(e.token)
	if int(i) >= len(l.slots) || l.slots[i].gen != uint32(e.token>>32) {
		return // stale
	}
	switch s := &l.slots[i]; {
	case s.c != nil:
		c := s.c
		if e.readable {
			c.flags |= canRead
		}
		if e.writable {
			c.flags |= canWrite
			c.writable()
		}
		if e.hup {
			c.flags |= gotHup
		}
		if e.failed {
			c.flags |= hasFailed
		}
		if e.readable || e.failed {
			c.wantServe()
		}
	case s.ln != nil:
		s.ln.accept()
	case s.d != nil:
		s.d.connected()
	case s.p != nil:
		if e.readable || e.failed {
			s.p.wantReceive()
		}
	}
}

// enter gives a slot to a connection, a listener, a dial or a packet socket and returns its token.
func (l *Loop) enter(s slot) (token uint64) {
	var i uint32
	if n := len(l.free); n > 0 {
		i = l.free[n-1]
		l.free = l.free[:n-1]
	} else {
		i = uint32(len(l.slots))
		l.slots = append(l.slots, slot{})
	}
	s.gen = l.slots[i].gen
	l.slots[i] = s
	return uint64(s.gen)<<32 | uint64(i)
}

// leave frees the slot of token; events that still carry the token are stale from now on.
func (l *Loop) leave(token uint64) {
	i := uint32(token)
	l.slots[i] = slot{gen: l.slots[i].gen + 1}
	l.free = append(l.free, i)
}

// shutdown aborts everything on the loop and lets it take nothing more. The loop ends when all that has been told.
func (l *Loop) shutdown() {
	l.closing = true
	for i := range l.slots {
		switch s := l.slots[i]; {
		case s.c != nil:
			s.c.Abort(ErrClosed)
		case s.ln != nil:
			s.ln.close()
		case s.d != nil:
			s.d.fail(ErrClosed)
		case s.p != nil:
			s.p.Close()
		}
	}
}

// closed returns ErrClosed if nothing may be added to the loop any more.
func (l *Loop) closed() error {
	if l.closing {
		return ErrClosed
	}
	return nil
}

// over reports whether the loop, which is closing, has nothing left to do. No function is posted from then on.
func (l *Loop) over() bool {
	if len(l.dead.next) > 0 || l.shaking > 0 {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = len(l.tasks) == 0
	return l.ended
}

// pool runs functions on at most max goroutines; the rest wait in order.
type pool struct {
	max int
	wg  *sync.WaitGroup

	mu      sync.Mutex
	running int
	queue   []func()
}

func (p *pool) do(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running == p.max {
		p.queue = append(p.queue, f)
		return
	}
	p.running++
	p.wg.Add(1)
	go p.work(f)
}

func (p *pool) work(f func()) {
	defer p.wg.Done()
	for {
		f()
		p.mu.Lock()
		if len(p.queue) == 0 {
			p.running--
			p.mu.Unlock()
			return
		}
		f = p.queue[0]
		p.queue[0] = nil
		p.queue = p.queue[1:]
		p.mu.Unlock()
	}
}
