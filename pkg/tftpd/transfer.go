package tftpd

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net/netip"
	"sync/atomic"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/tftp"
)

// Transfer is one file on its way to a client, or from it. Share.Begin and Share.End see it.
type Transfer struct {
	// What was asked for. Immutable.
	Request tftp.Request
	Name    string // below the Share
	Visitor netip.AddrPort
	Began   time.Time

	// Immutable.
	share *Share
	port  *port
	lane  *lane
	local netip.Addr // of ours that was asked
	asked string     // the request as it came
	bare  bool       // it is a read without options, so that the answer is larger than it

	// standing is what the peer has shown. Who changes it decides: it goes to proven on the transfer's loop, and to displaced on the
	// port's.
	standing atomic.Uint32

	// Owned by the port's loop.
	source *source // until left
	links  [3]link
	known  bool // the port has heard that it is no longer unproven
	left   bool // it is over, for the port
	stays  bool // and repeats its last ACK

	// Owned by the transfer's loop.
	machine *tftp.Transfer     // nil: the file is being opened
	cancel  func()             // of the opening
	reader  *Reader            // what is sent
	ahead   int64              // bytes that are fetched beyond what the peer has
	end     evloop.End         // where to put what comes
	conn    *evloop.PacketConn // of Server.Ports
	timer   evloop.Timer
	armed   time.Time // of timer; zero: it does not run
	heard   time.Time // when the peer has said something for the last time
	moved   time.Time // when the file has gone on
	blocks  int64     // of machine, then
	resent  int64     // packets of machine that were counted
	written int64     // bytes that came

	spoken    bool   // machine has sent something
	first     []byte // what the peer has said before that
	proven    bool   // machine has said so
	calling   bool   // machine is being called, or settle is at it
	woken     bool   // machine is to be told: there is more
	whole     bool   // end has had all of it
	held      bool   // end is full
	drained   bool   // machine is to be told: it no longer is
	confirmed bool   // machine is to be told: the file is safe
	fail      error  // machine is to be told
	closed    bool   // machine has ended, with err
	over      bool   // Share.End has been told
	lingers   bool   // machine repeats its last ACK
	err       error
}

// Of Transfer.standing.
const (
	unproven uint32 = iota
	proven
	displaced
)

// Of Transfer.links.
const (
	inAll = iota
	ofSource
	ofWrites
)

const (
	aheadProven = 1 << 20  // bytes that are fetched ahead for a client which is there
	aheadMost   = 16 << 20 // and for one that has taken half of that already: what a fast and long way holds
	plainBlock  = 1448     // bytes of a block that every route carries
)

// Why transfers end, beside what clients and stores say. Share.End may get the first two.
var (
	ErrReplaced  = errors.New("the client has asked anew")
	ErrDisplaced = errors.New("made room: the client had shown nothing")
	errSlow      = errors.New("the store has not gone on for too long")
	errCut       = errors.New("the store has ended the file early")
)

func (t *Transfer) peer() evloop.PacketAddr {
	return evloop.PacketAddr{Remote: t.Visitor, Local: t.local}
}

// Options returns what is agreed, zero before that. On the loop of the Share.
func (t *Transfer) Options() tftp.Options {
	if t.machine == nil {
		return tftp.Options{}
	}
	return t.machine.Options()
}

// Stats returns the counts of the transfer. On the loop of the Share.
func (t *Transfer) Stats() tftp.Stats {
	if t.machine == nil {
		return tftp.Stats{}
	}
	return t.machine.Stats()
}

func (t *Transfer) now() time.Time { return t.lane.loop.Now() }

// do does what a lane carries. On the transfer's loop.
func (t *Transfer) do(a action, b []byte) {
	switch a {
	case begin:
		t.begin()
	case packet:
		t.receive(b)
	case again:
		t.again()
	case replace:
		t.finish(ErrReplaced)
	case drop:
		t.finish(ErrDisplaced)
	case shut:
		t.close()
	}
}

// begin opens the file.
func (t *Transfer) begin() {
	if t.standing.Load() == displaced { // nobody has been told of it
		t.over = true
		return
	}
	s := t.share
	if s.Admit != nil {
		if err := s.Admit(t.Visitor); err != nil {
			t.over = true
			t.port.srv.counts.policy.Add(1)
			t.refuse(err)
			t.lane.tell(t, past, nil)
			return
		}
	}
	if s.Begin != nil {
		s.Begin(t)
	}
	o := &Open{Name: t.Name, Mode: t.Request.Mode, Size: -1, Visitor: t.Visitor}
	if t.Request.Op == tftp.OpRead {
		t.wait()
		t.opening(s.library().Read(o, t.opened))
		return
	}
	o.Write = true
	if t.Request.Options.HasSize && o.Mode == tftp.Octet {
		o.Size = t.Request.Options.Size
	}
	switch {
	case !s.Write:
		t.deny(errNoWrite)
	case s.MaxSize > 0 && o.Size > s.MaxSize:
		t.deny(errTooLarge)
	default:
		t.wait()
		t.opening(s.Store.Open(s.Loop, o, t.created))
	}
}

// opening keeps how the opening is given up, unless it is over already.
func (t *Transfer) opening(cancel func()) {
	if t.machine == nil && !t.over {
		t.cancel = cancel
	}
}

// opened has the file that is read.
func (t *Transfer) opened(r *Reader, err error) {
	t.cancel = nil
	if err != nil {
		t.deny(err)
		return
	}
	t.reader = r
	r.Notify(t.more)
	size := r.Size()
	if t.Request.Mode != tftp.Octet {
		size = -1
	}
	t.serve(tftp.Config{Source: r}, size)
}

// created has the file that is written.
func (t *Transfer) created(f *File, err error) {
	t.cancel = nil
	if err != nil {
		t.deny(err)
		return
	}
	t.end = f.End
	f.End.SetHandler((*target)(t))
	if t.fail != nil { // it has ended at once
		t.deny(t.fail)
		return
	}
	t.serve(tftp.Config{Sink: t.sink, Complete: t.complete}, -1)
}

// serve answers the request.
func (t *Transfer) serve(cfg tftp.Config, size int64) {
	if err := t.bind(); err != nil {
		t.deny(err)
		return
	}
	cfg.Send, cfg.Closed, cfg.Unproven, cfg.MaxBlock = t.send, t.onClosed, true, t.port.srv.MaxBlock
	if cfg.MaxBlock == 0 && t.Request.Options.Block > plainBlock {
		cfg.MaxBlock = routeBlock(t.Visitor.Addr())
	}
	t.heard, t.moved = t.now(), t.now()
	t.calling = true
	t.machine = tftp.Serve(cfg, t.Request, size, t.now())
	t.settle()
}

// bind gives the transfer a port of its own, if it is to have one.
func (t *Transfer) bind() error {
	first, last := t.port.srv.Ports[0], t.port.srv.Ports[1]
	if first == 0 {
		return nil
	}
	addr := t.local
	if !addr.IsValid() {
		addr = t.port.conn.LocalAddr().Addr()
	}
	n := uint32(last) - uint32(first) + 1
	at := rand.Uint32N(n) // nobody who does not hear the answer knows where to send an ACK
	for i := range min(n, maxTries) {
		port := uint32(first) + (at+i)%n
		c, err := t.lane.loop.ListenPacket("udp", netip.AddrPortFrom(addr, uint16(port)).String(), t.arrived)
		if err == nil {
			t.conn = c
			return nil
		}
	}
	return errTooMany
}

// arrived takes a datagram at the transfer's own port.
func (t *Transfer) arrived(b []byte, from evloop.PacketAddr) {
	switch {
	case from.Remote == t.Visitor:
		t.receive(b)
	case opcode(b) == tftp.OpError || !t.port.srv.mayAnswer(t.now()):
		t.port.srv.counts.dropped.Add(1)
	default:
		t.conn.WriteTo(tftp.AppendError(nil, errUnknownTID, len(b)), from)
	}
}

// receive takes a datagram of the peer.
func (t *Transfer) receive(b []byte) {
	switch {
	case t.over && !t.lingers:
	case !t.spoken && t.standing.Load() == proven && opcode(b) != tftp.OpError: // it answers what was sent before the transfer made room
		t.first = bytes.Clone(b)
	case t.machine != nil:
		t.heard = t.now()
		t.calling = true
		t.machine.Receive(b, t.now())
		t.settle()
		if t.displaced() {
			t.lane.tell(t, returned, b)
		}
	case opcode(b) == tftp.OpError: // it does not want to wait
		t.finish(&tftp.Error{Text: "The client has given up.", Remote: true})
	}
}

// again hears that the request has come again.
func (t *Transfer) again() {
	switch {
	case t.over:
	case t.machine == nil:
		t.wait()
	case t.standing.Load() == proven && t.now().Sub(t.heard) >= pauseTime: // the client has begun anew
		t.finish(ErrReplaced)
		t.lane.tell(t, anew, nil)
	default:
		t.calling = true
		t.machine.Again(t.now())
		t.settle()
	}
}

// call has settle do what is to be done, unless it is at it.
func (t *Transfer) call() {
	if !t.calling && !t.over && t.machine != nil {
		t.calling = true
		t.settle()
	}
}

// displaced decides, when the peer has just proven itself, whether that was in time. Otherwise the transfer has made room and does nothing any
// more: the packet goes back to the port, where it begins another one.
func (t *Transfer) displaced() bool {
	return !t.proven && t.machine != nil && t.machine.Proven() && !t.standing.CompareAndSwap(unproven, proven) && t.standing.Load() == displaced
}

// settle tells the machine what it is to be told, and does what it has made necessary. It comes after each call of it.
func (t *Transfer) settle() {
	m, now := t.machine, t.now()
	for !t.closed {
		switch {
		case t.fail != nil:
			err := t.fail
			m.Fail(t.says(err), now)
			t.fail, t.err = nil, err
			t.closed = true
		case t.woken:
			t.woken = false
			m.Wake(now)
			continue
		case t.drained:
			t.drained = false
			m.Hold(false, now)
			continue
		case t.confirmed:
			t.confirmed = false
			m.Confirm(now)
			continue
		}
		break
	}
	t.calling = false
	st := m.Stats()
	if n := st.Retransmitted; n > t.resent {
		t.port.srv.counts.retransmitted.Add(uint64(n - t.resent))
		t.resent = n
	}
	if st.Blocks != t.blocks {
		t.blocks = st.Blocks
		t.moved = now
	}
	switch {
	case t.over:
		t.linger()
		return
	case t.displaced():
		return // drop comes
	case m.Proven() && !t.proven:
		t.proven = true
		t.lane.tell(t, proved, nil)
		t.fetch(aheadProven)
	}
	if t.closed {
		t.finish(t.err)
		return
	}
	if t.reader != nil {
		t.reader.Forget(m.Acked())
		if n := min(2*m.Acked(), aheadMost); n >= t.ahead+aheadProven {
			t.fetch(n)
		}
	}
	t.arm(m.Deadline())
	if b := t.first; b != nil && t.spoken {
		t.first = nil
		t.receive(b)
	}
}

// fetch has so many bytes be fetched ahead of what the client has.
func (t *Transfer) fetch(n int64) {
	if t.reader != nil {
		t.ahead = n
		t.reader.Ahead(int(n))
	}
}

// onClosed is the end of the machine.
func (t *Transfer) onClosed(err error) {
	t.closed = true
	t.err = err
}

// finish ends the transfer: nothing is left of it but, maybe, the machine that repeats its last ACK.
func (t *Transfer) finish(err error) {
	if t.over {
		return
	}
	t.over = true
	if t.cancel != nil {
		t.cancel()
		t.cancel = nil
	}
	if t.reader != nil {
		t.reader.Close()
	}
	if end := t.end; end != nil {
		t.end = nil
		if err == nil {
			end.Close()
		} else {
			end.Abort(err)
		}
	}
	if t.share.End != nil {
		t.share.End(t, err)
	}
	switch {
	case t.closed && err == nil && !t.machine.Deadline().IsZero():
		t.lingers = true
		t.lane.tell(t, stays, nil)
		t.linger()
		return
	case err == tftp.ErrTimeout && t.Stats().Blocks == 0: // the client's: that of a store names its server, and was answered
		t.lane.tell(t, unheard, nil)
	case t.machine != nil && !t.closed, err == tftp.ErrTimeout: // replaced, displaced, or nobody is there
		t.lane.tell(t, ended, nil)
	default:
		t.lane.tell(t, past, nil)
	}
	t.free()
}

// linger waits until the last ACK need not be repeated any more.
func (t *Transfer) linger() {
	if !t.lingers {
		return
	}
	if at := t.machine.Deadline(); !at.IsZero() {
		t.arm(at)
		return
	}
	t.lingers = false
	t.lane.tell(t, forgot, nil)
	t.free()
}

func (t *Transfer) free() {
	t.timer.Stop()
	if t.conn != nil {
		t.conn.Close()
	}
}

// close ends the transfer because the Server closes.
func (t *Transfer) close() {
	switch {
	case t.over:
		t.lingers = false
		t.free()
	case t.machine == nil:
		t.deny(errClosing)
	default:
		t.failed(errClosing)
	}
}

// Abort ends the transfer: the client is told err, if that is a *tftp.Error, and Share.End is. On the transfer's loop.
func (t *Transfer) Abort(err error) {
	switch {
	case t.over:
	case t.machine == nil:
		t.deny(err)
	default:
		t.failed(err)
	}
}

// arm has tick called at some time, or a little earlier.
func (t *Transfer) arm(at time.Time) {
	if limit := t.stallsAt(); !t.over && (at.IsZero() || at.After(limit)) {
		at = limit
	}
	if !t.armed.IsZero() && !at.Before(t.armed) {
		return // tick finds out that it is too early
	}
	t.armed = at
	t.lane.loop.Arm(&t.timer, at.Sub(t.now()), t.tick)
}

// stallsAt is when the store has not gone on for too long.
func (t *Transfer) stallsAt() time.Time {
	if t.whole {
		return t.moved.Add(safeTime)
	}
	return t.moved.Add(stallTime)
}

// wait gives the file, once more, time to be opened.
func (t *Transfer) wait() {
	t.moved = t.now()
	if t.armed.IsZero() {
		t.armed = t.moved.Add(openTime)
		t.lane.loop.Arm(&t.timer, openTime, t.tick)
	}
}

func (t *Transfer) tick() {
	t.armed = time.Time{}
	now := t.now()
	if t.machine == nil {
		if at := t.moved.Add(openTime); now.Before(at) {
			t.armed = at
			t.lane.loop.Arm(&t.timer, at.Sub(now), t.tick)
		} else {
			t.deny(errSlow)
		}
		return
	}
	t.calling = true
	if at := t.machine.Deadline(); !at.IsZero() && !now.Before(at) {
		t.machine.Tick(now)
	}
	if !t.over && t.fail == nil && !now.Before(t.stallsAt()) {
		t.fail = errSlow
	}
	t.settle()
}

// send sends a datagram of the machine.
func (t *Transfer) send(b []byte) {
	if t.displaced() {
		return // it would be answered, and another transfer gets the answers
	}
	t.spoken = true
	if len(b) > len(t.asked) && (t.machine == nil || !t.machine.Proven()) && !t.port.srv.bare.take(int64(len(b)), t.now()) {
		t.port.srv.counts.dropped.Add(1) // the request may come again
		return
	}
	if opcode(b) == tftp.OpError {
		t.port.srv.counts.errorsSent.Add(1)
	}
	t.put(b)
}

// refuse sends an ERROR that is no longer than the request.
func (t *Transfer) refuse(e *tftp.Error) {
	t.port.srv.counts.errorsSent.Add(1)
	t.put(tftp.AppendError(nil, e, len(t.asked)))
}

// put sends a datagram to the peer.
func (t *Transfer) put(b []byte) {
	switch {
	case t.conn != nil:
		t.conn.WriteTo(b, t.peer())
	case t.lane.conn != nil:
		t.lane.conn.WriteTo(b, t.peer())
	default:
		t.lane.tell(t, sending, b)
	}
}

// deny ends the transfer before it has begun.
func (t *Transfer) deny(err error) {
	e := t.says(err)
	t.port.srv.refused(e)
	t.refuse(e)
	t.finish(err)
}

// says returns what the client is told of err. What is ours alone is logged.
func (t *Transfer) says(err error) *tftp.Error {
	e, ok := errors.AsType[*tftp.Error](err)
	switch {
	case !ok:
		t.port.srv.report(t, err)
		return errNotNow
	case e.Remote: // what a server behind the store says may name paths of its own
		return &tftp.Error{Code: e.Code, Text: textOf(e.Code)}
	}
	return e
}

// textOf is what an ERROR of another server becomes.
func textOf(c tftp.Code) string {
	switch c {
	case tftp.CodeNotFound:
		return "File not found."
	case tftp.CodeAccess:
		return "Access denied."
	case tftp.CodeDiskFull:
		return "There is no room for the file."
	case tftp.CodeExists:
		return "The file exists already."
	}
	return errNotNow.Text
}

// more hears from the reader.
func (t *Transfer) more() {
	t.moved = t.now()
	if err := t.reader.Err(); err != nil {
		t.failed(err)
		return
	}
	t.woken = true
	t.call()
}

// failed ends the transfer because of the file.
func (t *Transfer) failed(err error) {
	if t.fail == nil && !t.closed {
		t.fail = err
		t.call()
	}
}

// sink gets what the client has sent.
func (t *Transfer) sink(b []byte) {
	t.written += int64(len(b))
	if most := t.share.MaxSize; most > 0 && t.written > most && t.fail == nil {
		t.fail = errTooLarge
	}
	if t.fail != nil {
		return
	}
	t.end.Write(b)
	if t.end != nil && !t.held && t.end.Pending() > t.end.HighMark() {
		t.held = true
		t.machine.Hold(true, t.now())
	}
}

// complete hears that the client has sent all. If it is not as much as was announced, the client has lost count: curl leaves out blocks
// when the answer with the options comes once more.
func (t *Transfer) complete() {
	if o := t.Request.Options; o.Size > 0 && t.Request.Mode == tftp.Octet && o.Size != t.written && t.fail == nil {
		t.fail = errOtherSize
	}
	if t.fail == nil {
		t.whole = true
		t.end.CloseWrite()
	}
}

// target is a Transfer as the handler of the End that it writes to.
type target Transfer

// OnData takes what a file that is written should not have.
func (g *target) OnData(b []byte) int { return len(b) }

// OnEOF says that the file is safe.
func (g *target) OnEOF() {
	t := (*Transfer)(g)
	if t.over {
		return
	}
	t.share.library().Written(t.Name)
	t.confirmed = true
	t.call()
}

func (g *target) OnDrain() {
	t := (*Transfer)(g)
	if t.held {
		t.held = false
		t.drained = true
		t.moved = t.now()
		t.call()
	}
}

func (g *target) OnClose(err error) {
	t := (*Transfer)(g)
	t.end = nil
	if err == nil {
		err = errCut
	}
	t.failed(err)
}

// asError returns the *tftp.Error that err is.
func asError(err error) *tftp.Error {
	if e, ok := errors.AsType[*tftp.Error](err); ok {
		return e
	}
	return errNotNow
}
