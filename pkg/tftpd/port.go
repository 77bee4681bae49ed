package tftpd

import (
	"encoding/binary"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tftp"
)

// port is the socket that is asked, and everybody who has asked. It belongs to the loop that reads the socket.
type port struct {
	srv  *Server
	loop *evloop.Loop
	conn *evloop.PacketConn
	file *os.File // the socket, for the descriptors of other loops; nil: this loop sends for all

	lanes    map[*evloop.Loop]*lane
	peers    map[evloop.PacketAddr]*Transfer // those as well that are over and repeat their last ACK
	over     chain                           // these
	running  int
	sources  map[netip.Addr]*source
	unproven chain
	writes   chain // of those: that write
	gone     gone
	scratch  []byte

	closed bool
}

func newPort(s *Server, l *evloop.Loop) *port {
	return &port{
		srv: s, loop: l, lanes: make(map[*evloop.Loop]*lane), peers: make(map[evloop.PacketAddr]*Transfer),
		sources: make(map[netip.Addr]*source), unproven: chain{which: inAll}, writes: chain{which: ofWrites}, over: chain{which: inAll},
	}
}

func opcode(b []byte) tftp.Opcode {
	if len(b) < 2 {
		return 0
	}
	return tftp.Opcode(binary.BigEndian.Uint16(b))
}

// receive takes a datagram.
func (p *port) receive(b []byte, from evloop.PacketAddr) {
	t := p.peers[from]
	switch op := opcode(b); {
	case op == tftp.OpRead || op == tftp.OpWrite:
		if len(b) > tftp.MaxRequest {
			p.srv.counts.dropped.Add(1)
			return
		}
		if t != nil && !t.left {
			if t.asked == string(b) {
				t.lane.do(t, again, nil)
				return
			}
			p.release(t)
			t.lane.do(t, replace, nil)
		} else if t != nil {
			p.forget(t)
		}
		p.request(b, from, nil)
	case t != nil && p.srv.Ports[0] == 0:
		t.lane.do(t, packet, b)
	case t != nil: // it has a port of its own
		p.srv.counts.dropped.Add(1)
	case op == tftp.OpError: // is not answered
		p.srv.counts.dropped.Add(1)
	case p.late(b, from):
	case op == tftp.OpData || op == tftp.OpAck || op == tftp.OpOptionAck:
		p.answer(errUnknownTID, len(b), from)
	default:
		p.srv.counts.malformed.Add(1)
		p.answer(&tftp.Error{Code: tftp.CodeIllegal, Text: "This is not TFTP."}, len(b), from)
	}
}

// late takes what comes of a transfer that was over, or has made room, a short while ago. It reports false if there is none.
func (p *port) late(b []byte, from evloop.PacketAddr) bool {
	asked, ok := p.gone.find(from, p.loop.Now())
	if !ok {
		return false
	}
	if asked == "" || len(b) < 4 || b[2] != 0 || b[3] > 1 { // not the first answer to ours
		p.srv.counts.dropped.Add(1)
		return true
	}
	p.request([]byte(asked), from, b)
	return true
}

// answer answers something of so many bytes with an ERROR that has no more of them, unless there were too many.
func (p *port) answer(err *tftp.Error, most int, to evloop.PacketAddr) {
	if !p.srv.mayAnswer(p.loop.Now()) {
		p.srv.counts.dropped.Add(1)
		return
	}
	p.scratch = tftp.AppendError(p.scratch[:0], err, most)
	p.conn.WriteTo(p.scratch, to)
}

// refuse answers a request with an ERROR.
func (p *port) refuse(err *tftp.Error, most int, to evloop.PacketAddr) {
	p.srv.refused(err)
	p.gone.add(to, "", p.loop.Now())
	p.answer(err, most, to)
}

// request begins a transfer. If it has made room before, first is what shows that it should not have.
func (p *port) request(b []byte, from evloop.PacketAddr, first []byte) {
	req, err := tftp.ParseRequest(b)
	if err != nil {
		p.refuse(asError(err), len(b), from)
		return
	}
	name, err := tftp.CleanName(strings.ReplaceAll(req.Name, `\`, "/")) // loaders of Windows write \boot\bcd
	if err != nil {
		p.refuse(asError(err), len(b), from)
		return
	}
	if p.closed {
		p.refuse(errClosing, len(b), from)
		return
	}
	share, rest, refused := p.srv.Find(name, from.Remote)
	if share == nil {
		if refused != nil {
			p.refuse(refused, len(b), from)
		}
		return
	}
	addr := relay.Source(from.Remote.Addr())
	src := p.sources[addr]
	// Size is not answered in netascii, and may not be known.
	bare := req.Op == tftp.OpRead && req.Options.Block == 0 && req.Options.Window == 0 && req.Options.Timeout == 0
	write := req.Op == tftp.OpWrite
	if !p.makeRoom(src, bare, write, first == nil) {
		p.refuse(errTooMany, len(b), from)
		return
	}
	if src = p.sources[addr]; src == nil { // making room may have removed it
		src = &source{addr: addr, unproven: chain{which: ofSource}}
		p.sources[addr] = src
	}
	ln, err := p.lane(share.Loop)
	if err != nil {
		p.srv.Log.Error("a loop cannot send", "err", err)
		p.refuse(errNotNow, len(b), from)
		return
	}
	t := &Transfer{
		Request: req, Name: rest, Visitor: from.Remote, Began: p.loop.Now(),
		share: share, port: p, lane: ln, local: from.Local, asked: string(b), bare: bare, source: src,
	}
	p.peers[from] = t
	p.running++
	src.running++
	p.srv.counts.running.Add(1)
	p.srv.counts.total.Add(1)
	if first != nil {
		t.known = true
		t.standing.Store(proven)
		ln.do(t, begin, nil)
		ln.do(t, packet, first)
		return
	}
	p.unproven.add(t)
	src.unproven.add(t)
	if write {
		p.writes.add(t)
	}
	if bare {
		src.bare++
	}
	p.srv.counts.unproven.Add(1)
	ln.do(t, begin, nil)
}

// makeRoom makes room for a transfer of src, which is nil if it has none, by ending those that have proven nothing. It reports false if
// there is none.
func (p *port) makeRoom(src *source, bare, write, isUnproven bool) bool {
	s := p.srv
	if src != nil {
		for bare && isUnproven && src.bare >= maxBare {
			t := src.unproven.oldest
			for !t.bare {
				t = t.links[ofSource].newer
			}
			p.displace(t)
		}
		for src.running >= s.MaxPerAddress {
			if src.unproven.oldest == nil {
				return false
			}
			p.displace(src.unproven.oldest)
		}
	}
	for p.running >= s.MaxTransfers {
		if p.unproven.oldest == nil {
			return false
		}
		p.displace(p.unproven.oldest)
	}
	for isUnproven && p.unproven.n >= max(1, s.MaxTransfers/unprovenShare) {
		p.displace(p.unproven.oldest)
	}
	for write && isUnproven && p.writes.n >= maxWrites {
		p.displace(p.writes.oldest)
	}
	return true
}

// displace ends t, unless it proves at this moment that it should not be.
func (p *port) displace(t *Transfer) {
	if !t.standing.CompareAndSwap(unproven, displaced) {
		p.proven(t)
		return
	}
	p.release(t)
	p.gone.add(t.peer(), t.asked, p.loop.Now())
	p.srv.counts.displaced.Add(1)
	t.lane.do(t, drop, nil)
}

// proven takes t out of those that have proven nothing.
func (p *port) proven(t *Transfer) {
	if t.left || t.known {
		return
	}
	t.known = true
	p.unproven.remove(t)
	t.source.unproven.remove(t)
	if t.Request.Op == tftp.OpWrite {
		p.writes.remove(t)
	}
	if t.bare {
		t.source.bare--
	}
	p.srv.counts.unproven.Add(-1)
}

// release takes t, which is over, out of all counts and lists.
func (p *port) release(t *Transfer) {
	if t.left {
		return
	}
	p.proven(t)
	t.left = true
	delete(p.peers, t.peer())
	p.running--
	p.srv.counts.running.Add(-1)
	if t.source.running--; t.source.running == 0 {
		delete(p.sources, t.source.addr)
	}
	t.source = nil
}

// ended is told by the loop of t that it is over. What still comes from there is for t, if it stays.
func (p *port) ended(t *Transfer, a action) {
	if t.left { // replaced or displaced; there may be another one now
		return
	}
	p.release(t)
	switch {
	case a == past:
		p.gone.add(t.peer(), "", p.loop.Now())
	case a == unheard:
		p.gone.add(t.peer(), t.asked, p.loop.Now())
	case a == stays && !p.closed:
		if p.over.n >= p.srv.MaxTransfers {
			p.forget(p.over.oldest)
		}
		p.peers[t.peer()] = t
		p.over.add(t)
		t.stays = true
	}
}

// forget takes t, which is over, off the peers.
func (p *port) forget(t *Transfer) {
	if t.stays {
		t.stays = false
		p.over.remove(t)
		delete(p.peers, t.peer())
		p.gone.add(t.peer(), "", p.loop.Now())
	}
}

func (p *port) close() {
	if p.closed {
		return
	}
	p.closed = true
	for _, t := range p.peers {
		if t.stays {
			p.forget(t)
		}
		t.lane.do(t, shut, nil)
	}
	left := 1
	done := func() {
		if left--; left == 0 {
			p.conn.Close()
		}
	}
	for _, ln := range p.lanes {
		if ln.loop == p.loop {
			continue
		}
		ln.flush()
		ln.closed = true
		left++
		if !ln.loop.Post(func() {
			ln.close()
			p.loop.Post(done) // behind what the lane has to send
		}) {
			left--
		}
	}
	p.closeFile()
	done()
}

func (p *port) closeFile() {
	if p.file != nil {
		p.file.Close()
		p.file = nil
	}
}

// lane returns that of a loop.
func (p *port) lane(l *evloop.Loop) (*lane, error) {
	ln := p.lanes[l]
	if ln == nil {
		ln = &lane{port: p, loop: l}
		ln.flushed, ln.returned = ln.flush, ln.giveBack
		if p.file != nil {
			var err error
			if ln.conn, err = l.SendPacketFile(p.file); err != nil {
				return nil, err
			}
		}
		p.lanes[l] = ln
	}
	return ln, nil
}

// lane is what goes between the port's loop and another one that has transfers: each way gathered in a turn, and posted at its end.
// That of the port's own loop is empty: all is done at once.
type lane struct {
	// Immutable.
	port     *port
	loop     *evloop.Loop
	conn     *evloop.PacketConn // sends, on loop; nil: the port's loop does
	flushed  func()             // flush
	returned func()             // giveBack

	// Owned by the port's loop.
	there  *batch // gathered in this turn
	closed bool   // nothing more is gathered

	// Owned by loop.
	back *batch

	ahead atomic.Int64 // bytes on the way to loop

	mu   sync.Mutex
	free []*batch
}

// action is what a lane carries.
type action uint8

const (
	// To the transfer.
	begin   action = iota // it begins
	packet                // a datagram has come
	again                 // its request has come again
	replace               // the client has asked for something else
	drop                  // it makes room
	shut                  // the Server closes

	// To the port.
	proved   // see port.proven
	ended    // it is over
	past     // it is over, and what still comes of it is to be borne
	unheard  // it is over, and nothing of the file has got through
	stays    // it is over, but repeats its last ACK
	forgot   // it does not any more
	anew     // it is over, and is to be begun again
	sending  // a datagram to send
	returned // a datagram that came too late for it
)

// batch is what a lane has gathered.
type batch struct {
	lane  *lane
	run   func()
	items []item
	buf   []byte
}

type item struct {
	t      *Transfer
	action action
	from   int // of batch.buf
	to     int
}

const (
	maxAhead  = 8 << 20  // bytes on the way to a loop; more are dropped, as a socket would do
	keptBatch = 64 << 10 // of buf, while a batch is not in use
	freeBatch = 4        // kept by a lane
)

// do has something done to t on its loop. On the port's.
func (ln *lane) do(t *Transfer, a action, b []byte) {
	if ln.loop == ln.port.loop {
		t.do(a, b)
		return
	}
	if ln.closed {
		return
	}
	if a == packet && ln.ahead.Load() > maxAhead {
		ln.port.srv.counts.dropped.Add(1)
		return
	}
	if ln.there == nil {
		ln.there = ln.get()
		ln.port.loop.AfterTurn(ln.flushed)
	}
	ln.ahead.Add(int64(len(b)))
	ln.there.add(t, a, b)
}

// tell tells the port of t. On the lane's loop.
func (ln *lane) tell(t *Transfer, a action, b []byte) {
	if ln.loop == ln.port.loop {
		ln.port.hear(t, a, b)
		return
	}
	if ln.back == nil {
		ln.back = ln.get()
		ln.loop.AfterTurn(ln.returned)
	}
	ln.back.add(t, a, b)
}

func (p *port) hear(t *Transfer, a action, b []byte) {
	switch a {
	case proved:
		p.proven(t)
	case ended, past, unheard, stays:
		p.ended(t, a)
	case forgot:
		p.forget(t)
	case anew:
		if p.peers[t.peer()] == nil {
			p.request([]byte(t.asked), t.peer(), nil)
		}
	case sending:
		p.conn.WriteTo(b, t.peer())
	case returned:
		p.receive(b, t.peer())
	}
}

func (ln *lane) flush() {
	if k := ln.there; k != nil {
		ln.there = nil
		ln.loop.Post(k.run)
	}
}

func (ln *lane) giveBack() {
	if k := ln.back; k != nil {
		ln.back = nil
		ln.port.loop.Post(k.run)
	}
}

// close is on the lane's loop.
func (ln *lane) close() {
	ln.giveBack()
	if ln.conn != nil {
		ln.conn.Close()
	}
}

func (ln *lane) get() *batch {
	ln.mu.Lock()
	defer ln.mu.Unlock()
	if n := len(ln.free); n > 0 {
		k := ln.free[n-1]
		ln.free = ln.free[:n-1]
		return k
	}
	k := &batch{lane: ln}
	k.run = k.deliver
	return k
}

func (k *batch) add(t *Transfer, a action, b []byte) {
	from := len(k.buf)
	k.buf = append(k.buf, b...)
	k.items = append(k.items, item{t, a, from, len(k.buf)})
}

// deliver does what was gathered, on the loop that it was gathered for.
func (k *batch) deliver() {
	ln := k.lane
	n := 0
	for i := range k.items {
		it := &k.items[i]
		b := k.buf[it.from:it.to:it.to]
		if it.action < proved {
			n += len(b)
			it.t.do(it.action, b)
		} else {
			ln.port.hear(it.t, it.action, b)
		}
	}
	ln.ahead.Add(-int64(n))
	clear(k.items)
	k.items, k.buf = k.items[:0], k.buf[:0]
	if cap(k.buf) > keptBatch {
		k.buf = nil
	}
	ln.mu.Lock()
	if len(ln.free) < freeBatch {
		ln.free = append(ln.free, k)
	}
	ln.mu.Unlock()
}
