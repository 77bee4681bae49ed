package tftp

import (
	"encoding/binary"
	"sync"
	"time"
)

const head = 4 // bytes of DATA before the block's own, and of an ACK

// packets are buffers for packets that are being made: for the length of one call, so that a transfer needs none of its own.
var packets = sync.Pool{New: func() any {
	b := make([]byte, 0, head+MaxBlock)
	return &b
}}

// appendBlock appends an ACK, or the head of DATA.
func appendBlock(dst []byte, op Opcode, number uint16) []byte {
	dst = binary.BigEndian.AppendUint16(dst, uint16(op))
	return binary.BigEndian.AppendUint16(dst, number)
}

// sender is what a Transfer needs to send.
type sender struct {
	top     int64         // one past the highest block that was ever sent
	last    int64         // the last block; 0: the Source has not said which it is
	size    int64         // of the file, if last is known
	began   time.Duration // when the oldest block under way was sent, at least
	back    time.Duration // when it last went back
	resent  int64         // the last block that may have been sent again for nothing: see onAck
	starved bool          // Source said Wait
	pumping bool          // pump is calling others
	woken   bool          // meanwhile Wake was called
}

// outstanding says that the peer owes an ACK.
func (t *Transfer) outstanding() bool { return t.acked+1 < t.top }

// pump sends what the window has room for.
func (t *Transfer) pump() {
	b := packets.Get().(*[]byte)
	t.pumping, t.starved = true, false
	sent := false
	for t.next <= t.acked+t.window() && (t.last == 0 || t.next <= t.last) {
		t.woken = false
		ok := t.take(b, t.next)
		if t.phase != sending {
			break // Source called Fail
		}
		if !ok {
			if t.woken {
				continue
			}
			t.starved = true
			break
		}
		if !t.outstanding() {
			t.heard, t.moved, t.began = t.now, t.now, t.now
		}
		if t.next < t.top {
			t.stats.Retransmitted++
		} else {
			t.top = t.next + 1
			t.timed, t.timedAt, t.again = t.next, t.now, false
			if t.mark < 0 {
				t.mark, t.markAt = t.next, t.now
			}
		}
		t.next++
		sent = true
		t.cfg.Send(*b)
	}
	t.pumping = false
	packets.Put(b)
	switch {
	case t.phase != sending || !t.proven:
	case t.outstanding():
		if sent || t.timer == none {
			t.timer = t.now + t.rto
		}
	case t.timer == none: // starved
		t.timer = t.now + t.keepsAliveAfter()
	}
}

// take makes a packet of block n, if the Source has it.
func (t *Transfer) take(b *[]byte, n int64) bool {
	block := t.opts.blockSize()
	off := (n - 1) * int64(block)
	p, state := t.cfg.Source.Append(appendBlock((*b)[:0], OpData, t.wire(n)), off, block)
	*b = p
	if t.phase != sending || state == Wait || state == Failed {
		return false
	}
	got := len(p) - head
	switch {
	case t.last != 0 && int64(got) == min(t.size-off, int64(block)):
		return true
	case t.last == 0 && state == More && got == block,
		t.last == 0 && state == End && got == block: // then an empty block follows
		return true
	case t.last == 0 && state == End && got < block && n == t.top:
		t.last, t.size = n, off+int64(got)
		return true
	}
	// A file that is not what it was must not look whole.
	t.Fail(&Error{Text: "The file has changed while it was read."}, t.epoch.Add(t.now))
	return false
}

// goBack sends the window again from the first block that is not acknowledged (rfc7440#section-4).
func (t *Transfer) goBack() {
	t.next = t.acked + 1
	t.began, t.back = t.now, t.now
	if t.again = true; t.window() == 1 || t.timed == anyBlock {
		t.timed = -1
	}
	t.pump()
}

// keepAlive sends the last acknowledged block once more, so that a peer that is kept waiting knows that there is somebody.
func (t *Transfer) keepAlive() {
	if t.acked > 0 {
		b := packets.Get().(*[]byte)
		if t.take(b, t.acked) {
			t.stats.Retransmitted++
			t.cfg.Send(*b)
		}
		packets.Put(b)
		if t.phase != sending {
			return
		}
	}
	t.timer = t.now + t.keepsAliveAfter()
}

// onAck takes an ACK. At a client an option acknowledgement is ACK 0, too.
func (t *Transfer) onAck(number uint16) {
	switch t.phase {
	case asking:
		if number == 0 {
			t.answered(Options{})
			t.pump()
		}
		return
	case answering:
		if number == 0 && !t.starved {
			t.passed(0)
			if t.window() > 1 {
				t.srtt, t.rto = 0, t.initialRTO() // windows take longer than that
			}
			t.proven = true
			t.timer = none
			t.phase = sending
			t.pump()
		}
		return
	}
	n := t.after(t.acked, number)
	if n < 0 || t.acked+n >= t.top || n == 0 && !t.proven {
		t.stats.Duplicates++ // late, or of what was never sent
		return
	}
	t.heard = t.now
	if n == 0 {
		// In lockstep that is a duplicate and means nothing (rfc1123#section-4.2.3.1). In a window the first block was lost,
		// unless the ACK is older than the window, or answers blocks that were sent again for nothing. Those are before what was
		// sent once, until an ACK of which it may well be: a path that is slow would be filled with windows that are sent again
		// because windows were sent again.
		t.stats.Duplicates++
		if t.window() > 1 && t.outstanding() && t.acked > t.resent && t.now-t.began >= t.quiet() {
			t.resent = t.top - 1
			t.goBack()
		}
		return
	}
	t.proven = true
	t.moved = t.now
	t.acked += n
	t.passed(t.acked)
	if t.window() == 1 {
		t.guess(t.back)
	}
	t.stats.Blocks += n
	t.stats.Bytes += n * int64(t.opts.blockSize())
	if t.last != 0 && t.acked == t.last {
		t.stats.Bytes = t.size
		t.close(nil)
		return
	}
	t.next = max(t.next, t.acked+1)
	t.timer = none
	if t.acked+1 < t.next && t.now-t.back >= t.quiet() {
		t.goBack() // the block after it was lost
		return
	}
	t.pump()
}

// Wake tells a sender that its Source, which said Wait, has more.
func (t *Transfer) Wake(now time.Time) {
	if t.pumping {
		t.woken = true
		return
	}
	switch {
	case !t.starved:
	case t.phase == answering:
		t.at(now)
		t.answer()
	case t.phase == sending:
		t.at(now)
		t.pump()
	}
}

// Acked returns the offset in bytes below which the Source of a sender is not asked again: that of the last block that
// was acknowledged.
func (t *Transfer) Acked() int64 {
	return max(t.acked-1, 0) * int64(t.opts.blockSize())
}
