package tftp

import (
	"encoding/binary"
	"errors"
	"math"
	"time"
)

// ErrTimeout is what Closed gets when the peer has not answered any more.
var ErrTimeout = errors.New("tftp: the peer does not answer any more")

const (
	firstRTO = time.Second // rfc6298#section-2.1
	minRTO   = 200 * time.Millisecond
	// maxRTO bounds back-off. It is longer than the 5 s that atftp waits, whatever timeout it asks for: what comes earlier makes
	// it wait anew without a word.
	maxRTO = 7 * time.Second
	// maxAgreedRTO is that of a peer that asked for a longer one, because its path is slow.
	maxAgreedRTO = 30 * time.Second
	// firstAgreedRTO is the first timeout of such a peer, at most.
	firstAgreedRTO = 4 * time.Second
	// lockstepACK is after what time an ACK is repeated for a peer that owes the next block, in lockstep, at least. tftp-hpa sends its block
	// once more after 5 s in which nothing came, and for no other reason.
	lockstepACK = 6 * time.Second

	// patience is how long nothing has to come from a peer that owes an answer, until it is given up. If a longer
	// timeout is agreed, it is three of the longest.
	patience = 30 * time.Second
	// unprovenPatience is that for a peer that has never answered.
	unprovenPatience = 10 * time.Second
	// unprovenRepeats is how often an option acknowledgement, or the first ACK of a WRQ, is repeated for such a peer.
	unprovenRepeats = 2
	// stuck is how many times patience a transfer may stand still although the peer repeats itself: a path that carries ACKs and
	// loses every full block looks so.
	stuck = 10

	// keepAlive is after what time something is repeated while this side keeps the peer waiting. Most clients begin to count
	// anew then. busybox does not, but waits anew: up to 2 s, and gives up after twelve times that nothing came. curl, writing,
	// gives up after fifty ACKs that it has had. If a timeout is agreed, it is half of that, up to maxKeepAlive.
	keepAlive    = 1500 * time.Millisecond
	maxKeepAlive = 5 * time.Second
	// keepWindow is that in windows: an ACK makes the peer send all of its window again.
	keepWindow = 3 * time.Second
	// keepFinal is after how much silence an ACK is repeated while the last block is not acknowledged, at least. busybox takes any ACK for
	// the last one then, but is never silent for so long.
	keepFinal = 3 * time.Second
	// againEvery bounds how often a repeated request is answered. The quickest client repeats after 760 ms.
	againEvery = 500 * time.Millisecond
	// dally is how long the last ACK is remembered since it was sent; those who miss it repeat their last block after 5 s, or 6.
	dally = 10 * time.Second
	// maxDally is how long in all.
	maxDally = 30 * time.Second
	// minQuiet is what must have passed since an ACK, at least, until it is repeated because of a duplicate.
	minQuiet = 100 * time.Millisecond

	none     = time.Duration(math.MaxInt64) // no time
	anyBlock = -2                           // of Transfer.timed: whatever comes next
)

// A phase of a transfer.
//
//	server that sends     [answering] → sending → over
//	client that sends     asking → sending → over
//	server that receives  receiving → confirming → dallying → over
//	client that receives  asking → receiving → confirming → dallying → over
//
// All but dallying may end in over at any time, with an error. Closed is called on the way into dallying, or over.
type phase uint8

const (
	asking     phase = iota // the request is repeated
	answering               // the option acknowledgement is repeated, until ACK 0 comes; without options there is no such phase
	sending                 // blocks acked+1 … top-1 are under way
	receiving               // block next is expected
	confirming              // Sink has had it all; the last block is not acknowledged
	dallying                // the last block is acknowledged, again if it comes again
	over
)

// A Transfer is the transfer of one file. It belongs to whoever calls it, and is not safe for others at the same time. Its
// methods may be called after it has ended, and do nothing then.
type Transfer struct {
	cfg    Config
	opts   Options
	stats  Stats
	req    Request // client
	most   int     // server: bytes of the request, which bounds the answers while unproven
	phase  phase
	client bool
	oack   bool // the server has answered with an option acknowledgement, which is its block 0
	proven bool

	// Times are since epoch.
	epoch time.Time
	now   time.Duration // of the call that is going on
	timer time.Duration // when something is to be repeated, or none
	heard time.Duration // when the peer last gave a sign of life, or began to owe one
	moved time.Duration // when something new last came, or began to be owed

	// Round trips (RFC 6298).
	srtt, rttvar time.Duration // 0: not measured
	rto          time.Duration // with its back-off
	timed        int64         // the block whose ACK (sender) or arrival (receiver) tells a round trip, sent or asked for once; -1: none; or anyBlock
	timedAt      time.Duration
	again        bool  // timed was sent again since, in a window
	guesses      uint8 // since a round trip was measured

	// The least round trip is that of a block which was marked, from when it was sent or asked for first: never less than
	// the path has.
	least  time.Duration // 0: not measured
	mark   int64         // -1: none
	markAt time.Duration

	// Blocks are counted from 1 without end; wire makes their numbers.
	acked   int64 // all up to this one are acknowledged
	next    int64 // to be sent next, or expected
	repeats int   // of the answer to an unproven peer

	sender
	receiver

	ack [head]byte // being sent
}

// Serve begins a transfer at a server: the file of the request is open. A reader is sent cfg.Source, whose size is answered
// if it is known (-1: it is not) and not 0; a writer's file goes to cfg.Sink. It answers at once, or when Source has the first byte.
func Serve(cfg Config, req Request, size int64, now time.Time) *Transfer {
	t := start(cfg, now)
	t.proven = !cfg.Unproven
	t.most = len(req.Append(make([]byte, 0, MaxRequest)))
	t.opts = agree(&cfg, &req, size)
	if cfg.Unproven && 2+len(t.opts.append(make([]byte, 0, MaxRequest))) > t.most {
		t.opts.HasSize, t.opts.Size = false, 0 // which alone can be longer than what was asked
	}
	t.oack = t.opts != Options{}
	t.rto = t.initialRTO()
	switch {
	case req.Op == OpWrite:
		t.phase = receiving
		t.acknowledge()
	case t.oack:
		t.phase = answering
		t.answer()
	default:
		t.phase = sending
		t.pump()
	}
	return t
}

// answer sends the option acknowledgement of a sender, when its Source has begun to have the file. Before, the client is not answered: it repeats
// its request for as long as it waits for anything, while an option acknowledgement that comes again would make atftp give up. One byte
// tells: a Source may not fetch a whole block for an address that has not answered.
func (t *Transfer) answer() {
	b := packets.Get().(*[]byte)
	state := Wait
	t.pumping, t.woken = true, true
	for t.woken && t.phase == answering && state == Wait {
		t.woken = false
		*b, state = t.cfg.Source.Append((*b)[:0], 0, 1)
	}
	t.pumping = false
	packets.Put(b)
	if t.phase != answering {
		return // Source called Fail
	}
	if t.starved = state == Wait || state == Failed; !t.starved {
		t.heard, t.moved = t.now, t.now
		t.sendOptions()
		t.timed, t.timedAt = 0, t.now
		t.mark, t.markAt = 0, t.now
	}
}

// agree returns what a server answers to the options of a request.
func agree(cfg *Config, req *Request, size int64) Options {
	asked, o := &req.Options, Options{}
	if asked.Block != 0 {
		o.Block = asked.Block
		if cfg.MaxBlock != 0 {
			o.Block = max(min(asked.Block, cfg.MaxBlock), MinBlock)
		}
	}
	if asked.Window != 0 {
		o.Window = Window(o.blockSize(), asked.Window)
	}
	o.Timeout = asked.Timeout
	if asked.HasSize && req.Mode == Octet { // the size of netascii is known at its end (rfc2349)
		if req.Op == OpWrite {
			o.Size, o.HasSize = asked.Size, true
		} else if size > 0 { // curl takes the size 0 for an error
			o.Size, o.HasSize = size, true
		}
	}
	o.Rollover, o.HasRollover = asked.Rollover, asked.HasRollover
	return o
}

// Dial begins a transfer at a client: it sends the request, with the options that are there. For an OpWrite, which sends
// cfg.Source, a tsize is set to size (-1: not known, so it is left out); an OpRead fills cfg.Sink. In netascii a tsize is left out.
// The Source has its first block already: a client that has not sent any has nothing to keep the server waiting with.
// A windowsize above 32767 asks for 32767, so that block numbers stay clear.
func Dial(cfg Config, req Request, size int64, now time.Time) *Transfer {
	t := start(cfg, now)
	t.client, t.proven = true, true
	o := &req.Options
	if req.Op == OpWrite && o.HasSize {
		o.Size, o.HasSize = max(size, 0), size >= 0
	}
	if req.Mode == NetASCII {
		o.Size, o.HasSize = 0, false
	}
	o.Window = min(o.Window, math.MaxInt16)
	t.req, t.opts = req, *o
	t.request()
	return t
}

func start(cfg Config, now time.Time) *Transfer {
	return &Transfer{
		cfg:   cfg,
		epoch: now,
		timer: none,
		rto:   firstRTO,
		timed: -1,
		mark:  -1,
		next:  1,
		sender: sender{
			top:    1,
			back:   -time.Hour,
			resent: -1,
		},
		receiver: receiver{
			ackedAt: -time.Hour,
			gapAt:   -time.Hour,
		},
	}
}

// request sends the request, for the first time or once more.
func (t *Transfer) request() {
	b := packets.Get().(*[]byte)
	*b = t.req.Append((*b)[:0])
	t.timer = t.now + t.rto
	t.cfg.Send(*b)
	packets.Put(b)
}

// sendOptions sends the option acknowledgement.
func (t *Transfer) sendOptions() {
	b := packets.Get().(*[]byte)
	*b = t.opts.append(binary.BigEndian.AppendUint16((*b)[:0], uint16(OpOptionAck)))
	t.ackedAt = t.now
	t.timer = t.now + t.rto
	t.cfg.Send(*b)
	packets.Put(b)
}

// at sets the time of a call.
func (t *Transfer) at(now time.Time) {
	t.now = max(t.now, now.Sub(t.epoch))
}

func (o *Options) blockSize() int {
	if o.Block == 0 {
		return DefaultBlock
	}
	return o.Block
}

// window is how many blocks are sent or come until there is an ACK.
func (t *Transfer) window() int64 {
	return int64(max(t.opts.Window, 1))
}

// wire returns the number of a block in packets.
func (t *Transfer) wire(n int64) uint16 {
	if t.opts.Rollover == 1 && n > 0 {
		return uint16((n-1)%math.MaxUint16 + 1)
	}
	return uint16(n)
}

// after returns how many blocks after block n the next block with a number on the wire is, or -1: there is none.
func (t *Transfer) after(n int64, number uint16) int64 {
	switch {
	case t.opts.Rollover != 1:
		return int64(number - uint16(n))
	case number == 0 && n > 0:
		return -1
	case n == 0:
		return int64(number)
	}
	return (int64(number) - int64(t.wire(n)) + math.MaxUint16) % math.MaxUint16
}

// Receive takes a datagram from the peer. The caller has compared its address with that of the transfer; a client takes the
// port of the first one that answers its request.
func (t *Transfer) Receive(b []byte, now time.Time) {
	if t.phase == over {
		return
	}
	t.at(now)
	op := opcode(b)
	switch {
	case op == OpOptionAck && t.client:
		t.onOptions(b[2:])
	case op == OpError:
		if e, ok := parseError(b); ok {
			t.onError(e)
		}
	case len(b) < head:
	case op == OpAck && t.cfg.Source != nil:
		t.onAck(binary.BigEndian.Uint16(b[2:]))
	case op == OpData && t.cfg.Source == nil:
		t.onData(binary.BigEndian.Uint16(b[2:]), b[head:])
	}
}

// onOptions takes the option acknowledgement of a server, which is its block 0.
func (t *Transfer) onOptions(b []byte) {
	switch {
	case t.phase == asking:
		var o Options
		clean := o.parse(b)
		asked := &t.req.Options
		if !clean || o.Block > asked.Block || o.Window > asked.Window || o.Timeout != 0 && asked.Timeout == 0 ||
			o.HasSize && !asked.HasSize || o.HasRollover && !asked.HasRollover {
			t.Fail(&Error{Code: CodeOptions, Text: "The options are not those that were asked for."}, t.epoch.Add(t.now))
			return
		}
		t.answered(o)
		if t.phase == receiving {
			t.acknowledge()
		} else {
			t.pump()
		}
	case t.phase == sending:
		t.onAck(0)
	case t.phase == receiving && t.next == 1:
		t.heard = t.now
		t.onDuplicate()
	}
}

// answered begins the transfer of a client whose request was answered.
func (t *Transfer) answered(agreed Options) {
	t.opts = agreed
	t.rto = t.initialRTO()
	t.heard, t.moved = t.now, t.now
	t.timer = none
	if t.phase = receiving; t.cfg.Source != nil {
		t.phase = sending
	}
}

// onError takes an ERROR.
func (t *Transfer) onError(e *Error) {
	switch {
	case t.phase == dallying:
	case t.phase == asking && e.Code == CodeOptions && t.req.Options != Options{}:
		t.req.Options, t.opts = Options{}, Options{}
		t.heard, t.rto = t.now, firstRTO
		t.request()
	default:
		t.close(e)
	}
}

// Again tells a server that the request has come again: its answer is repeated, at most twice a second, if the peer has not gone past it.
func (t *Transfer) Again(now time.Time) {
	t.at(now)
	switch {
	case t.client:
	case t.phase == answering:
		if !t.starved && t.now-t.ackedAt >= againEvery {
			t.stats.Retransmitted++
			t.timed = -1
			t.sendOptions()
		}
	case t.phase == sending && !t.oack && t.acked == 0:
		if t.outstanding() && t.now-t.began >= againEvery {
			t.goBack()
		}
	case t.phase == receiving && t.next == 1:
		if t.now-t.ackedAt >= againEvery {
			t.acknowledge()
		}
	}
}

// Tick tells the time. It does nothing before Deadline.
func (t *Transfer) Tick(now time.Time) {
	t.at(now)
	if t.phase == over {
		return
	}
	if t.now >= t.givesUpAt() {
		if t.phase == dallying {
			t.phase = over
		} else {
			t.timeout()
		}
		return
	}
	if t.now < t.timer {
		return
	}
	t.timer = none
	switch t.phase {
	case asking:
		t.backOff()
		t.stats.Retransmitted++
		t.request()
	case answering:
		if t.isSilent() {
			return
		}
		t.backOff()
		t.stats.Retransmitted++
		t.timed = -1
		t.sendOptions()
	case sending:
		if t.outstanding() {
			longest := t.rto == t.maxRTO()
			t.backOff()
			t.resent = t.top - 1
			t.goBack()
			if longest && t.outstanding() {
				// Longer round trips are not believed in: what comes now answers this.
				t.timed, t.timedAt, t.again = anyBlock, t.now, false
				t.mark, t.markAt = t.acked, t.now
			}
		} else {
			t.keepAlive()
		}
	case receiving:
		if t.isSilent() {
			return
		}
		if !t.hold {
			t.backOff()
			t.acknowledge()
			return
		}
		t.repeatAck()
	case confirming:
		t.repeatAck()
	}
}

// isSilent says that the answer has been repeated often enough for a peer that has not proven itself. Otherwise it counts.
func (t *Transfer) isSilent() bool {
	if t.proven {
		return false
	}
	t.repeats++
	return t.repeats > unprovenRepeats
}

// Deadline returns when Tick is to be called. It may have changed after any other call. The zero time: there is nothing to wait
// for; if Closed was called, the transfer may be forgotten.
func (t *Transfer) Deadline() time.Time {
	d := none
	if t.phase != over {
		d = min(t.timer, t.givesUpAt())
	}
	if d == none {
		return time.Time{}
	}
	return t.epoch.Add(d)
}

// givesUpAt returns when the transfer ends if nothing comes, or none.
func (t *Transfer) givesUpAt() time.Duration {
	switch {
	case t.phase == over || t.phase == confirming, t.phase == receiving && t.hold, t.phase == sending && !t.outstanding(),
		t.phase == answering && t.starved:
		return none // the peer owes nothing
	case t.phase == dallying:
		return min(t.ackedAt+dally, t.moved+maxDally)
	case !t.proven:
		return t.heard + unprovenPatience
	case t.isDoubtful():
		return t.heard + max(unprovenPatience, 3*time.Duration(t.opts.Timeout)*time.Second)
	}
	p := max(patience, 3*t.maxRTO())
	return min(t.heard+p, t.moved+stuck*p)
}

// Fail ends the transfer. The peer gets an ERROR, and Closed gets e.
func (t *Transfer) Fail(e *Error, now time.Time) {
	if t.phase >= dallying {
		return
	}
	t.at(now)
	if t.phase != asking || e.Code == CodeOptions { // before, there is nobody to tell
		most := MaxRequest
		if !t.proven {
			most = t.most
		}
		t.sendError(e, most)
	}
	t.close(e)
}

// isDoubtful says that a reader has accepted options, which can be forged blindly in one packet, and has acknowledged nothing of a file since, while it
// has been sent a window again and again.
func (t *Transfer) isDoubtful() bool {
	return t.cfg.Unproven && t.phase == sending && t.acked == 0
}

// timeout ends the transfer because the peer is silent. It is told, in case that it only seems so, unless it never acknowledged a thing.
func (t *Transfer) timeout() {
	if t.proven && t.phase != asking && !t.isDoubtful() {
		t.sendError(&Error{Text: "No answer came for too long."}, MaxRequest)
	}
	t.close(ErrTimeout)
}

func (t *Transfer) sendError(e *Error, most int) {
	b := packets.Get().(*[]byte)
	*b = AppendError((*b)[:0], e, most)
	t.cfg.Send(*b)
	packets.Put(b)
}

func (t *Transfer) close(err error) {
	t.phase = over
	t.cfg.Closed(err)
}

// Proven says that the peer has shown that it gets what is sent to it. It is always so unless Config.Unproven.
func (t *Transfer) Proven() bool { return t.proven }

// Options returns what is agreed; at a client, what it asks for until the server has answered. Size is also what a peer
// said that it will send.
func (t *Transfer) Options() Options { return t.opts }

// Stats returns the counters.
func (t *Transfer) Stats() Stats { return t.stats }

// initialRTO is the timeout before a round trip was measured: what was negotiated (rfc2349), but not so long that an
// address that has not answered is given up before.
func (t *Transfer) initialRTO() time.Duration {
	if t.opts.Timeout != 0 {
		return min(time.Duration(t.opts.Timeout)*time.Second, firstAgreedRTO)
	}
	return firstRTO
}

// maxRTO bounds the timeout.
func (t *Transfer) maxRTO() time.Duration {
	return max(maxRTO, min(time.Duration(t.opts.Timeout)*time.Second, maxAgreedRTO))
}

// backOff doubles the timeout (rfc6298#section-5.5).
func (t *Transfer) backOff() {
	t.rto = min(2*t.rto, t.maxRTO())
}

// measure takes a round trip (rfc6298#section-2). It forgets the back-off.
func (t *Transfer) measure(rtt time.Duration) {
	if t.srtt == 0 {
		t.srtt, t.rttvar = rtt, rtt/2
	} else {
		t.rttvar += ((t.srtt - rtt).Abs() - t.rttvar) / 4
		t.srtt += (rtt - t.srtt) / 8
	}
	t.rto = t.baseRTO()
	t.guesses = 0
}

// baseRTO is the timeout without back-off.
func (t *Transfer) baseRTO() time.Duration {
	return min(max(t.srtt+4*t.rttvar, minRTO), t.maxRTO())
}

// guess is called when something has got through that was repeated at a time. If the repetition may well be what got through, the
// back-off is forgotten: where much is lost, a round trip that can be measured may not come for long. But not always,
// because on a path that has become slower everything would be sent twice from then on.
func (t *Transfer) guess(repeated time.Duration) {
	base := t.baseRTO()
	if t.srtt == 0 || t.rto <= base {
		return
	}
	t.guesses++
	if d := t.now - repeated; d >= t.quiet() && d <= base && t.guesses%8 != 0 {
		t.rto = base
	}
}

// passed measures when a block has got through, and others before it. If a window was sent again, and the answer comes so soon that it
// is one to the first time, that was too early, and is measured, too.
func (t *Transfer) passed(n int64) {
	if n == t.timed || t.timed == anyBlock {
		t.timed = -1
		if !t.again || t.now-t.back < max(t.quiet(), t.srtt/2) {
			t.measure(max(t.now-t.timedAt, 1))
		}
	}
	if t.mark < 0 || n < t.mark {
		return
	}
	t.mark = -1
	if rtt := max(t.now-t.markAt, 1); t.least == 0 || rtt < t.least {
		t.least = rtt
	}
}

// quiet is how long after something was sent nothing that comes can be due to it: the least round trip, and a bit less for those
// who measure it. What comes earlier answers what was before. If it were answered, and that again, all would be sent
// twice until the end.
func (t *Transfer) quiet() time.Duration {
	if t.least == 0 {
		return t.maxRTO()
	}
	return t.least - t.least/8
}

// keepsAliveAfter is after what time something is repeated for a peer that is kept waiting.
func (t *Transfer) keepsAliveAfter() time.Duration {
	d := keepAlive
	if t.opts.Timeout != 0 {
		d = min(time.Duration(t.opts.Timeout)*time.Second/2, maxKeepAlive)
	} else if t.window() > 1 {
		d = keepWindow
	}
	if t.phase == confirming {
		d = max(d, keepFinal)
	}
	return d
}
