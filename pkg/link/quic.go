package link

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
	"culvert.dev/pkg/websocket"
)

// ALPN is the name of a link in the handshake of QUIC.
const ALPN = "culvert/1"

const (
	// maxLanes is how many lanes each side may have open at a time.
	maxLanes = 256

	// maxQueued is what an outlet keeps while as much is being written: the
	// largest DATA frame and some small ones.
	maxQueued = 33 << 10

	// readSize is what an inlet reads at a time, and maxIntake how many lanes do
	// so at once: a share of a turn of the loop, whatever the peer opens.
	readSize  = 64 << 10
	maxIntake = 4

	// maxOutgoing bounds the datagrams that wait for QUIC, in bytes with their lengths;
	// others go as frames, so that a path on which QUIC is held up by loss, or slow,
	// delays none of them for long. maxArrived bounds those that wait for the loop, in
	// number: 100 ms of 20,000 a second.
	maxOutgoing = 32 << 10
	maxArrived  = 2048

	// maxBurst is how many datagrams are sent in burstTime; others go as frames. The
	// peer's quic-go keeps 128 for a goroutine that may have to wait for a processor.
	maxBurst  = 64
	burstTime = 10 * time.Millisecond

	// farewell is how long a side that closes a link in good order waits for the
	// other one to have read everything, and linger how long it answers whoever has
	// missed the end.
	farewell = 5 * time.Second
	linger   = time.Second
)

// QUICConfig is what a link needs of QUIC, on both sides. The windows at the start
// bound what a peer may have us keep that has not said who it is.
func QUICConfig() *quic.Config {
	return &quic.Config{
		HandshakeIdleTimeout:           handshakeTimeout / 2,
		MaxIdleTimeout:                 60 * time.Second, // the session finds out earlier
		KeepAlivePeriod:                10 * time.Second,
		InitialStreamReceiveWindow:     256 << 10,
		InitialConnectionReceiveWindow: 384 << 10,
		MaxIncomingStreams:             1, // the control channel
		MaxIncomingUniStreams:          maxLanes,
		EnableDatagrams:                true,
	}
}

// A quicConn is the QUIC connection of a link. quic-go has goroutines of its own, and
// its calls block: so there is one goroutine for each stream on which the peer
// sends, one for datagrams, one that waits for the end, and one for each stream that
// has something to send. They hand what has come to the loop, and wait until it has
// taken it. All end with the connection.
type quicConn struct {
	conn    *quic.Conn
	link    *Link
	loop    atomic.Pointer[evloop.Loop] // changed by Incoming.Move alone
	control outlet
	ending  chan ending   // takes one
	heard   chan struct{} // closed when the peer has nothing more to say on the control channel
	intake  chan struct{} // tokens of lanes that read
	release func()        // frees what the connection alone uses; may be nil

	// Owned by the loop.
	reading bool
	parting bool      // the peer ends the link: it reads nothing more
	lanes   int       // open ones of ours
	largest int       // datagram that fits; 0: none
	asked   time.Time // for largest
	burst   int       // datagrams since bursts
	bursts  time.Time

	mu       sync.Mutex
	outgoing *buffer  // datagrams, each behind its length in two bytes; nil: none
	waiting  int      // bytes of them, and of those that are being sent
	sending  bool     // a goroutine sends them
	arrived  [][]byte // datagrams for the loop
	posted   bool     // the loop is about to take them
}

// An ending is how this side ends a connection. In good order is: everything that
// was sent has come.
type ending struct {
	status  int
	reason  string
	orderly bool
}

// newQUICLink makes a link of a connection and its control channel. On the loop.
func newQUICLink(loop *evloop.Loop, conn *quic.Conn, control *quic.Stream, release func()) *Link {
	q := &quicConn{
		conn:    conn,
		ending:  make(chan ending, 1),
		heard:   make(chan struct{}),
		intake:  make(chan struct{}, maxIntake),
		release: release,
	}
	q.loop.Store(loop)
	q.link = &Link{quic: q, state: ready}
	control.SetPriority(0, true) // before the lanes, which have 3
	q.control.init(q, control, q.drained)
	loop.Spawn(q.watch)
	return q.link
}

// start begins to read. On the loop.
func (q *quicConn) start() {
	loop := q.loop.Load()
	if !q.reading {
		q.reading = true
		loop.Spawn(newInlet(q, q.control.stream.(*quic.Stream), true).read)
	}
}

// serve begins to take what the peer opens and sends beside the control channel.
func (q *quicConn) serve() {
	q.start()
	loop := q.loop.Load()
	loop.Spawn(q.acceptLanes)
	loop.Spawn(q.refuseStreams)
	loop.Spawn(q.receiveDatagrams)
}

// end ends the connection; see ending. On the loop.
func (q *quicConn) end(e ending) {
	select {
	case q.ending <- e:
	default: // it is ending
	}
	if e.orderly {
		q.control.Close()
		q.start() // so that the peer's answer is seen
	}
}

// watch waits for the end of the connection, or brings it about, and reports it.
func (q *quicConn) watch(ctx context.Context) {
	var e ending
	select {
	case <-q.conn.Context().Done():
	case <-ctx.Done():
		e = ending{status: StatusAway, reason: "the relay has ended"}
	case e = <-q.ending:
		if e.orderly {
			q.wait(ctx, q.heard)
		}
	case <-q.heard:
		select {
		case e = <-q.ending:
		default: // the peer ends it
			e = ending{status: StatusAway}
			q.loop.Load().Post(q.part)
			q.wait(ctx, nil)
		}
	}
	q.conn.CloseWithError(quic.ApplicationErrorCode(e.status), e.reason) // if it is not over
	err := quicError(context.Cause(q.conn.Context()))
	q.report(err)
	if q.release == nil {
		return
	}
	if _, ok := errors.AsType[*CloseError](err); !ok {
		select {
		case <-time.After(linger):
		case <-ctx.Done():
		}
	}
	q.release()
}

// part answers the peer's end of the link. On the loop.
func (q *quicConn) part() {
	q.parting = true
	q.control.Close()
}

// wait waits for c, or the end of the connection or of the core, for as long as a
// farewell takes.
func (q *quicConn) wait(ctx context.Context, c <-chan struct{}) {
	timer := time.NewTimer(farewell)
	defer timer.Stop()
	select {
	case <-c:
	case <-q.conn.Context().Done():
	case <-ctx.Done():
	case <-timer.C:
	}
}

// report tells the link on its loop that the connection is over.
func (q *quicConn) report(err error) {
	loop := q.loop.Load()
	loop.Post(func() {
		if q.loop.Load() != loop { // it has moved meanwhile
			q.report(err)
			return
		}
		q.link.shut(err)
	})
}

// outlet sends what the loop gives it on one stream. A goroutine exists while there
// is something to send.
type outlet struct {
	q       *quicConn
	stream  io.WriteCloser
	write   func(context.Context) // run, made once
	drained func()                // tells the session, on the loop, that there is room

	mu     sync.Mutex
	queue  *buffer // what comes next; nil: nothing
	busy   bool    // run runs
	full   bool    // Room has said so, and somebody waits
	closed bool
}

// A buffer is one half of an outlet's queue, or what an inlet reads into.
type buffer struct{ b []byte }

var (
	queues = sync.Pool{New: func() any { return &buffer{make([]byte, 0, maxQueued)} }}
	reads  = sync.Pool{New: func() any { return &buffer{make([]byte, readSize)} }}

	outgoing = sync.Pool{New: func() any { return &buffer{make([]byte, 0, maxOutgoing/8)} }}
)

func (o *outlet) init(q *quicConn, stream io.WriteCloser, drained func()) {
	o.q, o.stream, o.write, o.drained = q, stream, o.run, drained
}

// Send is that of tunnel.Link and tunnel.Lane.
func (o *outlet) Send(b []byte) { o.put(b[tunnel.Headroom:]) }

// put queues a copy of b.
func (o *outlet) put(b []byte) {
	o.mu.Lock()
	if o.closed {
		o.mu.Unlock()
		return
	}
	if o.queue == nil {
		o.queue = queues.Get().(*buffer)
	}
	o.queue.b = append(o.queue.b, b...)
	o.kick()
}

// kick lets run see to the queue. o.mu is held, and released.
func (o *outlet) kick() {
	idle := !o.busy
	o.busy = true
	o.mu.Unlock()
	if idle {
		o.q.loop.Load().Spawn(o.write)
	}
}

// Room is that of tunnel.Link and tunnel.Lane: half of the queue at least, as small
// batches cost as much as large ones.
func (o *outlet) Room() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.closed:
		return 0
	case o.queue == nil:
		return maxQueued
	}
	room := maxQueued - len(o.queue.b)
	if room < maxQueued/2 {
		o.full = true
		return 0
	}
	return room
}

// Close ends the stream behind what is queued.
func (o *outlet) Close() {
	o.mu.Lock()
	if o.closed {
		o.mu.Unlock()
		return
	}
	o.closed = true
	o.kick()
}

// run writes until there is nothing more to write.
func (o *outlet) run(context.Context) {
	for {
		o.mu.Lock()
		out, full, closed := o.queue, o.full, o.closed
		o.queue, o.full = nil, false
		o.busy = out != nil
		o.mu.Unlock()
		if out == nil {
			if closed {
				o.stream.Close()
			}
			return
		}
		if full {
			o.q.loop.Load().Post(o.drained)
		}
		_, err := o.stream.Write(out.b)
		if cap(out.b) <= maxQueued { // no single large frame
			out.b = out.b[:0]
			queues.Put(out)
		}
		if err != nil {
			o.failed(err)
			return
		}
	}
}

// failed ends the connection, unless that is why a write has failed: what a peer does
// not want to have is a part of a session that can not go on without it.
func (o *outlet) failed(err error) {
	if isReset(err) {
		o.q.loop.Load().Post(func() { o.q.link.violated(err) })
	}
	o.mu.Lock()
	o.closed, o.queue = true, nil // busy for ever
	o.mu.Unlock()
}

// drained tells the session that the control channel has room. On the loop.
func (q *quicConn) drained() {
	if l := q.link; l.state == open {
		l.session.Drained(l, q.loop.Load().Now())
	}
}

// A lane is an outlet of a session's stream.
type lane struct {
	outlet
	over bool // owned by the loop
}

func (ln *lane) Close() {
	if !ln.over {
		ln.over = true
		ln.q.lanes--
		ln.outlet.Close()
	}
}

func (ln *lane) drained() {
	if l := ln.q.link; l.state == open && !ln.over {
		l.session.LaneDrained(ln, ln.q.loop.Load().Now())
	}
}

// openLane opens a lane. On the loop.
func (q *quicConn) openLane() tunnel.Lane {
	if q.parting || q.lanes == maxLanes {
		return nil
	}
	s, err := q.conn.OpenUniStream()
	if err != nil { // as many as the peer allows, or the connection is over
		return nil
	}
	q.lanes++
	ln := new(lane)
	ln.init(q, s, ln.drained)
	return ln
}

// receiver is a stream that the peer sends on.
type receiver interface {
	Peek([]byte) (int, error)
	Read([]byte) (int, error)
}

// inlet hands what comes on one stream to the loop. While nothing comes it holds a
// goroutine and no buffer.
type inlet struct {
	q       *quicConn
	stream  receiver
	control bool
	lane    *tunnel.LaneReceiver // owned by the loop; nil at first, and of the control channel
	b       []byte               // for the loop to take
	take    func()               // onLoop, made once
	taken   chan struct{}
}

func newInlet(q *quicConn, s receiver, control bool) *inlet {
	in := &inlet{q: q, stream: s, control: control, taken: make(chan struct{}, 1)}
	in.take = in.onLoop
	return in
}

// read reads until the end of the stream.
func (in *inlet) read(context.Context) {
	q := in.q
	var err error
	for err == nil {
		var one [1]byte
		in.stream.Peek(one[:]) // Read will tell the error
		if !in.control {
			q.intake <- struct{}{}
		}
		err = in.pass()
		if !in.control {
			<-q.intake
		}
	}
	switch {
	case errors.Is(err, io.EOF):
		if in.control {
			close(q.heard)
		}
	case isReset(err): // what is missing will not come
		q.loop.Load().Post(func() { q.link.violated(err) })
	}
}

// pass passes on what has come.
func (in *inlet) pass() error {
	buf := reads.Get().(*buffer)
	defer reads.Put(buf)
	n, err := in.stream.Read(buf.b)
	if n > 0 {
		in.b = buf.b[:n]
		if !in.q.loop.Load().Post(in.take) {
			return evloop.ErrClosed
		}
		<-in.taken
	}
	return err
}

// onLoop gives the session what has come.
func (in *inlet) onLoop() {
	q := in.q
	if l := q.link; l.state == open {
		var err error
		now := q.loop.Load().Now()
		if in.control {
			err = l.session.Receive(l, in.b, now)
		} else {
			if in.lane == nil {
				in.lane = l.session.NewLaneReceiver(l)
			}
			err = l.session.ReceiveLane(in.lane, in.b, now)
		}
		if err != nil {
			l.violated(err)
		}
	}
	in.taken <- struct{}{}
}

// acceptLanes begins to read the lanes that the peer opens: maxLanes at a time, or
// QUIC ends the connection.
func (q *quicConn) acceptLanes(context.Context) {
	for {
		s, err := q.conn.AcceptUniStream(q.conn.Context())
		if err != nil {
			return
		}
		s.ReleaseStreamCredit() // another one may come when it has ended
		q.loop.Load().Spawn(newInlet(q, s, false).read)
	}
}

// refuseStreams ends the link if there is a second control channel. A listener that takes in others beside
// links allows more than one such stream.
func (q *quicConn) refuseStreams(context.Context) {
	if _, err := q.conn.AcceptStream(q.conn.Context()); err == nil {
		q.loop.Load().Post(func() { q.link.violated(errSecond) })
	}
}

// sendDatagram sends a datagram if it fits, and QUIC keeps up. On the loop.
func (q *quicConn) sendDatagram(id uint32, b []byte) bool {
	if q.parting {
		return false
	}
	// What fits grows and shrinks with what is known of the path.
	if now := q.loop.Load().Now(); now.Sub(q.asked) > time.Second {
		q.asked, q.largest = now, 0
		if e, ok := errors.AsType[*quic.DatagramTooLargeError](q.conn.SendDatagram(tooLarge[:])); ok {
			q.largest = int(e.MaxDatagramPayloadSize)
		}
	}
	n := 4 + len(b)
	if n > q.largest {
		return false
	}
	if now := q.loop.Load().Now(); now.Sub(q.bursts) >= burstTime {
		q.bursts, q.burst = now, 0
	}
	if q.burst++; q.burst > maxBurst {
		return false
	}
	q.mu.Lock()
	if q.waiting+2+n > maxOutgoing {
		q.mu.Unlock()
		return false
	}
	q.waiting += 2 + n
	if q.outgoing == nil {
		q.outgoing = outgoing.Get().(*buffer)
	}
	out := binary.BigEndian.AppendUint16(q.outgoing.b, uint16(n))
	out = binary.BigEndian.AppendUint32(out, id)
	q.outgoing.b = append(out, b...)
	idle := !q.sending
	q.sending = true
	q.mu.Unlock()
	if idle {
		q.loop.Load().Spawn(q.sendDatagrams)
	}
	return true
}

// tooLarge does not fit into any packet.
var tooLarge [4 << 10]byte

// sendDatagrams sends what waits. SendDatagram blocks when QUIC has enough of them.
func (q *quicConn) sendDatagrams(context.Context) {
	for {
		q.mu.Lock()
		out := q.outgoing
		q.outgoing, q.sending = nil, out != nil
		q.mu.Unlock()
		if out == nil {
			return
		}
		for rest := out.b; len(rest) > 0; {
			n := 2 + int(binary.BigEndian.Uint16(rest))
			q.conn.SendDatagram(rest[2:n]) // lost if it does not fit any more, or the link is over
			rest = rest[n:]
			q.mu.Lock()
			q.waiting -= n
			q.mu.Unlock()
		}
		out.b = out.b[:0]
		outgoing.Put(out)
	}
}

// receiveDatagrams gathers what comes until the loop takes it.
func (q *quicConn) receiveDatagrams(context.Context) {
	for {
		b, err := q.conn.ReceiveDatagram(q.conn.Context())
		if err != nil {
			return
		}
		q.mu.Lock()
		if len(q.arrived) < maxArrived {
			q.arrived = append(q.arrived, b)
		}
		post := !q.posted
		q.posted = true
		q.mu.Unlock()
		if post {
			q.loop.Load().Post(q.deliver)
		}
	}
}

// deliver gives the session the datagrams that have come. On the loop.
func (q *quicConn) deliver() {
	q.mu.Lock()
	list := q.arrived
	q.arrived, q.posted = nil, false
	q.mu.Unlock()
	now := q.loop.Load().Now()
	for _, b := range list {
		if q.link.state != open {
			return
		}
		if len(b) < 4 {
			q.link.violated(errShort)
			return
		}
		q.link.session.ReceiveDatagram(q.link, binary.BigEndian.Uint32(b), b[4:], now)
	}
}

var (
	errShort   = errors.New("datagram without a stream id")
	errSecond  = errors.New("a second control channel")
	errUnknown = errors.New("the relay does not know the link any more: it has given it up, or was restarted")
)

// isReset reports whether err is the end of one stream. Streams may tell the end of their
// connection before its context does, and watch has that.
func isReset(err error) bool {
	_, ok := errors.AsType[*quic.StreamError](err)
	return ok
}

// quicError is what has ended a connection, in the words of a link.
func quicError(err error) error {
	var (
		app   *quic.ApplicationError
		reset *quic.StatelessResetError
	)
	switch {
	case errors.As(err, &app) && app.Remote:
		return &CloseError{int(min(app.ErrorCode, 1<<16)), app.ErrorMessage[:min(len(app.ErrorMessage), websocket.MaxControl)]}
	case errors.As(err, &reset):
		return errUnknown
	}
	return err
}

// readMessage reads a message of the handshake: two bytes of length, and JSON.
func readMessage(s io.Reader) ([]byte, error) {
	var head [2]byte
	if _, err := io.ReadFull(s, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint16(head[:])
	if n > relay.MaxMessage {
		return nil, &websocket.Error{Status: websocket.StatusTooBig, Reason: "message too long"}
	}
	b := make([]byte, n)
	_, err := io.ReadFull(s, b)
	return b, err
}

// appendMessage appends what readMessage reads.
func appendMessage(b, message []byte) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(message))), message...)
}
