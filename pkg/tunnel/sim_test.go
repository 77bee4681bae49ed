package tunnel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"
)

var (
	simSeed      = flag.Uint64("sim.seed", 0, "run this one schedule of TestSimulation")
	simSchedules = flag.Int("sim.n", 0, "how many schedules TestSimulation runs; 0: 2000, or 200 with -short or -race")
	simTrace     = flag.Bool("sim.trace", false, "print what happens")
)

// TestSimulation runs two sessions through random schedules: one to four links at once,
// with roles that change, some with lanes and datagrams; each channel delivers in its own
// time, in fragments, or takes no more; links are cut in the middle of frames, swallow
// everything in one direction or both, are lost on one side long before the other, and
// deliver late; and streams pause, half-close, use input partially and reset.
// Whatever happens, no byte is lost, doubled or changed, each stream ends exactly once on
// each side, datagrams come whole and once or not at all, and nothing is left behind.
func TestSimulation(t *testing.T) {
	if *simSeed != 0 {
		runSim(t, *simSeed, new(simCount))
		return
	}
	n := 2000
	if *simSchedules > 0 {
		n = *simSchedules
	} else if testing.Short() || raceEnabled {
		n = 200
	}
	var count simCount
	for seed := uint64(1); seed <= uint64(n); seed++ {
		if !runSim(t, seed, &count) {
			t.Fatalf("replay with: go test -run TestSimulation -sim.seed=%d -sim.trace", seed)
		}
	}
	t.Logf("%+v", count)
	for v, i := reflect.ValueOf(count), 0; i < v.NumField(); i++ {
		if v.Field(i).IsZero() {
			t.Errorf("no %s in %d schedules", v.Type().Field(i).Name, n)
		}
	}
}

// simCount is how often what the simulation is for has happened.
type simCount struct {
	Cuts, Blackholes, Suspects, Timeouts, Superseded, Drained, Lanes, Datagrams, Resets, Losses int
}

func runSim(t *testing.T, seed uint64, count *simCount) (ok bool) {
	s := newSim(t, seed, count)
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
	wires []*simWire // dead ones may still deliver
	apps  map[uint64]*[2]*simApp
	key   uint64
	calm  bool // no more faults
	doom  bool // there will be no more links
	most  int  // live wires
	lanes bool // some have lanes
	count *simCount
}

func newSim(t *testing.T, seed uint64, count *simCount) *sim {
	s := &sim{
		t:     t,
		rng:   rand.New(rand.NewPCG(seed, 0xc01)),
		now:   time.Unix(1e9, 0),
		apps:  make(map[uint64]*[2]*simApp),
		count: count,
	}
	s.most = 1 + s.rng.IntN(4)
	s.lanes = s.rng.IntN(2) == 0
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
		c.OnSuspect = func(l Link) {
			s.trace("side %d suspects link %d", i, l.(simEnd).end().wire.n)
			s.count.Suspects++
		}
		c.OnClose = func(err error) {
			if !side.goaway && !(s.doom && errors.Is(err, ErrResumeTimeout)) || side.goaway && err != nil {
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
	faults := s.rng.IntN(12)
	for i := 0; i < steps; i++ {
		if len(s.apps) < maxStreams && s.rng.IntN(8) == 0 {
			s.sides[s.rng.IntN(2)].open()
		}
		s.step(faults)
		if i%8 == 0 {
			s.audit()
		}
	}
	if s.rng.IntN(16) == 0 {
		s.lose()
		return
	}
	s.settle()
	s.check()
}

func (s *sim) audit() {
	for _, side := range s.sides {
		audit(s.t, side.s)
	}
}

// step makes one random thing happen.
func (s *sim) step(faults int) {
	r := s.rng
	side := s.sides[r.IntN(2)]
	switch k := r.IntN(100); {
	case k < 1:
		s.advance(time.Duration(r.IntN(12000)) * time.Millisecond) // pings, and links given up
	case k < 3:
		s.advance(time.Duration(r.IntN(1000)) * time.Millisecond)
	case k < 10:
		s.advance(time.Duration(r.IntN(30)) * time.Millisecond)
	case k < 42:
		if n := len(s.wires); n > 0 {
			s.wires[max(0, n-1-r.IntN(s.most+2))].deliver(r.IntN(2), s.fragment())
		}
	case k < 60:
		if side.woken || r.IntN(4) == 0 {
			side.flush()
		}
	case k < 87:
		side.act()
	case k < 88:
		side.setRole()
	case k < 88+faults:
		s.fault()
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

// live returns the wires that may still be of use.
func (s *sim) live() (live []*simWire) {
	for _, w := range s.wires {
		if !w.cut && !w.hole[0] && !w.hole[1] {
			live = append(live, w)
		}
	}
	return live
}

// fault breaks a wire: at once, or so that nobody notices.
func (s *sim) fault() {
	live := s.live()
	if len(live) == 0 {
		return
	}
	if len(s.apps) > 0 && s.rng.IntN(4) == 0 { // what was just opened ends at once
		for _, a := range s.apps[s.key] {
			if a != nil && a.closes == 0 && a.reset == 0 && a.st.flags&flagConfirmed == 0 {
				a.doReset(CodeCancelled)
			}
		}
	}
	w := live[s.rng.IntN(len(live))]
	if s.rng.IntN(3) == 0 {
		s.count.Blackholes++
		both, i := s.rng.IntN(2) == 0, s.rng.IntN(2)
		w.hole[i], w.hole[1-i] = true, both
		s.trace("link %d swallows what side %d sends, both %v", w.n, i, both)
		return
	}
	s.count.Cuts++
	w.sever()
}

// attach makes a new wire if there are few, or attaches side to one, or tells side of a
// loss.
func (s *sim) attach(side *simSide) {
	live := s.live()
	for _, w := range live {
		if !w.ends[side.i].attached {
			w.ends[side.i].attach()
			return
		}
	}
	for _, w := range s.wires {
		if e := w.ends[side.i]; w.cut && e.attached && !e.told && s.rng.IntN(3) == 0 {
			e.told = true
			s.trace("side %d hears of the loss of link %d", side.i, w.n)
			side.s.Lost(e.link, errors.New("cut"), s.now)
			return
		}
	}
	if len(live) < s.most {
		s.newWire().ends[side.i].attach()
	}
}

// settle lets everything come to its end on links that stay.
func (s *sim) settle() {
	s.calm = true
	for i := 0; i < 20000; i++ {
		if len(s.live()) == 0 {
			s.newWire()
		}
		for _, side := range s.sides {
			s.attach(side)
			for _, a := range side.apps {
				a.finish()
			}
			if side.woken { // Wake tells of all there is to do
				side.flush()
			}
		}
		s.deliverAll()
		s.advance(5 * time.Millisecond)
		if s.quiet() {
			return
		}
	}
	for _, side := range s.sides {
		for id, st := range side.s.streams {
			s.t.Logf("side %d: stream %d flags %b acked %d next %d end %d limit %d recvd %d consumed %d kept %d path %+v",
				side.i, id, st.flags, st.acked, st.next, st.end, st.limit, st.recvd, st.consumed, st.kept, st.path)
		}
		s.t.Logf("side %d: tombs %v", side.i, side.s.tombs)
		for _, l := range side.s.Links() {
			s.t.Logf("side %d: %+v", side.i, l)
		}
	}
	s.failf("streams do not end")
}

func (s *sim) deliverAll() {
	for i := 0; i < len(s.wires); i++ {
		for j := range s.wires[i].ends {
			s.wires[i].deliver(j, s.fragment())
		}
	}
}

// lose cuts everything for longer than the streams wait.
func (s *sim) lose() {
	s.doom = true
	s.count.Losses++
	for _, w := range s.wires {
		if !w.cut {
			w.sever()
		}
		for i, e := range w.ends {
			if e.attached {
				s.sides[i].s.Lost(e.link, errors.New("cut"), s.now)
			}
		}
	}
	for range 4 {
		s.advance(time.Hour)
		for _, side := range s.sides {
			side.s.Flush(s.now)
		}
	}
	for key, pair := range s.apps {
		for i, a := range pair {
			if a == nil {
				continue
			}
			var e *StreamError
			if a.closes != 1 || a.err != nil && !errors.As(a.err, &e) {
				s.failf("stream %d side %d: %d closes, %v", key, i, a.closes, a.err)
			}
		}
	}
	for _, side := range s.sides {
		if !side.over || side.s.pool.used != 0 {
			s.failf("side %d is not over, or keeps memory", side.i)
		}
	}
}

func (s *sim) quiet() bool {
	for _, side := range s.sides {
		if len(side.s.streams) > 0 || len(side.s.tombs) > 0 || side.s.control == nil || side.woken {
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
	for i := range 5000 {
		if len(s.live()) == 0 {
			s.newWire()
		}
		for _, side := range s.sides {
			if !side.over {
				s.attach(side)
			}
			if side.woken {
				side.flush()
			}
		}
		s.deliverAll()
		s.advance(5 * time.Millisecond)
		for j, side := range s.sides {
			if i > 1000 && side.over {
				s.sides[1-j].s.Close(nil) // the end of a link tells
			}
		}
		if s.sides[0].over && s.sides[1].over {
			return
		}
	}
	s.failf("GoAway does not end the sessions: %v %v", s.sides[0].over, s.sides[1].over)
}

// A simWire is a pair of links.
type simWire struct {
	sim  *sim
	n    int
	ends [2]*simLink
	role Role
	room int
	cut  bool
	hole [2]bool // what the side sends is swallowed
}

func (s *sim) newWire() *simWire {
	w := &simWire{sim: s, n: len(s.wires) + 1, room: 1 << (12 + s.rng.IntN(7))}
	w.role = [...]Role{RoleInteractive, RoleInteractive, RoleBulk, RoleBulk, RoleDatagram}[s.rng.IntN(5)]
	lanes := s.lanes && s.rng.IntN(2) == 0
	for i := range w.ends {
		e := &simLink{wire: w, i: i}
		e.link = e
		if lanes {
			e.link = &simLaneLink{e}
		}
		w.ends[i] = e
	}
	s.wires = append(s.wires, w)
	s.trace("link %d: %v, lanes %v", w.n, w.role, lanes)
	return w
}

// sever cuts a wire. A prefix of what is in flight still arrives, some time.
func (w *simWire) sever() {
	w.cut = true
	for _, e := range w.ends {
		for _, q := range append(e.lanes, &e.own) {
			q.queue = q.queue[:w.sim.rng.IntN(len(q.queue)+1)]
		}
	}
	w.sim.trace("link %d is cut", w.n)
}

// A simLink is one end of a wire.
type simLink struct {
	wire     *simWire
	i        int
	link     Link // itself, or with lanes
	attached bool
	told     bool // of the loss
	own      simLane
	lanes    []*simLane
	dgrams   []simDatagram
}

type simEnd interface{ end() *simLink }

func (l *simLink) end() *simLink { return l }

type simDatagram struct {
	id uint32
	b  []byte
}

func (l *simLink) attach() {
	s := l.wire.sim
	l.attached = true
	s.trace("side %d attaches link %d", l.i, l.wire.n)
	s.sides[l.i].s.Attach(l.link, l.wire.role, s.now)
}

func (l *simLink) Room() int { return l.wire.room - len(l.own.queue) }

func (l *simLink) Send(b []byte) {
	l.own.send(l.wire, b)
}

func (l *simLink) Close(err error) {
	w := l.wire
	s := w.sim
	s.trace("side %d closes link %d: %v", l.i, w.n, err)
	switch {
	case errors.Is(err, ErrLinkTimeout):
		s.count.Timeouts++
	case errors.Is(err, ErrSuperseded):
		s.count.Superseded++
	case err == nil && !s.sides[l.i].goaway:
		s.count.Drained++
	case err != nil && !s.doom:
		s.failf("link closed: %v", err)
	}
	if w.cut {
		return
	}
	if err == nil { // all that was sent arrives
		w.cut = true
		return
	}
	w.sever()
}

// A simLane is a lane, or a link's own channel: bytes in flight.
type simLane struct {
	l      *simLink
	queue  []byte
	rx     *LaneReceiver // at the other end
	closed bool
}

func (q *simLane) send(w *simWire, b []byte) {
	if len(b) <= Headroom {
		w.sim.failf("an empty batch")
	}
	if !w.cut {
		q.queue = append(q.queue, b[Headroom:]...)
	}
	clear(b)
}

func (q *simLane) Room() int     { return q.l.wire.room/2 - len(q.queue) }
func (q *simLane) Send(b []byte) { q.send(q.l.wire, b) }
func (q *simLane) Close()        { q.closed = true }

// A simLaneLink is a link with lanes and datagrams.
type simLaneLink struct{ *simLink }

func (l *simLaneLink) Lanes() bool { return true }

func (l *simLaneLink) OpenLane() Lane {
	if l.wire.sim.rng.IntN(8) == 0 {
		return nil
	}
	l.wire.sim.count.Lanes++
	q := &simLane{l: l.simLink}
	l.lanes = append(l.lanes, q)
	return q
}

func (l *simLaneLink) SendDatagram(id uint32, b []byte) bool {
	if len(b) > 1200 {
		return false
	}
	if !l.wire.cut {
		l.dgrams = append(l.dgrams, simDatagram{id, bytes.Clone(b)})
	}
	return true
}

// deliver moves up to n bytes, or a datagram, from end i to the other one.
func (w *simWire) deliver(i, n int) {
	s := w.sim
	from, to := w.ends[i], w.ends[1-i]
	side := s.sides[to.i]
	if !to.attached || w.hole[i] || side.over {
		return
	}
	if k := len(from.dgrams); k > 0 && s.rng.IntN(3) == 0 {
		at := s.rng.IntN(k) // in any order, some never
		d := from.dgrams[at]
		from.dgrams[at] = from.dgrams[k-1]
		from.dgrams = from.dgrams[:k-1]
		if s.rng.IntN(8) > 0 {
			side.s.ReceiveDatagram(to.link, d.id, d.b, s.now)
			clear(d.b)
		}
		return
	}
	from.lanes = slices.DeleteFunc(from.lanes, func(q *simLane) bool { return q.closed && len(q.queue) == 0 })
	q := &from.own
	if k := s.rng.IntN(len(from.lanes) + 1); k > 0 {
		q = from.lanes[k-1]
	}
	if len(q.queue) == 0 {
		return
	}
	n = min(n, len(q.queue))
	b := append([]byte(nil), q.queue[:n]...)
	lane := q != &from.own
	full := lane && q.Room() <= 0 || !lane && from.Room() <= 0
	q.queue = q.queue[n:]
	s.trace("%d bytes to side %d on link %d, lane %v", n, to.i, w.n, lane)
	var err error
	if lane {
		if q.rx == nil {
			q.rx = side.s.NewLaneReceiver(to.link)
		}
		err = side.s.ReceiveLane(q.rx, b, s.now)
	} else {
		err = side.s.Receive(to.link, b, s.now)
	}
	if err != nil {
		s.failf("side %d: %v", to.i, err)
	}
	clear(b) // the loan is over
	back := s.sides[from.i]
	switch {
	case !full || !from.attached:
	case lane && q.Room() > 0:
		if back.s.full[q] != nil {
			back.woken = false // it is a Flush
		}
		back.s.LaneDrained(q, s.now)
	case !lane && from.Room() > 0:
		if back.s.carrier(from.link) != nil {
			back.woken = false
		}
		back.s.Drained(from.link, s.now)
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

// setRole changes what one of the links is for.
func (side *simSide) setRole() {
	if links := side.s.Links(); len(links) > 0 && !side.sim.calm {
		l := links[side.sim.rng.IntN(len(links))]
		role := Role(side.sim.rng.IntN(4))
		side.sim.trace("side %d makes link %d %v", side.i, l.Link.(simEnd).end().wire.n, role)
		side.s.SetRole(l.Link, role)
	}
}

func (side *simSide) open() {
	s := side.sim
	s.key++
	a := &simApp{side: side, key: s.key, total: s.size()}
	header := make([]byte, 8+s.rng.IntN(100))
	if s.rng.IntN(3) == 0 {
		header = make([]byte, MaxHeader)
	}
	binary.BigEndian.PutUint64(header, a.key)
	st, err := side.s.Open(header)
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

	dgrams int          // sent
	came   map[int]bool // datagrams of the other side
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
	switch k := s.rng.IntN(44); {
	case k >= 40:
		a.sendDatagram()
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

// sendDatagram sends one that tells what it is.
func (a *simApp) sendDatagram() {
	r := a.side.sim.rng
	size := 24 + r.IntN(200)
	if r.IntN(4) == 0 {
		size = 24 + r.IntN(MaxDatagram-24+1)
	}
	b := make([]byte, size)
	binary.BigEndian.PutUint64(b, a.key)
	binary.BigEndian.PutUint64(b[8:], uint64(a.dgrams))
	binary.BigEndian.PutUint64(b[16:], uint64(size)<<1|uint64(a.side.i))
	copy(b[24:], content(a.key, a.side.i, a.dgrams, size-24))
	a.dgrams++
	a.st.SendDatagram(b)
	clear(b)
}

func (a *simApp) OnDatagram(b []byte) {
	s := a.side.sim
	if a.closes > 0 || a.discard || a.reset != 0 {
		s.failf("stream %d side %d: a datagram after the end", a.key, a.side.i)
	}
	if len(b) < 24 || binary.BigEndian.Uint64(b) != a.key || binary.BigEndian.Uint64(b[16:]) != uint64(len(b))<<1|uint64(1-a.side.i) {
		s.failf("stream %d side %d: a datagram that is not its own", a.key, a.side.i)
	}
	n := int(binary.BigEndian.Uint64(b[8:]))
	if a.came[n] || !bytes.Equal(b[24:], content(a.key, 1-a.side.i, n, len(b)-24)) {
		s.failf("stream %d side %d: datagram %d twice, or changed", a.key, a.side.i, n)
	}
	if a.came == nil {
		a.came = make(map[int]bool)
	}
	a.came[n] = true
	s.count.Datagrams++
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
	a.side.sim.count.Resets++
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
