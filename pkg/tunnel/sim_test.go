package tunnel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

var (
	simSeed      = flag.Uint64("sim.seed", 0, "run this one schedule of TestSimulation")
	simSchedules = flag.Int("sim.n", 0, "how many schedules TestSimulation runs; 0: 2000, or 200 with -short or -race")
	simTrace     = flag.Bool("sim.trace", false, "print what happens")
)

// TestSimulation runs two sessions through random schedules: fragments, delays, a
// link that takes no more, cuts in the middle of frames, links attached on one side
// long before the other, pauses, half-closes, partial use of input and resets.
// Whatever happens, no byte is lost, doubled or changed, each stream ends exactly
// once on each side, and nothing is left behind.
func TestSimulation(t *testing.T) {
	if *simSeed != 0 {
		runSim(t, *simSeed)
		return
	}
	n := 2000
	if *simSchedules > 0 {
		n = *simSchedules
	} else if testing.Short() || raceEnabled {
		n = 200
	}
	for seed := uint64(1); seed <= uint64(n); seed++ {
		if !runSim(t, seed) {
			t.Fatalf("replay with: go test -run TestSimulation -sim.seed=%d -sim.trace", seed)
		}
	}
}

func runSim(t *testing.T, seed uint64) (ok bool) {
	s := newSim(t, seed)
	defer func() {
		if r := recover(); r != nil {
			if f, isFail := r.(simFailure); isFail {
				t.Errorf("seed %d: %s", seed, string(f))
				ok = false
				return
			}
			t.Errorf("seed %d panics", seed)
			panic(r)
		}
	}()
	s.run()
	return true
}

type simFailure string

type sim struct {
	t     *testing.T
	rng   *rand.Rand
	now   time.Time
	sides [2]*simSide
	wires []*simWire // old ones may still deliver
	apps  map[uint64]*[2]*simApp
	key   uint64
	calm  bool // no more faults

	cuts, resets int
}

func newSim(t *testing.T, seed uint64) *sim {
	s := &sim{
		t:    t,
		rng:  rand.New(rand.NewPCG(seed, 0xc01)),
		now:  time.Unix(1e9, 0),
		apps: make(map[uint64]*[2]*simApp),
	}
	cfg := Config{ResumeTimeout: time.Hour, MaxWindow: 1 << 18}
	if s.rng.IntN(4) == 0 {
		cfg.Window = 128 << 10
	}
	if s.rng.IntN(4) == 0 {
		cfg.Budget = 1 << 20 // sending waits for acknowledgements
	}
	for i := range s.sides {
		side := &simSide{sim: s, i: i}
		c := cfg
		c.Client = i == 0
		c.Accept = side.accept
		c.Wake = func() {
			if side.woken {
				s.failf("side %d is woken twice", i)
			}
			side.woken = true
		}
		c.OnClose = func(err error) {
			if !s.calm || err != nil || !side.goaway {
				s.failf("session %d closed: %v", i, err)
			}
			side.over = true
		}
		side.s = New(c, s.now)
		s.sides[i] = side
	}
	return s
}

func (s *sim) failf(format string, args ...any) { panic(simFailure(fmt.Sprintf(format, args...))) }

func (s *sim) trace(format string, args ...any) {
	if *simTrace {
		s.t.Logf("%8v "+format, append([]any{s.now.Sub(time.Unix(1e9, 0))}, args...)...)
	}
}

func (s *sim) run() {
	steps := 100 + s.rng.IntN(400)
	maxStreams := 1 + s.rng.IntN(12)
	cutRate := s.rng.IntN(12)
	for i := 0; i < steps; i++ {
		if len(s.apps) < maxStreams && s.rng.IntN(8) == 0 {
			s.sides[s.rng.IntN(2)].open()
		}
		s.step(cutRate)
		if i%8 == 0 {
			audit(s.t, s.sides[0].s)
			audit(s.t, s.sides[1].s)
		}
	}
	s.settle()
	s.check()
}

// step makes one random thing happen.
func (s *sim) step(cutRate int) {
	r := s.rng
	side := s.sides[r.IntN(2)]
	switch k := r.IntN(100); {
	case k < 1:
		s.advance(time.Duration(r.IntN(12000)) * time.Millisecond) // pings, and links given up
	case k < 10:
		s.advance(time.Duration(r.IntN(30)) * time.Millisecond)
	case k < 40:
		if len(s.wires) > 0 {
			w := s.wires[max(0, len(s.wires)-1-r.IntN(2))]
			w.deliver(r.IntN(2), s.fragment())
		}
	case k < 60:
		if side.woken || r.IntN(4) == 0 {
			side.flush()
		}
	case k < 88:
		side.act()
	case k < 88+cutRate:
		s.cut()
	default:
		s.attach(side)
	}
}

func (s *sim) fragment() int {
	switch s.rng.IntN(4) {
	case 0:
		return 1 + s.rng.IntN(20)
	case 1:
		return 1 + s.rng.IntN(3000)
	}
	return 1 + s.rng.IntN(100000)
}

func (s *sim) advance(d time.Duration) {
	s.now = s.now.Add(d)
	for _, side := range s.sides {
		if next := side.s.Next(); !next.IsZero() && !next.After(s.now) {
			next = side.s.Advance(s.now)
			if !next.IsZero() && !next.After(s.now) {
				s.failf("side %d: Advance at %v returns %v", side.i, s.now, next)
			}
		}
	}
}

// wire returns the newest pair of links, if its two ends may still be attached.
func (s *sim) wire() *simWire {
	if n := len(s.wires); n > 0 && !s.wires[n-1].cut {
		return s.wires[n-1]
	}
	return nil
}

func (s *sim) cut() {
	w := s.wire()
	if w == nil || s.calm {
		return
	}
	s.cuts++
	w.cut = true
	for i := range w.ends {
		// A prefix of what is in flight still arrives, some time.
		e := w.ends[i]
		e.queue = e.queue[:s.rng.IntN(len(e.queue)+1)]
	}
	s.trace("cut")
}

// attach makes a new wire if the last is cut, or else attaches side to it, or tells
// side that an old one is lost.
func (s *sim) attach(side *simSide) {
	w := s.wire()
	if w == nil {
		if s.rng.IntN(2) == 0 && len(s.wires) > 0 {
			old := s.wires[len(s.wires)-1].ends[side.i]
			s.trace("side %d hears of the loss", side.i)
			side.s.Lost(old, errors.New("cut"), s.now)
			return
		}
		w = &simWire{sim: s, room: 1 << (12 + s.rng.IntN(7))}
		for i := range w.ends {
			w.ends[i] = &simLink{wire: w, i: i}
		}
		s.wires = append(s.wires, w)
	}
	if e := w.ends[side.i]; !e.attached {
		e.attached = true
		s.trace("side %d attaches link %d", side.i, len(s.wires))
		side.s.Attach(e, RoleInteractive, s.now)
	}
}

// settle lets everything come to its end on a link that stays.
func (s *sim) settle() {
	s.calm = true
	for i := 0; i < 20000; i++ {
		for _, side := range s.sides {
			w := s.wire()
			if w == nil || !w.ends[side.i].attached {
				s.attach(side)
			}
			for _, a := range side.apps {
				a.finish()
			}
			if side.woken { // Wake tells of all there is to do
				side.flush()
			}
			if w := s.wire(); w != nil {
				w.deliver(side.i, s.fragment())
			}
		}
		s.advance(5 * time.Millisecond)
		if s.quiet() {
			return
		}
	}
	for _, side := range s.sides {
		for id, st := range side.s.streams {
			s.t.Logf("side %d: stream %d flags %b acked %d next %d end %d limit %d recvd %d consumed %d kept %d",
				side.i, id, st.flags, st.acked, st.next, st.end, st.limit, st.recvd, st.consumed, st.kept)
		}
		s.t.Logf("side %d: ready %v tombs %v", side.i, side.s.ready(), side.s.tombs)
	}
	s.failf("streams do not end")
}

func (s *sim) quiet() bool {
	for _, side := range s.sides {
		if len(side.s.streams) > 0 || len(side.s.tombs) > 0 || !side.s.ready() || side.woken {
			return false
		}
	}
	return true
}

func (s *sim) check() {
	for key, pair := range s.apps {
		for i, a := range pair {
			if a == nil {
				if o := pair[1-i]; o.closes != 1 || o.err == nil {
					s.failf("stream %d never reached side %d, and ended there with %d, %v", key, i, o.closes, o.err)
				}
				continue
			}
			if a.closes != 1 {
				s.failf("stream %d side %d: OnClose called %d times", key, i, a.closes)
			}
			other := pair[1-i]
			if a.err == nil {
				if a.discard {
					continue
				}
				if a.got+a.shown != other.total || a.eofs < 1 || a.eofs > 1+a.sets { // unused bytes do not delay OnEOF
					s.failf("stream %d side %d ended well with %d of %d bytes, %d EOF", key, i, a.got, other.total, a.eofs)
				}
				continue
			}
			var e *StreamError
			if !errors.As(a.err, &e) {
				s.failf("stream %d side %d: %v", key, i, a.err)
			}
			switch {
			case !e.Remote && a.reset == 0:
				s.failf("stream %d side %d was lost: %v", key, i, a.err)
			case e.Remote && (other == nil || other.reset == 0 || e.Code != other.reset):
				s.failf("stream %d side %d: %v, but no such reset", key, i, a.err)
			}
		}
	}
	for _, side := range s.sides {
		ss := side.s
		if ss.pool.used != 0 || ss.unacked != 0 || ss.grown != 0 {
			s.failf("side %d leaves %d bytes, %d unacked, %d grown", side.i, ss.pool.used, ss.unacked, ss.grown)
		}
	}
	s.sides[s.rng.IntN(2)].s.GoAway()
	for _, side := range s.sides {
		side.goaway = true
	}
	for range 100 {
		for _, side := range s.sides {
			if side.woken {
				side.flush()
			}
			s.wires[len(s.wires)-1].deliver(side.i, 1<<20)
		}
		s.advance(5 * time.Millisecond)
	}
	if !s.sides[0].over || !s.sides[1].over {
		s.failf("GoAway does not end the sessions: %v %v", s.sides[0].over, s.sides[1].over)
	}
}

// A simWire is a pair of links.
type simWire struct {
	sim  *sim
	ends [2]*simLink
	room int
	cut  bool
}

type simLink struct {
	wire     *simWire
	i        int
	attached bool
	queue    []byte // in flight from this end
}

func (l *simLink) Room() int { return l.wire.room - len(l.queue) }
func (l *simLink) Close(err error) {
	l.wire.sim.trace("side %d closes its link: %v", l.i, err)
	if l.wire.sim.calm && !errors.Is(err, ErrSuperseded) && !errors.Is(err, ErrLinkTimeout) && err != nil {
		l.wire.sim.failf("link closed: %v", err)
	}
	if errors.Is(err, ErrLinkTimeout) {
		l.wire.cut = true
	}
}

func (l *simLink) Send(b []byte) {
	if !l.wire.cut {
		l.queue = append(l.queue, b[Headroom:]...)
	}
	clear(b)
}

// deliver moves up to n bytes from end i to the other one.
func (w *simWire) deliver(i, n int) {
	from, to := w.ends[i], w.ends[1-i]
	if !to.attached || len(from.queue) == 0 {
		return
	}
	n = min(n, len(from.queue))
	b := append([]byte(nil), from.queue[:n]...)
	full := from.Room() <= 0
	from.queue = from.queue[n:]
	s := w.sim
	s.trace("%d bytes to side %d", n, to.i)
	if err := s.sides[to.i].s.Receive(to, b, s.now); err != nil {
		s.failf("side %d: %v", to.i, err)
	}
	clear(b) // the loan is over
	if full && from.Room() > 0 {
		side := s.sides[from.i]
		if side.s.link == from {
			side.woken = false // Drained is a Flush
		}
		side.s.Drained(from, s.now)
	}
}

type simSide struct {
	sim    *sim
	i      int
	s      *Session
	woken  bool
	goaway bool
	over   bool
	apps   []*simApp
}

func (side *simSide) flush() {
	side.woken = false
	side.s.Flush(side.sim.now)
}

func (side *simSide) open() {
	s := side.sim
	s.key++
	a := &simApp{side: side, key: s.key, total: s.size()}
	var header [16]byte
	binary.BigEndian.PutUint64(header[:], a.key)
	st, err := side.s.Open(header[:])
	if err != nil {
		s.failf("open: %v", err)
	}
	s.trace("side %d opens %d (key %d)", side.i, st.ID(), a.key)
	a.st = st
	st.SetHandler(a)
	side.apps = append(side.apps, a)
	s.apps[a.key] = new([2]*simApp)
	s.apps[a.key][side.i] = a
}

func (side *simSide) accept(st *Stream, header []byte) {
	s := side.sim
	key := binary.BigEndian.Uint64(header)
	pair := s.apps[key]
	if pair == nil || pair[side.i] != nil {
		s.failf("stream %d accepted twice", key)
	}
	a := &simApp{side: side, key: key, total: s.size(), st: st}
	pair[side.i] = a
	side.apps = append(side.apps, a)
	st.SetHandler(a)
	if s.rng.IntN(20) == 0 {
		a.doReset(CodeNotFound)
	}
}

func (s *sim) size() int {
	switch s.rng.IntN(4) {
	case 0:
		return 0
	case 1:
		return s.rng.IntN(200)
	case 2:
		return s.rng.IntN(20000)
	}
	return s.rng.IntN(500000)
}

func (side *simSide) act() {
	if len(side.apps) > 0 {
		side.apps[side.sim.rng.IntN(len(side.apps))].act()
	}
}

// A simApp is one side of one stream.
type simApp struct {
	side    *simSide
	st      *Stream
	key     uint64
	total   int // to write
	written int
	got     int
	shown   int // bytes at got that were presented and not used
	eofs    int
	sets    int // calls of SetHandler: each may repeat the EOF
	closes  int
	paused  bool
	waits   bool // for OnDrain
	done    bool // CloseWrite was called
	discard bool // Close was called
	reset   Code
	err     error
}

// noise repeats after a prime number of bytes, twice, so that what is lost or doubled shows.
var noise = func() (b [2 * 65521]byte) {
	r := rand.New(rand.NewPCG(1, 2))
	for i := range b[:65521] {
		b[i] = byte(r.Uint32())
	}
	copy(b[65521:], b[:65521])
	return
}()

// content returns up to n bytes from off of a stream in the direction from side i.
func content(key uint64, i, off, n int) []byte {
	at := (off + int(key*2+uint64(i))*7919) % 65521
	return noise[at:min(at+n, len(noise))]
}

func (a *simApp) write(n int) {
	n = min(n, a.total-a.written)
	var b []byte
	for len(b) < n {
		b = append(b, content(a.key, a.side.i, a.written+len(b), n-len(b))...)
	}
	a.written += n
	a.st.Write(b)
	if a.st.Pending() > a.st.HighMark() {
		a.waits = true
	}
	clear(b)
}

func (a *simApp) act() {
	s := a.side.sim
	if a.closes > 0 || a.reset != 0 {
		return
	}
	switch k := s.rng.IntN(40); {
	case k < 24:
		if !a.done && !a.waits {
			a.write(1 + s.rng.IntN(70000))
		}
	case k < 28:
		a.paused = true
		a.st.Pause()
	case k < 34:
		a.paused = false
		a.st.Resume()
	case k < 37:
		if a.written == a.total {
			a.done = true
			a.st.CloseWrite()
		}
	case k == 37:
		if s.rng.IntN(4) == 0 {
			a.doReset(Code(1 + s.rng.IntN(8)))
		}
	case k == 38:
		if a.written == a.total && s.rng.IntN(2) == 0 {
			a.done, a.discard = true, true
			a.st.Close()
		}
	default:
		a.sets++
		a.st.SetHandler(a)
	}
}

// finish does what is left to do.
func (a *simApp) finish() {
	if a.closes > 0 || a.reset != 0 {
		return
	}
	a.paused = false
	a.st.Resume()
	if a.done {
		return
	}
	if a.written < a.total && !a.waits {
		a.write(30000)
	}
	if a.written == a.total {
		a.done = true
		a.st.CloseWrite()
	}
}

func (a *simApp) doReset(code Code) {
	a.side.sim.trace("side %d resets %d", a.side.i, a.st.ID())
	a.reset = code
	a.st.Reset(code)
	a.side.sim.resets++
}

func (a *simApp) live(what string) {
	s := a.side.sim
	if a.closes > 0 || a.reset != 0 || a.discard && what != "OnDrain" {
		s.failf("stream %d side %d: %s after the end", a.key, a.side.i, what)
	}
	if a.paused && what != "OnDrain" {
		s.failf("stream %d side %d: %s while paused", a.key, a.side.i, what)
	}
}

func (a *simApp) OnData(b []byte) int {
	s := a.side.sim
	a.live("OnData")
	if a.eofs > 0 && len(b) > a.shown {
		s.failf("stream %d side %d: data after EOF", a.key, a.side.i)
	}
	if len(b) < a.shown {
		s.failf("stream %d side %d: %d bytes presented, had %d", a.key, a.side.i, len(b), a.shown)
	}
	for n := 0; n < len(b); {
		want := content(a.key, 1-a.side.i, a.got+n, len(b)-n)
		if !bytes.Equal(b[n:n+len(want)], want) {
			s.failf("stream %d side %d: wrong bytes behind %d", a.key, a.side.i, a.got+n)
		}
		n += len(want)
	}
	used := len(b)
	switch s.rng.IntN(12) {
	case 0:
		a.act() // anything may happen inside a callback
	case 1:
		a.side.act()
	case 2:
		if len(b) < 40000 && !s.calm {
			used = s.rng.IntN(len(b) + 1)
		}
	case 3:
		if !s.calm {
			a.paused = true
			a.st.Pause()
			used = s.rng.IntN(len(b) + 1)
		}
	}
	if a.closes > 0 {
		s.failf("stream %d side %d: OnClose inside OnData", a.key, a.side.i)
	}
	a.got += used
	a.shown = len(b) - used
	return used
}

func (a *simApp) OnEOF() {
	a.live("OnEOF")
	a.eofs++
	if a.side.sim.rng.IntN(2) == 0 {
		a.act()
	}
}

func (a *simApp) OnDrain() {
	a.live("OnDrain")
	a.waits = false
	if a.side.sim.rng.IntN(2) == 0 && !a.done {
		a.write(100000)
	}
}

func (a *simApp) OnClose(err error) {
	a.closes++
	a.err = err
	a.side.sim.trace("side %d: %d (key %d) closes: %v", a.side.i, a.st.ID(), a.key, err)
	a.side.act()
}
