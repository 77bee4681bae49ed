package evloop

import (
	"math/bits"
	"time"
)

const (
	tick       = 50 * time.Millisecond
	wheelSlots = 512 // power of two; 25.6 s a round
)

// Timer is a coarse timer of a loop, to be embedded by value. The zero value is stopped. It belongs to one loop and
// must not be copied while it runs.
type Timer struct {
	next, prev *Timer
	tick       int64
	f          func()
}

// Arm makes t call f on the loop after d, at most 50 ms late. It replaces what t was armed for. On the loop only.
func (l *Loop) Arm(t *Timer, d time.Duration, f func()) {
	t.Stop()
	t.f = f
	l.wheel.add(t, l.now.Add(d))
}

// Stop stops t if it runs.
func (t *Timer) Stop() {
	if t.next != nil {
		t.prev.next, t.next.prev = t.next, t.prev
		t.next, t.prev = nil, nil
		t.f = nil
	}
}

// wheel is a hashed timing wheel. A slot lists the timers of its tick and of the rounds after it.
type wheel struct {
	start time.Time
	done  int64 // the last tick that was run
	slots [wheelSlots]Timer
	used  [wheelSlots / 64]uint64 // slots that may hold timers; a Stop leaves its bit behind
}

func (w *wheel) init(now time.Time) {
	w.start = now
	for i := range w.slots {
		s := &w.slots[i]
		s.next, s.prev = s, s
	}
}

func (w *wheel) add(t *Timer, when time.Time) {
	t.tick = max(int64((when.Sub(w.start)+tick-1)/tick), w.done+1)
	i := t.tick % wheelSlots
	w.used[i/64] |= 1 << (i % 64)
	s := &w.slots[i]
	t.next, t.prev = s, s.prev
	s.prev.next = t
	s.prev = t
}

// advance runs what is due.
func (w *wheel) advance(now time.Time) {
	last := int64(now.Sub(w.start) / tick)
	if last-w.done > wheelSlots { // we slept longer than a round: each slot once
		w.done = last - wheelSlots
	}
	for w.done < last {
		w.done++
		i := w.done % wheelSlots
		if w.used[i/64]&(1<<(i%64)) == 0 {
			continue
		}
		// Take what is due out first: callbacks may stop and arm any timer, these included.
		var due Timer
		due.next, due.prev = &due, &due
		s := &w.slots[i]
		for t := s.next; t != s; {
			next := t.next
			if t.tick <= last {
				t.prev.next, t.next.prev = t.next, t.prev
				t.next, t.prev = &due, due.prev
				due.prev.next = t
				due.prev = t
			}
			t = next
		}
		if s.next == s {
			w.used[i/64] &^= 1 << (i % 64)
		}
		for due.next != &due {
			t := due.next
			f := t.f
			t.Stop()
			f()
		}
	}
}

// next returns when advance has something to do at the earliest; zero if never.
func (w *wheel) next() time.Time {
	from := (w.done + 1) % wheelSlots
	for n := range int64(len(w.used) + 1) {
		i := (from/64 + n) % int64(len(w.used))
		word := w.used[i]
		if n == 0 {
			word &= ^uint64(0) << (from % 64)
		}
		if word == 0 {
			continue
		}
		slot := i*64 + int64(bits.TrailingZeros64(word))
		ticks := (slot - from + wheelSlots) % wheelSlots
		return w.start.Add(time.Duration(w.done+1+ticks) * tick)
	}
	return time.Time{}
}
