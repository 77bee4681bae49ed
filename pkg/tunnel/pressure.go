package tunnel

import (
	"cmp"
	"container/heap"
	"net/netip"
	"slices"
	"time"
)

// An Owner is who a stream's memory is put down to. Any field may be empty.
type Owner struct {
	Service string
	Visitor netip.Addr
}

// account is what the streams of an owner have together.
type account struct {
	owner   Owner
	streams int
	grown   int // window beyond Config.Window
}

const (
	// maxPatience is how long a stream may hold memory and move nothing when little more than
	// half of the budget is in use. It falls to nothing as the rest of it goes.
	maxPatience = time.Minute

	// reliefInterval is how often the streams are looked through while it is.
	reliefInterval = 250 * time.Millisecond
)

// Charge puts st's memory down to o from now on. When the memory of a session gets short, what
// has not moved for long is ended: first of the owner who holds most. A stream that has never
// had an owner is not ended for that.
func (st *Stream) Charge(o Owner) {
	s := st.s
	if s == nil || st.account != nil && st.account.owner == o {
		return
	}
	s.uncharge(st)
	a := s.accounts[o]
	if a == nil {
		a = &account{owner: o}
		s.accounts[o] = a
	}
	a.streams++
	a.grown += int(st.window) - s.cfg.Window
	st.account = a
}

func (s *Session) uncharge(st *Stream) {
	a := st.account
	if a == nil {
		return
	}
	st.account = nil
	a.grown -= int(st.window) - s.cfg.Window
	if a.streams--; a.streams == 0 {
		delete(s.accounts, a.owner)
	}
}

// mayGrow reports whether st's window may grow by more: all grown windows take half of the
// budget at most, and an owner's no more than they leave of it.
func (s *Session) mayGrow(st *Stream, more int) bool {
	left := s.cfg.Budget/2 - s.grown - more
	return left >= 0 && (st.account == nil || st.account.grown+more <= left)
}

// moved notes that whoever st's memory waits for has taken something, or that there was none.
func (st *Stream) moved() { st.movedAt = st.s.ms() }

// blocked reports whether the peer's window is what st waits for.
func (st *Stream) blocked() bool { return st.next >= st.limit && st.next < st.end }

// patience is how long a stream may hold memory and move nothing.
func (s *Session) patience() time.Duration {
	half := float64(s.cfg.Budget) / 2
	free := max(0, float64(s.cfg.Budget-s.pool.used)) / half
	return time.Duration(float64(maxPatience) * free * free)
}

// short reports whether the streams are to be looked through for such as hold memory for too long.
func (s *Session) short() bool {
	return s.pool.used > s.cfg.Budget/2 && s.now >= s.relieveAt
}

// A victim is a stream that holds memory.
type victim struct {
	st   *Stream
	idle time.Duration
	held int
}

// holder is an owner and its victims, the longest idle one last.
type holder struct {
	account *account
	held    int
	victims []victim
}

// holders is a heap with the one that holds most on top.
type holders []*holder

func (h holders) Len() int { return len(h) }
func (h holders) Less(i, j int) bool {
	if h[i].held != h[j].held {
		return h[i].held > h[j].held
	}
	a, b := h[i].account.owner, h[j].account.owner
	return a.Service < b.Service || a.Service == b.Service && a.Visitor.Less(b.Visitor)
}
func (h holders) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *holders) Push(x any)   { *h = append(*h, x.(*holder)) }
func (h *holders) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}

// memory is about what n bytes of a queue take.
func memory(n int) int {
	if n == 0 {
		return 0
	}
	if n <= smallChunk {
		return smallChunk
	}
	return (n + largeChunk - 1) &^ (largeChunk - 1)
}

// relieveNow makes room where there is none, at the cost of those who hold most.
func (s *Session) relieveNow() {
	if s.now < s.hopeless {
		return
	}
	s.relieve(s.cfg.Budget / 8)
	if s.pool.used > s.cfg.Budget-s.cfg.Budget/8 {
		s.hopeless = s.now + reliefInterval
	}
}

// relieve ends streams that hold memory and have moved nothing for longer than patience, the
// longest first, of the owner who holds most, until less memory gives the others more patience.
// Who holds less than a fair share of half of the budget is let be.
// With least set it goes on, whatever has moved, until that much of the budget is free.
func (s *Session) relieve(least int) {
	s.relieveAt = s.now + reliefInterval
	by := make(map[*account]*holder)
	for _, st := range s.streams {
		if st.account == nil {
			continue
		}
		held := memory(int(st.kept)) + memory(int(st.end-st.acked))
		if held == 0 {
			continue
		}
		h := by[st.account]
		if h == nil {
			h = &holder{account: st.account}
			by[st.account] = h
		}
		h.held += held
		idle := time.Duration(s.ms()-st.movedAt) * time.Millisecond
		switch {
		case st.kept > 0:
		case !st.blocked() || s.control == nil: // it waits for the link
			continue
		default:
			idle = min(idle, s.now-s.control.since)
		}
		h.victims = append(h.victims, victim{st, idle, held})
	}
	all := make(holders, 0, len(by))
	for _, h := range by {
		if len(h.victims) > 0 {
			slices.SortFunc(h.victims, func(a, b victim) int {
				return cmp.Or(cmp.Compare(a.idle, b.idle), cmp.Compare(b.st.id, a.st.id))
			})
			all = append(all, h)
		}
	}
	heap.Init(&all)
	share := s.cfg.Budget / 2 / max(1, len(all))
	for len(all) > 0 {
		h := all[0]
		v := h.victims[len(h.victims)-1]
		switch {
		case s.pool.used > s.cfg.Budget-least:
		case s.pool.used <= s.cfg.Budget/2, h.held < share:
			return
		case v.idle < s.patience(): // nor have the others of this owner
			heap.Pop(&all)
			continue
		}
		s.stats.Stalled++
		v.st.Reset(CodeMemory)
		h.held -= v.held
		h.victims = h.victims[:len(h.victims)-1]
		if len(h.victims) == 0 {
			heap.Pop(&all)
		} else {
			heap.Fix(&all, 0)
		}
	}
}
