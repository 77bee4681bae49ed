package tftp

import "time"

// receiver is what a Transfer needs to receive.
type receiver struct {
	ackedAt time.Duration // when the last ACK was sent
	gapAt   time.Duration // when the last one because of a gap was
	high    int64         // the last block that came after a gap; 0: there is no gap
	hold    bool
}

// acknowledge sends an ACK of all that has come in order.
func (t *Transfer) acknowledge() {
	asks := t.ackedAt < 0 || t.next-1-t.acked >= t.window() // for blocks that nobody can have sent before
	again := t.ackedAt >= 0 && t.next-1 == t.acked
	t.acked = t.next - 1
	if again {
		t.repeatAck()
		return
	}
	t.sendAck()
	t.timed, t.mark = -1, -1
	if asks {
		t.timed, t.timedAt = t.next, t.now
		t.mark, t.markAt = t.next, t.now
	}
}

// repeatAck sends the last ACK once more.
func (t *Transfer) repeatAck() {
	t.stats.Retransmitted++
	t.timed = -1
	t.sendAck()
}

func (t *Transfer) sendAck() {
	if t.acked == 0 && t.oack {
		t.sendOptions()
	} else {
		t.cfg.Send(appendBlock(t.ack[:0], OpAck, t.wire(t.acked)))
	}
	t.ackedAt = t.now
	t.arm()
}

// arm sets the timer of a receiver. A sender that waits as long has repeated its block before.
func (t *Transfer) arm() {
	switch {
	case t.phase == dallying:
		t.timer = none
	case t.phase == confirming || t.hold:
		t.timer = t.now + t.keepsAliveAfter()
	case t.window() == 1:
		t.timer = t.now + max(2*t.rto, lockstepACK)
	default:
		t.timer = t.now + 2*t.rto
	}
}

// onData takes a block.
func (t *Transfer) onData(number uint16, b []byte) {
	switch t.phase {
	case asking: // the server knows no options
		if number != 1 {
			return
		}
		t.answered(Options{})
	case confirming: // answered by time alone
		t.stats.Duplicates++
		t.arm()
		return
	case dallying:
		t.onDuplicate()
		return
	}
	if len(b) > t.opts.blockSize() {
		t.Fail(&Error{Code: CodeIllegal, Text: "The block is longer than agreed."}, t.epoch.Add(t.now))
		return
	}
	n := t.after(t.next, number)
	if n < 0 {
		return // no block has that number
	}
	t.heard = t.now
	switch {
	case t.next+n > t.acked+t.window():
		if d := t.after(t.acked, number); d > 0 && t.acked+d < t.next {
			// Since the last ACK it comes for the second time. One now, in mid-window, would make the sender go back.
			t.stats.Duplicates++
			return
		}
		t.onDuplicate()
	case n > 0:
		t.onGap(t.next + n)
	default:
		t.onNext(b)
	}
}

// onNext takes the block that is expected.
func (t *Transfer) onNext(b []byte) {
	t.proven = true
	t.moved = t.now
	t.passed(t.next)
	t.guess(t.ackedAt)
	t.high = 0
	t.next++
	t.stats.Blocks++
	t.stats.Bytes += int64(len(b))
	last := len(b) < t.opts.blockSize()
	if last {
		t.phase = confirming
	}
	t.arm()
	if len(b) > 0 {
		t.cfg.Sink(b)
	}
	switch {
	case t.phase == confirming:
		t.cfg.Complete()
	case t.phase == receiving && !t.hold && t.next-1-t.acked >= t.window():
		t.acknowledge()
	}
}

// onGap takes a block before which another is missing. The ACK of what is before the gap makes the sender go back
// (rfc7440#section-4): once per round trip, and again if what comes then has the gap again.
func (t *Transfer) onGap(n int64) {
	t.stats.Duplicates++
	if !t.hold && t.now-t.gapAt >= t.quiet() && (t.high == 0 || n <= t.high) {
		t.gapAt = t.now
		t.acknowledge()
	}
	t.high = n
}

// onDuplicate takes a block that came before. The ACK was lost, or is still under way: then the block means nothing, and an
// ACK of every one would keep a sender that answers each of them sending twice.
func (t *Transfer) onDuplicate() {
	t.stats.Duplicates++
	if !t.hold && t.now-t.ackedAt >= max(t.least, minQuiet) {
		t.acknowledge()
	}
}

// Hold tells a receiver that its Sink is full: nothing new is acknowledged until Hold(false). What the peer has sent already
// still comes.
func (t *Transfer) Hold(on bool, now time.Time) {
	if t.hold == on || t.phase != receiving {
		return
	}
	t.at(now)
	t.hold = on
	if !on {
		t.heard, t.moved = t.now, t.now
		if t.next-1-t.acked >= t.window() {
			t.acknowledge()
			return
		}
	}
	t.arm()
}

// Confirm tells a receiver, after Complete, that the file is safe: the last block is acknowledged, and Closed is called.
func (t *Transfer) Confirm(now time.Time) {
	if t.phase != confirming {
		return
	}
	t.at(now)
	t.hold = false
	t.phase = dallying
	t.moved = t.now
	t.acknowledge()
	t.cfg.Closed(nil)
}
