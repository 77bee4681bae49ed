package forward

import (
	"net/netip"
	"time"

	"culvert.dev/pkg/evloop"
)

// How long a flow may be silent before it is taken for over. Datagrams have no end,
// and a translator between networks must remember them for two minutes (RFC 4787,
// REQ-5); one that nobody has answered is most likely a scan, or a log.
const (
	FlowIdle       = 2 * time.Minute
	FlowUnanswered = 30 * time.Second
)

// A Flow is the datagrams of one visitor and one target, in a table of Flows. The
// zero value with an Owner is in none.
type Flow struct {
	// Owner is told that the flow is over: nobody has sent anything for too long, or
	// it had to make room. It is out of the table then.
	Owner interface{ Expire() }

	last     time.Time // when a datagram came
	answered bool
	of       *flowSource
	links    [2]struct{ before, after *Flow } // in the list of the table, and in that of its source
}

// Last is when the last datagram came.
func (f *Flow) Last() time.Time { return f.last }

// Flows is a table of flows: which have been silent for how long. The longest silent
// one makes room where there are too many, first one that was never answered, so that
// a flood of datagrams from invented addresses does not end what others are at. The
// zero value has no limits. It does no I/O and knows no time; it belongs to one loop.
type Flows struct {
	Limit     int // flows; 0: any number
	PerSource int // flows of one source; 0: any number

	lists   [2]flowList // unanswered and answered
	sources map[netip.Addr]*flowSource
	idle    time.Duration // instead of FlowUnanswered and FlowIdle, if not 0
}

type flowSource struct {
	addr  netip.Addr
	flows flowList
}

// Len is the number of flows.
func (t *Flows) Len() int { return t.lists[0].n + t.lists[1].n }

// Add enters f, a flow of a source whose first datagram has come now.
func (t *Flows) Add(f *Flow, source netip.Addr, now time.Time) {
	s := t.sources[source]
	if s != nil && t.PerSource > 0 && s.flows.n >= t.PerSource {
		t.expire(s.flows.first)
	}
	if t.Limit > 0 && t.Len() >= t.Limit {
		f := t.lists[0].first
		if f == nil {
			f = t.lists[1].first
		}
		t.expire(f)
	}
	if s = t.sources[source]; s == nil { // it may have gone with its last flow
		s = &flowSource{addr: source}
		if t.sources == nil {
			t.sources = make(map[netip.Addr]*flowSource)
		}
		t.sources[source] = s
	}
	f.last, f.answered, f.of = now, false, s
	t.lists[0].push(f, 0)
	s.flows.push(f, 1)
}

// Touch notes a datagram of f, from the target if answer is set. Out of the table it does
// nothing: a flow that has just expired may still get some.
func (t *Flows) Touch(f *Flow, answer bool, now time.Time) {
	if f.of == nil {
		return
	}
	t.list(f).remove(f, 0)
	f.of.flows.remove(f, 1)
	f.last = now
	f.answered = f.answered || answer
	t.list(f).push(f, 0)
	f.of.flows.push(f, 1)
}

// Remove takes f out, without a word to its owner. Out of the table it does nothing.
func (t *Flows) Remove(f *Flow) {
	if f.of == nil {
		return
	}
	t.list(f).remove(f, 0)
	f.of.flows.remove(f, 1)
	if f.of.flows.n == 0 {
		delete(t.sources, f.of.addr)
	}
	f.of = nil
}

// Expire ends the flows that have been silent for too long, and returns when to look
// again: the zero time if there is no flow.
func (t *Flows) Expire(now time.Time) (next time.Time) {
	for i := range t.lists {
		l, idle := &t.lists[i], [...]time.Duration{FlowUnanswered, FlowIdle}[i]
		if t.idle != 0 {
			idle = t.idle
		}
		for l.first != nil && now.Sub(l.first.last) >= idle {
			t.expire(l.first)
		}
		if l.first != nil {
			if at := l.first.last.Add(idle); next.IsZero() || at.Before(next) {
				next = at
			}
		}
	}
	return next
}

// End ends all flows.
func (t *Flows) End() {
	for i := range t.lists {
		for t.lists[i].first != nil {
			t.expire(t.lists[i].first)
		}
	}
}

// Hurry shortens how long flows may be silent from now on. Call Expire after it.
func (t *Flows) Hurry(idle time.Duration) { t.idle = idle }

func (t *Flows) expire(f *Flow) {
	t.Remove(f)
	f.Owner.Expire()
}

func (t *Flows) list(f *Flow) *flowList {
	if f.answered {
		return &t.lists[1]
	}
	return &t.lists[0]
}

// flowList is a list of flows, the longest silent one first.
type flowList struct {
	first, last *Flow
	n           int
}

func (l *flowList) push(f *Flow, i int) {
	f.links[i].before, f.links[i].after = l.last, nil
	if l.last != nil {
		l.last.links[i].after = f
	} else {
		l.first = f
	}
	l.last = f
	l.n++
}

func (l *flowList) remove(f *Flow, i int) {
	k := &f.links[i]
	if k.before != nil {
		k.before.links[i].after = k.after
	} else {
		l.first = k.after
	}
	if k.after != nil {
		k.after.links[i].before = k.before
	} else {
		l.last = k.before
	}
	k.before, k.after = nil, nil
	l.n--
}

// flowCheck is the least time between two looks at which flows are over.
const flowCheck = time.Second

// LoopFlows is a table of flows that a timer of its loop looks after. Loop is set
// before the first Add.
type LoopFlows struct {
	Flows
	Loop *evloop.Loop

	timer evloop.Timer
	armed bool
}

// Add enters f, a flow of a source whose first datagram has come now.
func (t *LoopFlows) Add(f *Flow, source netip.Addr) {
	t.Flows.Add(f, source, t.Loop.Now())
	if !t.armed {
		t.arm(FlowUnanswered)
	}
}

// Hurry shortens how long flows may be silent from now on, and ends those that have
// been for longer.
func (t *LoopFlows) Hurry(idle time.Duration) {
	t.Flows.Hurry(idle)
	t.expire()
}

// End ends all flows.
func (t *LoopFlows) End() {
	t.Flows.End()
	t.timer.Stop()
}

func (t *LoopFlows) arm(d time.Duration) {
	t.armed = true
	t.Loop.Arm(&t.timer, max(d, flowCheck), t.expire)
}

func (t *LoopFlows) expire() {
	t.armed = false
	now := t.Loop.Now()
	if next := t.Expire(now); !next.IsZero() {
		t.arm(next.Sub(now))
	}
}
