package tftp

import (
	"container/heap"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"
)

var (
	simSeed  = flag.Uint64("sim.seed", 0, "run this one transfer of TestSimulation")
	simN     = flag.Int("sim.n", 0, "how many transfers TestSimulation runs; 0: 3000, or 600 with -short or -race")
	simTrace = flag.Bool("sim.trace", false, "print what happens")
)

// TestSimulation runs transfers over networks that lose, double, delay and reorder, up to 30 % of each: of both directions,
// between two machines of ours or one and a plain peer of RFC 1350, with sources that stall, sinks that hold, stores that
// fail, and paths that are cut. Whatever happens, a file arrives whole or its receiver knows that it has not; its sender does not think
// that it has arrived unless it has; both sides come to an end; and what is sent is bounded by what was lost.
func TestSimulation(t *testing.T) {
	if *simSeed != 0 {
		new(sim).random(t, *simSeed, new(simCount)).run()
		return
	}
	n := 3000
	if *simN > 0 {
		n = *simN
	} else if testing.Short() || raceEnabled {
		n = 600
	}
	var count simCount
	for seed := uint64(1); seed <= uint64(n); seed++ {
		new(sim).random(t, seed, &count).run()
		if t.Failed() {
			t.Fatalf("replay with: go test -run TestSimulation -sim.seed=%d -sim.trace", seed)
		}
	}
	t.Logf("%+v", count)
	for v, i := reflect.ValueOf(count), 0; i < v.NumField(); i++ {
		if v.Field(i).IsZero() {
			t.Errorf("no %s in %d transfers", v.Type().Field(i).Name, n)
		}
	}
}

// TestRollOver moves files of more than 65536 blocks, so that numbers begin anew at 0 or at 1, twice where windows make it quick.
func TestRollOver(t *testing.T) {
	for i, o := range []Options{
		{Block: 8},
		{Block: 8, HasRollover: true},
		{Block: 8, HasRollover: true, Rollover: 1},
		{Block: 8, Window: 64},
		{Block: 8, Window: 64, HasRollover: true},
		{Block: 8, Window: 64, HasRollover: true, Rollover: 1},
		{Block: 8, Window: 32767, HasRollover: true, Rollover: 1},
		{}, // with a plain peer
	} {
		t.Run(fmt.Sprintf("%+v", o), func(t *testing.T) {
			if raceEnabled && i != 2 && i != 3 {
				t.Skip("takes long with the race detector, and nothing here is shared")
			}
			s := new(sim)
			s.init(t, uint64(2*i+1), new(simCount))
			s.loss, s.dup, s.reorder = 0.001, 0.01, 0.01
			s.delay, s.late = 500*time.Microsecond, time.Millisecond
			s.req.Options = o
			blocks := int64(66_000)
			if o.Window > 1 {
				blocks = 140_000
			}
			if i%2 == 1 {
				s.req.Op = OpWrite
			}
			s.client.isPl = o == Options{}
			s.size = blocks * int64(o.blockSize())
			s.run()
			if s.sender.err != nil || s.receiver.err != nil || s.sunk != s.size {
				t.Errorf("%d of %d bytes: %v, %v", s.sunk, s.size, s.sender.err, s.receiver.err)
			}
		})
	}
}

// TestWire numbers blocks and finds them again, around the places where numbers begin anew.
func TestWire(t *testing.T) {
	for _, roll := range []uint16{0, 1} {
		tr := &Transfer{opts: Options{Rollover: roll, HasRollover: true}}
		for _, around := range []int64{0, 65535, 2 * 65535, 3 * 65536, 1 << 40} {
			for n := max(around-80, 0); n < around+80; n++ {
				for d := range int64(100) {
					if got := tr.after(n, tr.wire(n+d)); got != d {
						t.Fatalf("roll-over to %d: block %d is %d after %d, want %d", roll, n+d, got, n, d)
					}
				}
			}
		}
		if last, first := tr.wire(65535), tr.wire(65536); last != 65535 || first != roll {
			t.Errorf("%d follows %d, want %d", first, last, roll)
		}
	}
	one := &Transfer{opts: Options{Rollover: 1, HasRollover: true}}
	if one.after(70_000, 0) != -1 || one.after(1, 0) != -1 {
		t.Error("with a roll-over to 1 there is a second block 0")
	}
}

// TestDuplicates runs over a network that doubles everything, at once and late. In lockstep and in windows each block
// is sent once.
func TestDuplicates(t *testing.T) {
	for _, window := range []int{1, 4, 64} {
		for _, op := range []Opcode{OpRead, OpWrite} {
			for _, delay := range []time.Duration{50 * time.Microsecond, 20 * time.Millisecond, 150 * time.Millisecond} {
				s := new(sim)
				s.init(t, 1, new(simCount))
				s.dup, s.delay, s.prompt = 1, delay, true
				s.req.Op, s.req.Options.Window, s.req.Options.Timeout = op, window, 6
				s.size = 512*300 + 1
				s.run()
				blocks := 301
				acks := (blocks+window-1)/window + 2
				if s.sender.data != blocks || s.receiver.acks > acks {
					t.Errorf("%v, windows of %d, delay of %v: %d blocks are sent %d times and get %d ACKs", op, window, delay, blocks, s.sender.data, s.receiver.acks)
				}
			}
		}
	}
}

// simCount is how often what the simulation is for has happened.
type simCount struct {
	Whole, Failed, Halves, Lost, Doubled, Stalls, Holds, Cuts, StoreFails, Plain, Windows, Repeats int
}

// A sim is one transfer between two ends of a network in fake time.
type sim struct {
	t     *testing.T
	seed  uint64
	rng   *rand.Rand
	count *simCount
	now   time.Time
	began time.Time
	endAt time.Time

	// The network, of each direction alike.
	loss, dup, reorder float64
	delay, late        time.Duration // of all, and at most of those that are reordered
	cut                [2]time.Duration
	queue              simQueue
	seq                int

	req     Request
	size    int64
	file    []byte
	opening time.Duration // of the file, at the server

	client, server, sender, receiver *simEnd

	ready     int64 // bytes of the Source
	stalls    int   // how often it may still stall
	holds     int
	storeFail bool
	prompt    bool          // the store confirms at once
	fakeTime  time.Duration // that stalls, holds and cuts have cost
	sunk      int64
	steps     int
}

type simPacket struct {
	at  time.Time
	seq int
	to  *simEnd
	b   []byte
	do  func() // instead
}

type simQueue []simPacket

func (q simQueue) Len() int { return len(q) }
func (q simQueue) Less(i, j int) bool {
	if !q[i].at.Equal(q[j].at) {
		return q[i].at.Before(q[j].at)
	}
	return q[i].seq < q[j].seq
}
func (q simQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *simQueue) Push(x any)   { *q = append(*q, x.(simPacket)) }
func (q *simQueue) Pop() any {
	p := (*q)[len(*q)-1]
	(*q)[len(*q)-1] = simPacket{}
	*q = (*q)[:len(*q)-1]
	return p
}

// A simEnd is one side: a machine of ours, or a plain peer.
type simEnd struct {
	s     *sim
	name  string
	other *simEnd
	tr    *Transfer
	plain *plainPeer
	isPl  bool
	asked bool // a server has got the request

	data, acks int // packets sent
	ended      int
	err        error
}

// random sets up a transfer by chance.
func (s *sim) random(t *testing.T, seed uint64, count *simCount) *sim {
	rng := rand.New(rand.NewPCG(seed, 1))
	s.init(t, seed, count)
	pick := func(of ...int) int { return of[rng.IntN(len(of))] }
	if rng.IntN(5) > 0 {
		s.loss = float64(pick(0, 1, 5, 10, 20, 30)) / 100
		s.dup = float64(pick(0, 0, 1, 10, 30)) / 100
		s.reorder = float64(pick(0, 0, 1, 10, 30)) / 100
	}
	s.delay = time.Duration(pick(0, 50, 500, 5000, 25000, 150000, 700000)) * time.Microsecond
	s.late = time.Duration(rng.Int64N(int64(3*s.delay) + int64(time.Millisecond)))
	if rng.IntN(6) == 0 {
		from := time.Duration(rng.Int64N(int64(2 * time.Second)))
		s.cut = [2]time.Duration{from, from + time.Duration(rng.Int64N(int64(80*time.Second)))}
		count.Cuts++
	}
	s.client.isPl = rng.IntN(4) == 0
	s.server.isPl = !s.client.isPl && rng.IntN(4) == 0
	o := &s.req.Options
	if rng.IntN(3) > 0 {
		o.Block = pick(8, 16, 512, 1468, 8192, 65464)
	}
	if rng.IntN(2) > 0 {
		o.Window = pick(1, 2, 4, 16, 64, 65535)
	}
	if rng.IntN(4) == 0 {
		o.Timeout = pick(1, 2, 6, 255)
	}
	o.HasSize = rng.IntN(2) == 0
	if rng.IntN(4) == 0 {
		o.Rollover, o.HasRollover = uint16(rng.IntN(2)), true
	}
	if rng.IntN(2) == 0 {
		s.req.Op = OpWrite
	}
	block := o.blockSize()
	if s.client.isPl || s.server.isPl {
		count.Plain++
		*o, block = Options{}, DefaultBlock
	}
	if o.Window > 1 {
		count.Windows++
	}
	switch rng.IntN(4) {
	case 0:
		s.size = int64(pick(0, 1, 511, 512, 513))
	case 1:
		s.size = max(0, int64(block*max(o.Window, 1)*rng.IntN(3)+pick(-1, 0, 1)))
	default:
		s.size = int64(rng.IntN(block * pick(3, 30, 200)))
	}
	s.size = min(s.size, 1<<20, int64(block)*2000)
	s.opening = time.Duration(pick(0, 0, 20, 1500)) * time.Millisecond
	if rng.IntN(4) == 0 {
		s.stalls = 1 + rng.IntN(3)
		s.ready = rng.Int64N(s.size + 1)
		s.ready = min(s.size, max(s.ready, int64(block))) // before there is nothing to repeat
	} else {
		s.ready = s.size
	}
	if rng.IntN(4) == 0 {
		s.holds = 1 + rng.IntN(3)
	}
	s.storeFail = rng.IntN(20) == 0
	s.rng = rng
	return s
}

func (s *sim) init(t *testing.T, seed uint64, count *simCount) {
	s.t, s.seed, s.count = t, seed, count
	s.rng = rand.New(rand.NewPCG(seed, 2))
	s.now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	s.began = s.now
	s.req = Request{Op: OpRead, Name: "f"}
	s.client, s.server = &simEnd{s: s, name: "client"}, &simEnd{s: s, name: "server"}
	s.client.other, s.server.other = s.server, s.client
}

func (s *sim) errorf(format string, args ...any) {
	s.t.Helper()
	s.t.Errorf("seed %d, after %v: %s", s.seed, s.now.Sub(s.began), fmt.Sprintf(format, args...))
}

func (s *sim) trace(format string, args ...any) {
	if *simTrace {
		fmt.Printf("%12v %s\n", s.now.Sub(s.began), fmt.Sprintf(format, args...))
	}
}

// later does something after a while.
func (s *sim) later(d time.Duration, do func()) {
	s.seq++
	heap.Push(&s.queue, simPacket{at: s.now.Add(d), seq: s.seq, do: do})
}

// send gives a packet to the network.
func (e *simEnd) send(b []byte) {
	s := e.s
	switch opcode(b) {
	case OpData:
		e.data++
	case OpAck, OpOptionAck:
		e.acks++
	}
	s.steps++
	s.trace("%s → %s", e.name, simShow(b))
	at := s.now.Sub(s.began)
	copies := 1
	if s.rng.Float64() < s.dup {
		copies = 2
		s.count.Doubled++
	}
	for range copies {
		if at >= s.cut[0] && at < s.cut[1] || s.rng.Float64() < s.loss {
			s.count.Lost++
			continue
		}
		d := s.delay
		if s.rng.Float64() < s.reorder {
			d += time.Duration(s.rng.Int64N(int64(s.late) + 1))
		}
		s.seq++
		heap.Push(&s.queue, simPacket{at: s.now.Add(d), seq: s.seq, to: e.other, b: append([]byte(nil), b...)})
	}
}

func simShow(b []byte) string {
	if len(b) >= 4 && opcode(b) != OpOptionAck && opcode(b) > OpWrite {
		return fmt.Sprintf("%v %d, %d bytes", opcode(b), binary.BigEndian.Uint16(b[2:]), len(b)-4)
	}
	return fmt.Sprintf("%q", b)
}

func (s *sim) run() {
	if s.file == nil {
		s.file = file(s.size)
	}
	s.sender, s.receiver = s.server, s.client
	if s.req.Op == OpWrite {
		s.sender, s.receiver = s.client, s.server
	}
	if s.stalls > 0 && !s.sender.isPl {
		s.stall()
	} else {
		s.ready = s.size
	}
	c := s.client
	if c.isPl {
		c.plain = newPlain(c, true)
	} else {
		c.tr = Dial(c.config(), s.req, s.size, s.now)
	}
	for s.step() {
		if s.steps > 5_000_000 {
			s.errorf("there is no end")
			return
		}
	}
	s.judge()
}

// step does what comes next, or returns false: nothing does.
func (s *sim) step() bool {
	var first *simEnd
	var at time.Time
	if len(s.queue) > 0 {
		at = s.queue[0].at
	}
	for _, e := range []*simEnd{s.client, s.server} {
		if d := e.deadline(); !d.IsZero() && (at.IsZero() || d.Before(at)) {
			at, first = d, e
		}
	}
	if at.IsZero() {
		return false
	}
	if at.Before(s.now) {
		s.errorf("a deadline is %v ago", s.now.Sub(at))
	}
	s.now = at
	s.steps++
	if first != nil {
		first.tick()
		if first.deadline().Equal(at) {
			s.errorf("the deadline of the %s stays where it is", first.name)
			return false
		}
		return true
	}
	p := heap.Pop(&s.queue).(simPacket)
	switch {
	case p.do != nil:
		p.do()
	default:
		p.to.receive(p.b)
	}
	return true
}

// judge looks at how it ended.
func (s *sim) judge() {
	for _, e := range []*simEnd{s.client, s.server} {
		if e.tr == nil && e.plain == nil {
			continue // its request never came
		}
		if e.ended != 1 {
			s.errorf("the %s ended %d times", e.name, e.ended)
		}
		if e.err != nil {
			s.trace("%s: %v", e.name, e.err)
		}
	}
	got := s.receiver.ended == 1 && s.receiver.err == nil
	sent := s.sender.ended == 1 && s.sender.err == nil
	switch {
	case got && s.sunk != s.size:
		s.errorf("the receiver is content with %d of %d bytes", s.sunk, s.size)
	case sent && !got:
		s.errorf("the sender thinks that the receiver has the file: %v", s.receiver.err)
	case sent:
		s.count.Whole++
	case got: // the last ACK was lost, and then the path
		s.count.Halves++
	default:
		s.count.Failed++
	}
	// What has to arrive: everything over a path that is not too bad. An unproven peer has few tries to say its first word, though.
	calm := (s.loss == 0 && s.cut[1] == 0 || s.seed%2 != 0) && s.cut[1]-s.cut[0] < 3*time.Second && s.loss <= 0.1 && !s.storeFail && !s.client.isPl && !s.server.isPl
	if calm && !got { // its sender may miss the last ACK
		s.errorf("the file has not arrived: client %v, server %v", s.client.err, s.server.err)
	}
	s.judgeStorm()
}

// judgeStorm bounds what was sent.
func (s *sim) judgeStorm() {
	o := s.req.Options
	if s.client.tr != nil {
		o = s.client.tr.Options()
	}
	block, window := o.blockSize(), float64(o.Window)
	blocks := float64(s.size/int64(block) + 1)
	elapsed := s.now.Sub(s.began).Seconds()
	// A block is sent again when it or its ACK is lost, or is as late as if it were; in a window all that follow are, too. By time,
	// something is sent five times a second at most, and then less.
	again := 1/((1-s.loss)*(1-s.loss)) - 1 + 2*s.reorder
	every := 1.5 // seconds: the keep-alive
	if o.Timeout != 0 {
		every = min(float64(o.Timeout)/2, 5)
	} else if window > 1 {
		every = 3
	}
	timers := 10 + elapsed/every
	most := blocks*(1+2*again) + timers
	if window > 1 {
		most = blocks*(1+again*min(window, blocks)) + timers*min(window, blocks)
	}
	if s.sender.tr != nil && float64(s.sender.data) > most {
		s.errorf("%d packets of DATA for %.0f blocks in %.0f s, no more than %.0f are to be expected", s.sender.data, blocks, elapsed, most)
	}
	if s.receiver.tr != nil {
		most := float64(s.sender.data+s.sender.acks)*(1+s.dup) + timers // its acks: option acknowledgements
		if float64(s.receiver.acks) > most {
			s.errorf("%d ACKs for %d packets of DATA in %.0f s", s.receiver.acks, s.sender.data, elapsed)
		}
	}
	for _, e := range []*simEnd{s.client, s.server} {
		if e.tr != nil {
			s.count.Repeats += int(e.tr.Stats().Retransmitted)
		}
	}
}

// stall lets the Source have more, after a while.
func (s *sim) stall() {
	d := time.Duration(s.rng.Int64N(int64(2 * time.Second)))
	if s.rng.IntN(4) == 0 {
		d = time.Minute
	}
	s.fakeTime += d
	s.count.Stalls++
	s.stalls--
	s.later(d, func() {
		s.ready += s.rng.Int64N(s.size - s.ready + 1)
		if s.stalls > 0 {
			s.stall()
		} else {
			s.ready = s.size
		}
		if s.sender.tr != nil {
			s.sender.tr.Wake(s.now)
		}
	})
}

func (e *simEnd) Append(dst []byte, off int64, n int) ([]byte, State) {
	s := e.s
	if e.tr != nil && off < e.tr.Acked() {
		s.errorf("byte %d is asked for, although it was acknowledged", off)
	}
	end := off + int64(n)
	if end > s.ready && s.ready < s.size {
		if s.rng.IntN(8) == 0 && e.tr != nil {
			e.tr.Wake(s.now) // for nothing
		}
		return dst, Wait
	}
	if end >= s.size {
		return append(dst, s.file[min(off, s.size):]...), End
	}
	return append(dst, s.file[off:end]...), More
}

func (s *sim) sink(b []byte) bool {
	if s.sunk+int64(len(b)) > s.size || string(s.file[s.sunk:s.sunk+int64(len(b))]) != string(b) {
		s.errorf("%d bytes at %d are not those of the file", len(b), s.sunk)
		return false
	}
	s.sunk += int64(len(b))
	return true
}

func (e *simEnd) config() Config {
	s := e.s
	cfg := Config{
		Send: e.send,
		Closed: func(err error) {
			s.trace("%s ends: %v", e.name, err)
			s.endAt = s.now
			e.ended++
			e.err = err
		},
		Unproven: e == s.server && s.seed%2 == 0, // see judge
	}
	if e == s.sender {
		cfg.Source = e
		return cfg
	}
	cfg.Sink = func(b []byte) {
		s.sink(b)
		if s.holds > 0 && s.rng.IntN(4) == 0 {
			s.holds--
			s.count.Holds++
			e.tr.Hold(true, s.now)
			d := time.Duration(s.rng.Int64N(int64(3 * time.Second)))
			if s.rng.IntN(4) == 0 {
				d = time.Minute
			}
			s.fakeTime += d
			s.later(d, func() { e.tr.Hold(false, s.now) })
		}
	}
	cfg.Complete = func() {
		d := time.Duration(0)
		if !s.prompt && s.rng.IntN(2) == 0 {
			d = time.Duration(s.rng.Int64N(int64(5 * time.Second)))
		}
		if s.storeFail {
			s.count.StoreFails++
			s.later(d, func() { e.tr.Fail(&Error{Code: CodeDiskFull, Text: "full"}, s.now) })
			return
		}
		if d == 0 {
			e.tr.Confirm(s.now)
			return
		}
		s.fakeTime += d
		s.later(d, func() { e.tr.Confirm(s.now) })
	}
	return cfg
}

func (e *simEnd) receive(b []byte) {
	s := e.s
	if op := opcode(b); op == OpRead || op == OpWrite {
		if e.tr != nil || e.plain != nil {
			if e.tr != nil {
				e.tr.Again(s.now)
			}
			return
		}
		if e.asked {
			return
		}
		e.asked = true
		req, err := ParseRequest(b)
		if err != nil {
			s.errorf("%v", err)
		}
		open := func() {
			if e.isPl {
				e.plain = newPlain(e, false)
			} else {
				e.tr = Serve(e.config(), req, s.size, s.now)
			}
		}
		if s.opening == 0 {
			open()
		} else {
			s.later(s.opening, open)
		}
		return
	}
	s.trace("        %s ← %s", e.name, simShow(b))
	before := e.data + e.acks
	switch {
	case e.tr != nil:
		e.tr.Receive(b, s.now)
		if sent := e.data + e.acks - before; sent > int(e.tr.window()) {
			s.errorf("%s is answered by %d packets", simShow(b), sent)
		}
	case e.plain != nil:
		e.plain.receive(b)
	}
}

func (e *simEnd) deadline() time.Time {
	switch {
	case e.tr != nil:
		return e.tr.Deadline()
	case e.plain != nil:
		return e.plain.timer
	}
	return time.Time{}
}

func (e *simEnd) tick() {
	if e.tr != nil {
		e.tr.Tick(e.s.now)
	} else {
		e.plain.tick()
	}
}

// plainPeer is TFTP as RFC 1350 has it, written down once more: lockstep, a second's timer, no options.
type plainPeer struct {
	e       *simEnd
	block   uint16 // being sent and not acknowledged, or received last
	off     int64  // of block, if sent
	last    []byte // packet
	timer   time.Time
	tries   int
	linger  bool
	eager   bool // answers every duplicate: the Sorcerer's Apprentice
	sending bool
}

func newPlain(e *simEnd, client bool) *plainPeer {
	p := &plainPeer{e: e, sending: e == e.s.sender, eager: e.s.seed%3 == 0}
	switch {
	case client:
		p.send(e.s.req.Append(nil))
	case p.sending:
		p.data()
	default:
		p.send(appendBlock(nil, OpAck, 0))
	}
	return p
}

func (p *plainPeer) send(b []byte) {
	p.last = b
	p.tries = 0
	p.repeat()
}

func (p *plainPeer) repeat() {
	p.timer = p.e.s.now.Add(time.Second)
	p.e.send(p.last)
}

func (p *plainPeer) data() {
	if p.last != nil && opcode(p.last) == OpData {
		p.off += DefaultBlock
	}
	p.block++
	f := p.e.s.file
	p.send(append(appendBlock(nil, OpData, p.block), f[min(p.off, p.e.s.size):min(p.off+DefaultBlock, p.e.s.size)]...))
}

func (p *plainPeer) end(err error) {
	p.timer = time.Time{}
	p.e.ended++
	p.e.err = err
}

func (p *plainPeer) tick() {
	p.tries++
	switch {
	case p.linger:
		p.timer = time.Time{}
	case p.tries == 25:
		p.end(ErrTimeout)
	default:
		p.repeat()
	}
}

func (p *plainPeer) receive(b []byte) {
	if p.e.ended > 0 && !p.linger || len(b) < 4 {
		return
	}
	n := binary.BigEndian.Uint16(b[2:])
	switch op := opcode(b); {
	case op == OpError && !p.linger:
		p.end(errors.New("the plain peer got an ERROR"))
	case op == OpAck && p.sending && n == p.block:
		if opcode(p.last) == OpData && len(p.last) < 4+DefaultBlock {
			p.end(nil)
			return
		}
		p.data()
	case op == OpAck && p.sending && n == p.block-1 && p.eager && opcode(p.last) == OpData:
		p.repeat()
	case op == OpData && !p.sending && n == p.block+1 && !p.linger:
		p.e.s.sink(b[4:])
		p.block++
		p.send(appendBlock(nil, OpAck, n))
		if len(b) < 4+DefaultBlock {
			p.end(nil)
			p.linger = true
			p.timer = p.e.s.now.Add(20 * time.Second)
		}
	case op == OpData && !p.sending && n == p.block && (p.linger || p.eager):
		p.e.send(p.last)
	}
}
