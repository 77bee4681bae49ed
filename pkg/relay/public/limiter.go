package public

import (
	"hash/maphash"
	"net/netip"
	"time"

	"culvert.dev/pkg/relay"
)

// limiter bounds how often something happens, for each of many addresses: the
// generic cell rate algorithm, which is a token bucket that needs one number for each
// of them, the moment at which its bucket is full again. Its memory is bounded. If there are
// more addresses than it can remember, it forgets those that are nearest to a full
// bucket: whoever makes up addresses does not get rid of his own debt by that.
//
// It is used from one goroutine, with times that do not go back.
type limiter struct {
	step  int64 // nanoseconds that one event costs
	slack int64 // of debt that is allowed before an event

	seed  maphash.Seed
	slots []slot // sets of slotWays, as many as a power of two
}

// slot is one address: 16 bytes.
type slot struct {
	key  uint64 // hash of the address; 0: empty
	full int64  // when the bucket is full again
}

const (
	slotWays = 4
	minSlots = 16 * slotWays
	maxSlots = 4096 * slotWays // 256 KiB
)

// newLimiter makes one; nil if there is no limit.
func newLimiter(r relay.Rate) *limiter {
	if r.IsZero() {
		return nil
	}
	step := max(1, int64(r.Per)/int64(r.N))
	return &limiter{step: step, slack: int64(r.Burst-1) * step, seed: maphash.MakeSeed(), slots: make([]slot, minSlots)}
}

// allow counts an event of addr, unless there were too many: then it returns how
// long to wait.
func (l *limiter) allow(addr netip.Addr, now int64) (wait time.Duration) {
	if l == nil {
		return 0
	}
	s := l.find(addr, now)
	if wait := s.full - l.slack - now; wait > 0 {
		return time.Duration(wait)
	}
	s.full = max(s.full, now) + l.step
	return 0
}

// forgive undoes an allow that has just let an event of addr happen.
func (l *limiter) forgive(addr netip.Addr, now int64) {
	if l != nil {
		l.find(addr, now).full -= l.step
	}
}

// blocked returns how long addr has to wait, without counting anything.
func (l *limiter) blocked(addr netip.Addr, now int64) (wait time.Duration) {
	key := l.hash(addr)
	for _, s := range l.set(key) {
		if s.key == key {
			return time.Duration(max(0, s.full-l.slack-now))
		}
	}
	return 0
}

// fine counts an event of addr, and has it wait for d if that was the last one that is
// allowed. It returns how many have been counted and not been forgotten.
func (l *limiter) fine(addr netip.Addr, now int64, d time.Duration) (n int) {
	s := l.find(addr, now)
	s.full = max(s.full, now) + l.step
	n = int((s.full - now + l.step - 1) / l.step)
	if s.full-l.slack > now {
		s.full = now + int64(d) + l.slack
	}
	return n
}

func (l *limiter) hash(addr netip.Addr) uint64 {
	return max(1, maphash.Comparable(l.seed, relay.Source(addr)))
}

// set is where an address is, if it is there.
func (l *limiter) set(key uint64) []slot {
	i := int(key) & (len(l.slots) - 1) &^ (slotWays - 1)
	return l.slots[i : i+slotWays : i+slotWays]
}

// find returns the slot of addr, which is made if there is none.
func (l *limiter) find(addr netip.Addr, now int64) *slot {
	key := l.hash(addr)
	for {
		set := l.set(key)
		least := &set[0]
		for i := range set {
			switch s := &set[i]; {
			case s.key == key:
				return s
			case s.full < least.full:
				least = s
			}
		}
		if least.full > now && len(l.slots) < maxSlots {
			l.grow(now)
			continue
		}
		*least = slot{key: key}
		return least
	}
}

// grow doubles the slots. Full buckets are not worth one.
func (l *limiter) grow(now int64) {
	old := l.slots
	l.slots = make([]slot, 2*len(old))
	for _, s := range old {
		if s.full <= now {
			continue
		}
		set := l.set(s.key)
		for i := range set {
			if set[i].key == 0 {
				set[i] = s
				break
			}
		}
	}
}
