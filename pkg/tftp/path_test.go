package tftp

import (
	"container/heap"
	"math/rand/v2"
	"testing"
	"time"
)

// path is a way between two machines: so many bytes a second in each direction, a queue before that, and a delay behind it.
type path struct {
	rate   float64 // bytes a second; 0: no bound
	buffer float64 // bytes
	delay  time.Duration
	loss   float64
	late   time.Duration // of timers, at most
}

// pathRun is one transfer on a path.
type pathRun struct {
	path
	*sim
	op   Opcode
	file []byte
	ends [2]*Transfer // client, server
	due  [2]time.Time // when each is ticked; zero: never
	busy [2]time.Time // until when each direction sends what is queued
	sent [2]int
	lost [2]int
	errs [2]error
	over [2]bool
	got  int
	at   time.Time // when the receiver had it all
}

func (p *pathRun) Append(dst []byte, off int64, n int) ([]byte, State) {
	if off+int64(n) >= int64(len(p.file)) {
		return append(dst, p.file[off:]...), End
	}
	return append(dst, p.file[off:off+int64(n)]...), More
}

// carry takes a packet of one end to the other one.
func (p *pathRun) carry(from int, b []byte) {
	p.sent[from]++
	if p.busy[from].Before(p.now) {
		p.busy[from] = p.now
	}
	if n := float64(len(b) + 28); p.rate > 0 {
		if p.busy[from].Sub(p.now).Seconds()*p.rate+n > p.buffer {
			p.lost[from]++
			return
		}
		p.busy[from] = p.busy[from].Add(time.Duration(n / p.rate * 1e9))
	}
	if p.rng.Float64() < p.path.loss {
		p.lost[from]++
		return
	}
	b = append([]byte(nil), b...)
	p.trace("%d → %s", from, simShow(b))
	p.later(p.busy[from].Add(p.path.delay).Sub(p.now), func() { p.arrive(1-from, b) })
}

func (p *pathRun) arrive(to int, b []byte) {
	p.trace("    %d ← %s", to, simShow(b))
	switch op := opcode(b); {
	case op != OpRead && op != OpWrite:
		p.ends[to].Receive(b, p.now)
	case p.ends[to] != nil:
		p.ends[to].Again(p.now)
	default:
		req, _ := ParseRequest(b)
		p.ends[to] = Serve(p.config(to), req, int64(len(p.file)), p.now)
	}
}

func (p *pathRun) config(end int) Config {
	cfg := Config{
		Send:   func(b []byte) { p.carry(end, b) },
		Closed: func(err error) { p.errs[end], p.over[end] = err, true },
	}
	if (p.op == OpWrite) == (end == 0) {
		cfg.Source = p
		return cfg
	}
	cfg.Sink = func(b []byte) { p.got += len(b) }
	cfg.Complete = func() {
		p.at = p.now
		p.ends[end].Confirm(p.now)
	}
	return cfg
}

// run moves a file, and returns how long it took.
func (p *pathRun) run(t *testing.T, o Options, size int, seed uint64) time.Duration {
	p.sim = &sim{t: t, rng: rand.New(rand.NewPCG(seed, 3)), now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	p.began = p.now
	p.file = make([]byte, size)
	p.ends[0] = Dial(p.config(0), Request{Op: p.op, Name: "f", Options: o}, int64(size), p.now)
	for p.at.IsZero() && !(p.over[0] && p.over[1]) {
		for i, tr := range p.ends {
			if tr == nil {
				continue
			}
			d := tr.Deadline()
			switch {
			case d.IsZero():
				p.due[i] = d
			case p.due[i].IsZero() || d.Before(p.due[i]) || p.due[i].Add(-p.path.late-1).Before(d) == false:
				p.due[i] = d.Add(time.Duration(p.rng.Int64N(int64(p.path.late) + 1)))
			}
		}
		next := -1
		var at time.Time
		if len(p.queue) > 0 {
			at = p.queue[0].at
		}
		for i, d := range p.due {
			if !d.IsZero() && (at.IsZero() || d.Before(at)) {
				at, next = d, i
			}
		}
		if at.IsZero() || at.Sub(p.began) > time.Hour {
			t.Errorf("stands still: %d bytes, %v", p.got, p.errs)
			return time.Hour
		}
		p.now = at
		if next >= 0 {
			p.due[next] = time.Time{}
			p.ends[next].Tick(p.now)
			continue
		}
		heap.Pop(&p.queue).(simPacket).do()
	}
	if p.at.IsZero() {
		t.Errorf("failed: %v", p.errs)
	}
	return p.at.Sub(p.began)
}

// TestPaths moves files over paths that are long, lose packets, or are slow and queue what is sent. It takes little longer than the windows
// alone would, and not much is sent for nothing, not even where a window takes longer than a first timeout.
func TestPaths(t *testing.T) {
	const ms = time.Millisecond
	for _, tt := range []struct {
		path
		block, window int
		time, sent    float64 // at most, of what it has to be
	}{
		{path{delay: 100 * ms}, 1468, 16, 1.1, 1.1},
		{path{delay: 50 * ms, loss: 0.01}, 512, 1, 1.3, 1.1},
		{path{delay: 50 * ms, loss: 0.01}, 1468, 16, 1.6, 1.3},
		{path{delay: 50 * ms, loss: 0.05}, 1468, 16, 3, 2},
		{path{delay: ms, loss: 0.01}, 1468, 44, 60, 2},
		{path{rate: 125e3, buffer: 64e3, delay: 20 * ms}, 1468, 16, 1.1, 1.1},
		{path{rate: 125e3, buffer: 200e3, delay: 20 * ms}, 1468, 44, 1.1, 1.1},
		{path{rate: 125e3, buffer: 200e3, delay: 20 * ms, loss: 0.01}, 1468, 16, 1.7, 1.4},
		{path{rate: 125e3, buffer: 200e3, delay: 20 * ms, loss: 0.01}, 1468, 44, 2.5, 2.5},
		{path{rate: 32e3, buffer: 200e3, delay: 20 * ms}, 1468, 4, 1.1, 1.1},
		{path{rate: 32e3, buffer: 200e3, delay: 20 * ms}, 1468, 44, 1.3, 1.3},
		{path{rate: 8e3, buffer: 200e3, delay: 100 * ms}, 1468, 4, 1.1, 1.1},
		{path{rate: 8e3, buffer: 200e3, delay: 100 * ms}, 1468, 16, 1.4, 1.4},
		{path{rate: 2e3, buffer: 200e3, delay: 100 * ms}, 1468, 1, 1.1, 1.1},
	} {
		tt.late = 50 * ms
		blocks := 600
		if tt.window == 1 {
			blocks = 200
		}
		size := blocks * tt.block
		windows := float64(blocks) / float64(tt.window)
		each := 2 * tt.delay.Seconds()
		if tt.rate > 0 {
			each += float64(tt.window*(tt.block+32)) / tt.rate
		}
		for _, op := range []Opcode{OpRead, OpWrite} {
			for seed := range uint64(3) {
				p := &pathRun{path: tt.path, op: op}
				o := Options{Block: tt.block, Window: tt.window}
				sender := 1
				if op == OpWrite {
					sender = 0
				}
				took := p.run(t, o, size, seed).Seconds() / (windows*each + 1)
				sent := float64(p.sent[sender]) / float64(blocks+1)
				if p.got != size || took > tt.time || sent > tt.sent {
					t.Errorf("seed %d: %v of %d blocks in windows of %d, %+v: %.2f of the time, %.2f of the packets (%d lost)",
						seed, op, tt.block, tt.window, tt.path, took, sent, p.lost[sender])
				}
			}
		}
	}
}
